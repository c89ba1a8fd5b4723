"""The shape of a client: how it prepares the model, runs it on a batch, and makes of that what it sends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

import torch
from torch import nn

from textleak.errors import InputError
from textleak.matching.factored import Capture
from textleak.matching.matcher import GradientSource
from textleak.models.base import Examples, M, Modality, Model, Tensors
from textleak.models.gradient import formed_gradient
from textleak.registry import Registry
from textleak.seeds import seeded
from textleak.shared.effects import Bounds, Effect, before_rounding, known_exactly
from textleak.shared.public import PublicClient
from textleak.shared.traits import Trait

GradientOf = Callable[[Model, Examples], Tensors]
"""The gradient of a batch on a model, with what defenses do to each sample of it."""

OnSample = Callable[[Tensors], Tensors]
"""What is done to one sample's gradient."""

EVERY_TRAIT = frozenset(Trait)


def gradient_of(
    names: Sequence[str],
    on_sample: OnSample | None = None,
    draws: torch.Generator | None = None,
    *,
    loss_scale: float = 1.0,
) -> GradientOf:
    """How gradients of a batch are taken, as a client and its server both do it.

    Args:
        names: parameters whose gradients are wanted.
        on_sample: what is done to each sample's gradient before the mean over the batch; None for nothing.
        draws: what the network draws while it runs (dropout) comes from it; None where it draws nothing.
        loss_scale: the client's.
    """

    def one(model: Model, batch: Examples) -> Tensors:
        if draws is None:
            return formed_gradient(model, batch, names, loss_scale=loss_scale)
        with seeded(int(torch.randint(2**62, (), generator=draws)), model.device):
            return formed_gradient(model, batch, names, loss_scale=loss_scale)

    def mean_of_samples(model: Model, batch: Examples) -> Tensors:
        assert on_sample is not None
        total: Tensors = {}
        for b in range(len(batch)):
            for name, value in on_sample(one(model, batch.only(slice(b, b + 1)))).items():
                part = value / len(batch)
                total[name] = total[name] + part if name in total else part
        return total

    return one if on_sample is None else mean_of_samples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Client:
    """A kind of client; override what differs from one backward pass of the mean loss at the public weights.

    Attributes:
        name: as it was registered.
        reads: what it can train on.
        in_network: whether it is a part of the network that the server gives out, so that it can't be kept from it.

    Example:
        >>> from textleak.clients import CLIENTS
        >>> client = CLIENTS.build("accumulate", {"steps": 2})
        >>> shared_of_two, _ = textleak.share(model, ["the cat sat", "a dog ran"], client=client)
        >>> shared_of_two.client.spec
        'accumulate'
    """

    name: ClassVar[str] = "one-step"
    reads: ClassVar[frozenset[Modality]] = frozenset(Modality)
    in_network: ClassVar[bool] = False

    def prepare(self, model: M) -> M:
        """The public model as this client trains it, adapters inserted, say; the model itself stays as it is."""
        return model

    def running(self, batch: Examples) -> Examples:
        """The batch as the network is run on it: with dropout, in another precision."""
        return batch

    def update(
        self, model: Model, batch: Examples, gradient_of: GradientOf, draws: torch.Generator
    ) -> Tensors:
        """What the client sends, before the defenses of the batch.

        Args:
            model: as `prepare` made it.
            batch: as `running` made it.
            gradient_of: gives the gradient of (a part of) the batch.
            draws: the client's own randomness.
        """
        del draws
        return gradient_of(model, batch)

    def as_gradient(self, sent: Tensors, model: Model) -> Tensors:
        """What a server takes for the gradient."""
        del model
        return sent

    def bounds(self, gradient: Tensors, model: Model) -> Bounds | None:
        """Between what each entry of the batch's gradient lay, up to one positive factor common to all tensors.

        Args:
            gradient: as `as_gradient` made it.
            model: as `prepare` made it.

        Returns:
            Lower and upper bounds of the tensors, float64, infinite where there is none; None where `gradient` is the
            gradient itself, or where several steps leave nothing of the kind.
        """
        effects = self.effects(model)
        return before_rounding(known_exactly(gradient), effects) if effects else None

    def proxy(self) -> Client:
        """A client that is cheaper to replay and whose gradient ranks guesses nearly as well; itself where none is."""
        return self

    def trained(self, model: Model, shared: Sequence[str]) -> Sequence[str]:
        """Parameters whose gradients `update` needs, of those that are shared and all that are trainable."""
        del model
        return shared

    def traits(self, model: Model) -> frozenset[Trait]:
        """What an attack may rely on."""
        del model
        return EVERY_TRAIT

    def effects(self, model: Model) -> tuple[Effect, ...]:
        """What the procedure itself does to the gradient that a server makes of it, in order."""
        del model
        return ()

    def in_turn(self, samples: int) -> bool:
        """Whether steps take some of so many samples first and others later, so that their order matters."""
        del samples
        return False

    def taken(self, samples: int) -> int:
        """Samples that all steps together take of so many: more than those where one is taken several times."""
        return samples

    def source(self, network: nn.Module, names: Iterable[str], *, kinks: float = 0.0) -> GradientSource:
        """Where the engine takes candidates' gradients from; for `kinks` see `matching.factored.Capture`."""
        return Capture(network, names, kinks=kinks)

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before its gradient is taken, and this divided by."""
        return 1.0

    @property
    def adds_up(self) -> bool:
        """Whether it sends the sum of its samples' own gradients, each as the batch's loss weighs it."""
        return type(self).update is Client.update and type(self).running is Client.running

    def public(self, model: Model) -> PublicClient:
        """What the server knows of it."""
        return PublicClient(kinds=self.kinds, traits=self.traits(model), effects=self.effects(model))

    @property
    def kinds(self) -> tuple[tuple[str, dict[str, object]], ...]:
        """Names and options of the kinds that it is composed of; none for one plain step."""
        options = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        return ((self.name, options),)


CLIENTS: Registry[Client] = Registry("client", "textleak.clients")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composed(Client):
    """Several kinds, one after the other; at most one of them sends something of its own.

    Attributes:
        parts: the kinds, in order.
    """

    parts: tuple[Client, ...] = ()

    @property
    def _updates(self) -> Client:
        """The kind that says what is sent."""
        own = [part for part in self.parts if type(part).update is not Client.update]
        return own[0] if own else _ONE_STEP

    def prepare(self, model: M) -> M:
        """By every kind, in order."""
        for part in self.parts:
            model = part.prepare(model)
        return model

    def running(self, batch: Examples) -> Examples:
        """By every kind, the first one innermost."""
        for part in self.parts:
            batch = part.running(batch)
        return batch

    def update(
        self, model: Model, batch: Examples, gradient_of: GradientOf, draws: torch.Generator
    ) -> Tensors:
        """As the one kind that overrides it."""
        return self._updates.update(model, batch, gradient_of, draws)

    def as_gradient(self, sent: Tensors, model: Model) -> Tensors:
        """As the one kind that sends something else."""
        return self._updates.as_gradient(sent, model)

    def bounds(self, gradient: Tensors, model: Model) -> Bounds | None:
        """As the one kind that sends something else leaves them, before what the others do to a gradient."""
        if self._updates is _ONE_STEP:
            return super().bounds(gradient, model)
        bounds = self._updates.bounds(gradient, model)
        return None if bounds is None else before_rounding(bounds, self.effects(model))

    def proxy(self) -> Client:
        """Of the cheaper ones of all kinds."""
        return Composed(parts=tuple(part.proxy() for part in self.parts))

    def trained(self, model: Model, shared: Sequence[str]) -> Sequence[str]:
        """As the one kind that sends something else."""
        return self._updates.trained(model, shared)

    def traits(self, model: Model) -> frozenset[Trait]:
        """Those that every kind leaves."""
        return frozenset.intersection(EVERY_TRAIT, *(part.traits(model) for part in self.parts))

    def effects(self, model: Model) -> tuple[Effect, ...]:
        """Of all kinds, in order."""
        return tuple(effect for part in self.parts for effect in part.effects(model))

    def in_turn(self, samples: int) -> bool:
        """As the one kind that sends something else."""
        return self._updates.in_turn(samples)

    def taken(self, samples: int) -> int:
        """As the one kind that sends something else."""
        return self._updates.taken(samples)

    def source(self, network: nn.Module, names: Iterable[str], *, kinks: float = 0.0) -> GradientSource:
        """Of the first kind that has its own."""
        own = [part for part in self.parts if type(part).source is not Client.source]
        return (own[0] if own else _ONE_STEP).source(network, names, kinks=kinks)

    @property
    def loss_scale(self) -> float:
        """By those of all kinds."""
        return math.prod(part.loss_scale for part in self.parts)

    @property
    def adds_up(self) -> bool:
        """Whether every kind leaves it so."""
        return all(part.adds_up for part in self.parts)

    @property
    def kinds(self) -> tuple[tuple[str, dict[str, object]], ...]:
        """Those of all parts."""
        return tuple(kind for part in self.parts for kind in part.kinds)


_ONE_STEP = Client()


def composed(parts: Sequence[Client] = ()) -> Client:
    """One client of several kinds, in order; of none, one plain step.

    Raises:
        InputError: more than one of them says what is sent.
    """
    own = [part.name for part in parts if type(part).update is not Client.update]
    if len(own) > 1:
        raise InputError(
            f"The clients {' and '.join(own)} can't be composed.",
            why="Each of them says what leaves the device.",
            fix=f"Keep one of them; others, like {'accumulate' if 'fedavg' in own else 'fedavg'}, have options for it.",
        )
    return Composed(parts=tuple(part for part in parts if part.name != _ONE_STEP.name))


def client_of(public: PublicClient) -> Client:
    """The client that travels with a gradient, its options checked.

    Raises:
        InputError: a kind that isn't registered here, or options that it doesn't take.
    """
    return composed([CLIENTS.build(name, options) for name, options in public.kinds])


def untold(public: PublicClient) -> PublicClient:
    """What a server knows of a client that doesn't say how it trains: what is in the network, of one plain step.

    Raises:
        InputError: a kind that isn't registered here.
    """
    return PublicClient(kinds=tuple(kind for kind in public.kinds if CLIENTS[kind[0]].in_network))
