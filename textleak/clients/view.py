"""All that a server has of a client: what was shared, the public model, and the procedure to replay on a guess."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Self

import torch
from torch import Tensor

from textleak.clients.base import Client, client_of, gradient_of
from textleak.errors import InputError
from textleak.matching import Capture, Limits, Matcher, Objective, Pool, Target
from textleak.matching.matcher import matched_names
from textleak.models.base import Examples, Tensors
from textleak.models.batches import TextExamples
from textleak.models.deferred import deferred_gradient
from textleak.models.losses.language import PLAIN
from textleak.models.sentence_parts import Known, add_known, splits
from textleak.models.text import TextModel
from textleak.models.vision import ImageModel
from textleak.shared.effects import clipped_samples
from textleak.shared.gradient import SharedGradient
from textleak.shared.traits import Trait

AnyModel = TextModel | ImageModel
"""The public model, of whatever kind the batch is."""

# Squared and summed over 1e8 entries it is within float32 (our choice; gradients that clients share are far below 1e6).
LARGEST_ENTRY = 1e15


class Clock:
    """When an attack has to end, in its own time: it stands while the attack waits for who drives it.

    Attributes:
        deadline: in seconds of `now`; None for no limit.
        limit: seconds that were given, of which a proof takes its own; None for no limit.
    """

    def __init__(self, deadline: float | None = None, *, limit: float | None = None) -> None:
        self.deadline = deadline
        self.limit = limit
        self._stood = 0.0

    @classmethod
    def of(cls, limit: float | None) -> Clock:
        """One that rings after so many seconds; None for never."""
        return cls(deadline=None if limit is None else time.monotonic() + limit, limit=limit)

    def now(self) -> float:
        """Seconds that only go forward."""
        return time.monotonic() - self._stood

    @contextlib.contextmanager
    def standing(self) -> Iterator[None]:
        """What is done within takes none of its time."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._stood += time.monotonic() - began

    def limits(self, steps: int, *, tolerance: float | None = None) -> Limits:
        """Of a run of an optimizer that is to end with it; `tolerance` as in `Limits`."""
        return Limits(steps=steps, seconds=self.left, clock=self.now, tolerance=tolerance)

    @property
    def left(self) -> float | None:
        """Seconds to the end, at least 0; None for no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - self.now())

    @property
    def over(self) -> bool:
        """Whether time is up."""
        return self.left == 0.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """All that a server has.

    Attributes:
        shared: what was shared; its gradients are what the client's procedure makes of what it sent.
        model: the public model as the client trains it, a `TextModel` or an `ImageModel`.
        client: the client's procedure.
        clock: when the attack has to end.
        pool: other attacks' candidates go into the same calls of the network; None for this one's alone.
        known: parts of sentences that were run already on this model, for `own`; filled by who proves them.
    """

    shared: SharedGradient
    model: AnyModel
    client: Client
    clock: Clock = dataclasses.field(default_factory=Clock)
    pool: Pool | None = None
    known: Known = dataclasses.field(default_factory=dict, init=False)

    @property
    def text_model(self) -> TextModel:
        """The model, for what reads text alone; `begin` makes sure that it is one of text."""
        assert isinstance(self.model, TextModel)
        return self.model

    @property
    def image_model(self) -> ImageModel:
        """Likewise of pictures."""
        assert isinstance(self.model, ImageModel)
        return self.model

    def own(self, guess: Examples) -> Mapping[str, Tensor]:
        """What the client would have sent if the batch were `guess`, as a gradient, before the batch's defenses.

        Where it is the plain sum of its sentences' parts, a matrix at a time, each formed where it is asked for.
        """
        client, names = self.client, list(self.shared.gradients)
        if self._matrix_by_matrix and isinstance(guess, TextExamples):
            known = functools.partial(add_known, known=self.known) if self.known else None
            return deferred_gradient(self.text_model, guess, names, known=known)
        gradient = gradient_of(
            client.trained(self.model, names),
            clipped_samples(self.shared.effects),
            loss_scale=client.loss_scale,
        )
        sent = client.update(self.model, client.running(guess), gradient, torch.Generator())
        made = client.as_gradient(sent, self.model)
        return {name: made[name] for name in names if name in made}

    @property
    def kept_apart(self) -> tuple[str, ...]:
        """The parameters that sentences' parts are kept of, for `known`; none where `own` can't be made of them.

        Nor of a wide model, whose parts are large as well.
        """
        splitting = self._matrix_by_matrix and not self.text_model.wide and splits(self.text_model)
        return tuple(self.shared.gradients) if splitting else ()

    @property
    def _matrix_by_matrix(self) -> bool:
        """Whether a gradient is the plain sum of its sentences' parts, in any order.

        Of the coarse types the client's own order of additions is repeated, as rounding hides much; but for a wide
        model, whose gradient is too large to be held whole.
        """
        plain = not self.client.kinds and clipped_samples(self.shared.effects) is None
        model = self.model
        if not plain or not isinstance(model, TextModel):
            return False
        fine = torch.finfo(model.dtype).eps <= torch.finfo(torch.float32).eps
        return model.own_loss is None and model.language == PLAIN and (fine or model.wide)

    def matcher(self, target: Target, objective: Objective, *, kinks: float = 0.0) -> Matcher:
        """Compares candidates' gradients with a target, by the client's own way to gradients."""
        names = matched_names(target, objective)
        source = self.client.source(self.model.network, names, kinks=kinks)
        pooled = self.pool is not None and isinstance(source, Capture) and not kinks
        return Matcher(source, target, objective, pool=self.pool if pooled else None)

    def double(self) -> Self:
        """The same with the model in float64, made once: what reads spans and what certifies ask for it."""
        return self._doubled

    @functools.cached_property
    def _doubled(self) -> Self:
        make: Callable[[], AnyModel] = self.model.double
        doubled = make() if self.pool is None else self.pool.once(self.model, "double", make)
        return dataclasses.replace(self, model=doubled)

    def has(self, trait: Trait) -> bool:
        """Whether an attack may rely on something of how the client computes."""
        return trait in self.client.traits(self.model)


def _check_size(gradients: Tensors) -> None:
    """Raise for a gradient that sums of squares can't be formed of."""
    for name, gradient in gradients.items():
        largest = float(gradient.abs().max()) if gradient.numel() else 0.0
        if not largest <= LARGEST_ENTRY:
            raise InputError(
                f"The gradient of {name} is as large as {largest:.1e}.",
                why="Sums of its squares leave the range of float32, so nothing can be compared with it.",
                fix="Look for an overflow on the client (bf16, an unstable loss) and share again.",
            )


def view_of(shared: SharedGradient, model: AnyModel) -> View:
    """What a server makes of a shared gradient and the public model.

    Raises:
        InputError: a client of a kind that isn't known here, gradients of another model, or too large to reckon with.
    """
    client = client_of(shared.client)
    prepared = client.prepare(model)
    shared.validate(prepared.parameters)
    # A file's tensors are the CPU's: what is compared with the model's own has to lie where these do.
    sent = {name: tensor.to(prepared.device) for name, tensor in shared.gradients.items()}
    gradients = client.as_gradient(sent, prepared)
    _check_size(gradients)
    return View(shared=dataclasses.replace(shared, gradients=gradients), model=prepared, client=client)
