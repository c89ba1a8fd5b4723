"""A network of ReLUs as this attack sees it: linear, once it is known which of its units are on.

Shapes: N pictures, C channels, H and W height and width, L classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from textleak.matching.hooks import hooked
from textleak.models.copies import copy_of
from textleak.models.vision import ImageModel

Layer = nn.Conv2d | nn.Linear

# Random pictures beside each other: a gradient at a layer that is the same for all doesn't hang on what is read.
_PROBES = 2
# A gradient is the same for all up to this part of its largest entry, in float64 (our choice).
_SAME = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """One call of a convolution or linear layer.

    Attributes:
        name: the layer's path.
        layer: the layer.
        source: number of what it reads, in `ReluNetwork.sources`.
        given: shape of its output, for one picture.
        follows: how many ReLU calls come before it.
    """

    name: str
    layer: Layer
    source: int
    given: torch.Size
    follows: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """What one or several layers read.

    Attributes:
        shape: of it, for one picture.
        relu: number of the ReLU call that gave it; None where something else did.
        call: number of the first call that reads it.
    """

    shape: torch.Size
    relu: int | None
    call: int


@dataclasses.dataclass(kw_only=True, eq=False)
class _Run:
    """What was seen in one run."""

    calls: list[Call] = dataclasses.field(default_factory=list)
    read: list[Tensor] = dataclasses.field(default_factory=list)
    given: list[Tensor] = dataclasses.field(default_factory=list)
    relus: list[Tensor] = dataclasses.field(default_factory=list)
    logits_NL: Tensor | None = None


class ReluNetwork:
    """A copy of a model in float64, on the CPU.

    Args:
        model: an image classifier.

    Attributes:
        calls: of convolutions and linear layers, in their order.
        maps: shape of what each ReLU call gives for one picture, in their order.
        sources: what calls read, in the order in which it is read first.
    """

    def __init__(self, model: ImageModel) -> None:
        self.model = model.with_network(copy_of(model.network).to("cpu", torch.float64))
        self._relus = _relus(self.model.network)
        names = {module: name for name, module in self.model.network.named_modules()}
        self._layers = {m: names[m] for m in self.model.network.modules() if isinstance(m, Layer)}
        generator = torch.Generator().manual_seed(0)  # any pictures do
        self._probes_NCHW = torch.randn(_PROBES, *model.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            run = self._run({})
        self.calls: Sequence[Call] = run.calls
        self.maps = [given.shape[1:] for given in run.relus]
        self.sources: Sequence[Source] = [
            self._source(number, read, run) for number, read in enumerate(run.read)
        ]

    def deltas(self, error_L: Tensor, on: Mapping[int, Tensor]) -> list[Tensor | None]:
        """The loss's gradient at each call's output, for one picture of which it is known which units are on.

        Args:
            error_L: the loss's gradient at the logits.
            on: by ReLU call, 1 where a unit is on and 0 where it isn't, (1, C, H, W); the other calls are what they
                are for any picture.

        Returns:
            A call's is None where it hangs on more than that; differentiable in `on` where that asks for it.
        """
        with torch.enable_grad():
            run = self._run(on)
            assert run.logits_NL is not None
            total = (run.logits_NL * error_L).sum()
            asked = any(units.requires_grad for units in on.values())
            found = torch.autograd.grad(total, run.given, allow_unused=True, create_graph=asked)
        return [None if delta is None else _common(delta) for delta in found]

    @staticmethod
    def _source(number: int, read: Tensor, run: _Run) -> Source:
        relu = next((k for k, given in enumerate(run.relus) if _same_numbers(given, read)), None)
        return Source(
            # What is read as a map and flattened is a map to the ReLU that gave it.
            shape=read.shape[1:] if relu is None else run.relus[relu].shape[1:],
            relu=relu,
            call=next(k for k, call in enumerate(run.calls) if call.source == number),
        )

    def _run(self, on: Mapping[int, Tensor]) -> _Run:
        seen = _Run()

        def switch(_: nn.Module, read: tuple[Tensor, ...], given: Tensor) -> Tensor:
            number = len(seen.relus)
            switched = read[0] * on[number] if number in on else given
            seen.relus.append(switched)
            return switched

        def note(layer: nn.Module, read: tuple[Tensor, ...], given: Tensor) -> None:
            assert isinstance(layer, Layer)
            source = next(
                (k for k, other in enumerate(seen.read) if _same_numbers(other, read[0])), len(seen.read)
            )
            if source == len(seen.read):
                seen.read.append(read[0])
            seen.calls.append(
                Call(
                    name=self._layers[layer],
                    layer=layer,
                    source=source,
                    given=given.shape[1:],
                    follows=len(seen.relus),
                )
            )
            seen.given.append(given)

        handles = [relu.register_forward_hook(switch) for relu in self._relus]
        handles += [layer.register_forward_hook(note) for layer in self._layers]
        with hooked(handles):
            # Something must ask for a gradient, or no layer's output knows where it went.
            seen.logits_NL = self.model.logits(self._probes_NCHW.clone().requires_grad_())
        return seen


class _EnoughError(Exception):
    """All that was asked for is there."""


class Inputs:
    """What layers read of a picture, differentiable in its pixels, with ReLUs that leak.

    Args:
        model: the network, in the precision it is asked in.
        network: the same, for what its layers read.
    """

    def __init__(self, model: ImageModel, network: ReluNetwork) -> None:
        self.model = model.with_network(copy_of(model.network))
        self.network = network
        self._relus = _relus(self.model.network)
        self._layers = [module for module in self.model.network.modules() if isinstance(module, Layer)]

    def of(self, pixels_NCHW: Tensor, wanted: Iterable[int], leak: float) -> dict[int, Tensor]:
        """By source, (N, C, H, W); of what a ReLU gave, what that ReLU read.

        Args:
            pixels_NCHW: as the network reads them.
            wanted: which sources.
            leak: slope of the ReLUs for what is below 0.
        """
        found: dict[int, Tensor] = {}
        of_relus = {self.network.sources[number].relu: number for number in wanted}
        of_calls = {
            self.network.sources[number].call: number
            for number in wanted
            if self.network.sources[number].relu is None
        }
        relus = calls = 0

        def keep(number: int | None, read: Tensor) -> None:
            if number is not None:
                found[number] = read
                if len(found) == len(of_relus.keys() - {None}) + len(of_calls):
                    raise _EnoughError

        def leaky(_: nn.Module, read: tuple[Tensor, ...], given: Tensor) -> Tensor:
            nonlocal relus
            keep(of_relus.get(relus), read[0])
            relus += 1
            return functional.leaky_relu(read[0], leak) if leak else given

        def note(_: nn.Module, read: tuple[Tensor, ...]) -> None:
            nonlocal calls
            keep(of_calls.get(calls), read[0])
            calls += 1

        handles = [relu.register_forward_hook(leaky) for relu in self._relus]
        handles += [layer.register_forward_pre_hook(note) for layer in self._layers]
        with hooked(handles), _until_enough():
            self.model.logits(pixels_NCHW)
        return found


@contextmanager
def _until_enough() -> Iterator[None]:
    try:
        yield
    except _EnoughError:
        return


def _relus(network: nn.Module) -> list[nn.ReLU]:
    """A copy's ReLUs, made to leave alone what they read."""
    found = [module for module in network.modules() if isinstance(module, nn.ReLU)]
    for relu in found:
        relu.inplace = False
    return found


def _same_numbers(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of the same numbers."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel()


def _common(delta_NX: Tensor) -> Tensor | None:
    """The first row, kept as a batch of one, where all rows are equal."""
    first = delta_NX[:1]
    same: Any = (delta_NX - first).abs().max() <= _SAME * first.abs().max()
    return first if bool(same) else None
