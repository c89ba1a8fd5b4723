"""What the published continuous attacks share: dummies of a batch and soft labels, optimized, then decoded.

Pictures are dummies of pixels (`textleak.attacks.dummies.pictures`); the rest of this file is about text.

K candidates start from N(0, 1), each is optimized on its own, and the one whose gradient comes nearest to the
shared one is decoded, every embedding to its nearest token. What the tokenizer itself puts around a sentence
is public: those positions hold its embeddings from the start (as in LAMP's re-run of DLG and TAG).

Labels are optimized together with the embeddings unless they are given: over the classes for classification,
over the vocabulary at every position for language modeling. Two readings of our own, as the papers have none:
- causal: the last token is an input to no prediction, so it is read from the soft label of the last one;
- masked: which positions were hidden is optimized too, as their share of the loss; a position whose embedding
  ends nearest to the mask token was one, and its token is read from its soft label.

Shapes: K candidates, B sentences, T tokens, E embedding size, L predictions a sentence, C classes,
V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from textleak.attacks.dummies.pictures import ANY_PICTURES, DummyPictures, PictureSettings
from textleak.attacks.dummies.text import Dummies, known_lengths
from textleak.attacks.search.problem import TextProblem
from textleak.clients.view import View
from textleak.events import Phase, Progress, Recovery, Stop, Tokens
from textleak.matching import (
    Ending,
    Iterate,
    Leaves,
    Limits,
    Matcher,
    Objective,
    Optimiser,
    Patient,
    Race,
    Turns,
    minimise,
    minimise_in_turns,
)
from textleak.models import TextModel
from textleak.words import count_of

# Steps from one progress event to the next (our choice).
EVERY = 5
# Steps from one decoding of all candidates, for those who watch, to the next.
OTHERS_EVERY = 50

STOPS = {
    Ending.CONVERGED: Stop.CONVERGED,
    Ending.STEPS: Stop.STEPS,
    Ending.TIME: Stop.TIME,
    Ending.TOLERANCE: Stop.MATCHED,
}


class StandIns(Protocol):
    """Dummies of a batch, of sentences or pictures: what is optimized, and what it stands for."""

    @property
    def free(self) -> tuple[str, ...]:
        """The leaves that are optimized."""

    @property
    def turns(self) -> tuple[tuple[str, ...], ...]:
        """Those that are optimized together, in turn."""

    @property
    def tolerance(self) -> float | None:
        """A loss at which the gradients are equal; None to go on to the end."""

    @property
    def patience(self) -> int | None:
        """Evaluations without progress after which a candidate begins anew; None to let it be."""

    def draw(self, candidates: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Where candidates start."""

    def start(self, candidates: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """All leaves: those that are optimized, and what the model function reads beside them."""

    def value_and_gradient(self, matcher: Matcher, leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized, (K,), and its gradients by the free leaves."""

    def project(self, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        """The nearest allowed values."""

    def shows(self, step: int) -> bool:
        """Whether a step's progress carries the answer so far."""

    def shown(self, leaves: Leaves, k: int, *, coarse: bool) -> dict[str, Any]:
        """Candidate k as fields of a progress (which may be rounded: coarse) or of the recovery."""

    def others(self, leaves: Leaves) -> tuple[Tokens, ...]:
        """Every candidate's tokens; none of pictures."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Matched:
    """Where matching led.

    Attributes:
        recovery: the answer, which is the candidate with the lowest loss, decoded.
        losses_K: each candidate's lowest.
        pixels_KBCHW: each candidate's pictures there, as the network reads them; None of sentences.
        labels_KB: the classes that were held fixed; None where soft labels were optimized.
    """

    recovery: Recovery
    losses_K: Tensor
    pixels_KBCHW: Tensor | None = None
    labels_KB: Tensor | None = None

    def nearest(self, count: int) -> Matched:
        """So many candidates, the lowest loss first; the answer stays."""
        return self.only(self.losses_K.argsort()[:count])

    def only(self, chosen_K: Tensor) -> Matched:
        """Some of the candidates, by their numbers; the answer stays."""
        return dataclasses.replace(
            self,
            losses_K=self.losses_K[chosen_K],
            pixels_KBCHW=None if self.pixels_KBCHW is None else self.pixels_KBCHW[chosen_K],
            labels_KB=None if self.labels_KB is None else self.labels_KB[chosen_K.to(self.labels_KB.device)],
        )


def match_dummies(
    view: View,
    *,
    objective: Objective,
    optimiser: Optimiser,
    restarts: int,
    steps: int,
    generator: torch.Generator,
    labels_KB: Tensor | None = None,
    double: bool = False,
    pictures: PictureSettings = ANY_PICTURES,
    survivors: Mapping[int, int] = MappingProxyType({}),
    phase: str = "continuous",
) -> Generator[Phase | Progress, None, Matched]:
    """Optimize dummies until the steps are used up, and decode the best candidate.

    Args:
        view: what the server sees; the shape of the batch has to be known.
        objective: the distance of a candidate's gradient from the shared one.
        optimiser: hyper-parameters of what minimizes it.
        restarts: K.
        steps: evaluations of each candidate, at most.
        generator: draws where the candidates start.
        labels_KB: classes that are held fixed; None to optimize soft labels, unless the server knows them.
        double: compute in float64. The squared L2 distance, taken from moments, cancels to rounding at about
            3e-4 of the gradient's norm in float32, and a line search that reads values then ends early; released
            code forms the difference, which doesn't cancel.
        pictures: what only dummy pictures take.
        survivors: how many candidates go on after some steps (see `minimise`); not for dummies that take turns.
        phase: name of the phase in events.

    Raises:
        InputError: a shape that isn't known, or nothing shared that dummies leave a trace in.
    """
    if double:
        view = view.double()
    shared, model = view.shared, view.model
    if labels_KB is None and shared.known.labels is not None:
        labels_KB = torch.tensor(shared.known.labels).expand(restarts, -1)
    dummies: StandIns
    if isinstance(model, TextModel):
        matcher = TextProblem(view=view, objective=objective).soft_matcher
        dummies = Dummies(model=model, lengths=known_lengths(shared), labels_KB=labels_KB)
    else:
        dummies = picture = DummyPictures(
            view=view, objective=objective, settings=pictures, labels_KB=labels_KB
        )
        matcher = picture.matcher
    yield Phase(name=phase, detail=in_words(restarts, dummies))

    def objective_fn(leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        return dummies.value_and_gradient(matcher, leaves)

    leaves = dummies.start(restarts, generator)
    limits = Limits(steps=steps, seconds=view.clock.left, tolerance=dummies.tolerance)
    if len(dummies.turns) > 1:
        turns = Turns(groups=dummies.turns, each=pictures.one_at_a_time)
        run = minimise_in_turns(objective_fn, leaves, optimiser, limits=limits, turns=turns)
    else:
        if dummies.patience is not None:
            optimiser = Patient(optimiser=optimiser, patience=dummies.patience)
        run = minimise(
            objective_fn,
            leaves,
            Race(optimiser=optimiser, survivors=survivors) if survivors else optimiser,
            limits=limits,
            wrt=dummies.free,
            reinitialise=lambda _: {n: leaf[0] for n, leaf in dummies.draw(1, generator).items()},
            project=dummies.project if pictures.boxed else None,
        )
    last: Progress | None = None
    others: tuple[Tokens, ...] = ()
    again = 0
    for step in run:
        again += len(step.restarted)
        if step.step == 1 or step.step % OTHERS_EVERY == 0:
            others = dummies.others(step.best)
        if step.step == 1 or step.step % EVERY == 0 or step.ending is not None:
            last = progress_of(step, steps, dummies, others, phase)
            yield last
    assert last is not None
    assert step.ending is not None
    shown = dummies.shown(step.best, last.candidate, coarse=False)
    recovery = Recovery(
        **{"sentences": (), **shown},
        stop=STOPS[step.ending],
        final_loss=last.loss,
        steps=last.step,
        evaluations=last.evaluations,
        channel="matching",
        stages={"continuous": last.sentences} if last.sentences else {},
        notes=(f"{again} candidates that diverged or were stuck began anew.",) if again else (),
    )
    return Matched(
        recovery=recovery,
        losses_K=step.best_losses_K,
        pixels_KBCHW=dummies.pixels(step.best) if isinstance(dummies, DummyPictures) else None,
        labels_KB=labels_KB,
    )


def in_words(candidates: int, dummies: StandIns) -> str:
    """What is optimized, for a person."""
    return f"{count_of(candidates, 'dummy batch')}, {', '.join(dummies.free)} optimized"


def progress_of(
    step: Iterate, steps: int, dummies: StandIns, others: tuple[Tokens, ...], phase: str = "continuous"
) -> Progress:
    """A step of the driver as viewers are told of it."""
    best = int(step.best_losses_K.argmin())
    shows = step.ending is not None or dummies.shows(step.step)
    again = ", ".join(str(k) for k in step.restarted)
    return Progress(
        phase=phase,
        step=step.step,
        steps=steps,
        loss=float(step.best_losses_K[best]),
        losses=tuple(step.losses_K.tolist()),
        candidate=best,
        evaluations=step.evaluations,
        total_steps=step.step,
        detail=f"candidate {again} diverged or was stuck and began anew" if again else "",
        others=others,
        **(dummies.shown(step.best, best, coarse=True) if shows else {}),
    )
