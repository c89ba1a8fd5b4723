"""From the head back through a ReLU network: what each convolution read, as far as the gradients determine it.

The recursion of R-GAP (Zhu and Blaschko 2021, arXiv 2010.07733), on residual networks and networks that end in a mean
over places: the loss's gradient at a layer's output hangs on which later units are on and on nothing else, and what a
layer read says which units before it are on. R-GAP begins at a head that reads its map place by place; a mean over
places tells no places, so the last convolution is taken apart first (`factoring`).

Shapes: C channels, H and W height and width, L classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping

import torch
from torch import Tensor, nn

from textleak.attacks.recursive.factoring import Factored, factored
from textleak.attacks.recursive.inputs import Equations, Read, curvature_of, left_over, reads_plainly, solve
from textleak.attacks.recursive.relu_network import ReluNetwork
from textleak.clients.view import View
from textleak.events import Phase
from textleak.numerics import exact

# Roundings of the gradients' type that may be left over of the equations (our choice: 1 to 2 are, 4,000 and more where
# one unit is taken for on or off wrongly).
_ROUNDINGS = 20.0
# Rounding of the gradients' type, at most: float32 (our choice; in 16 bits it leaves over what a wrong unit does).
_PRECISION = 1e-6
# Nothing that a ReLU gives is below 0: how far below 0 values were read, in their deviations, is how wrong values are.
# A unit is on beyond so much more than that, and doubtful within these parts of its bar (our choice).
_BEYOND, _DOUBTFUL = 1.5, (0.05, 10.0)
# And beyond this part of the tolerance of the largest value (our choice).
_LEAST = 1 / 6
# Doubtful units that are tried the other way before one is kept, and kept in all, at most (our choice).
_TRIED, _KEPT = 8, 20


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """What a network's layers read.

    Attributes:
        network: the network.
        values: by its sources, (1, C, H, W); what a ReLU gave is 0 where its unit is off, and where that isn't known.
    """

    network: ReluNetwork
    values: Mapping[int, Tensor]


def read_features(view: View, *, seed: int) -> Generator[Phase, None, Features | None]:
    """What the network's layers read of the only picture of a batch.

    Args:
        view: what the server sees.
        seed: of random starts.

    Returns:
        None where nothing can be read: the batch has several pictures or was changed by a defense, the network has no
        ReLUs or uses the batch's own statistics, or gradients that are needed weren't shared or are rounded to 16 bits.
    """
    shared = view.shared
    if shared.known.size != 1 or shared.defenses:
        return None
    precision = max(torch.finfo(gradient.dtype).eps for gradient in shared.gradients.values())
    if precision > _PRECISION:
        return None
    network = ReluNetwork(view.image_model)
    gradients = {name: exact(gradient).cpu() for name, gradient in shared.gradients.items()}
    error_L = _error(network, gradients)
    if error_L is None or not network.maps:
        return None
    recursion = _Recursion(network, gradients, error_L, tolerance=_ROUNDINGS * precision)
    yield Phase(name="layers", detail="what each layer read, by least squares")
    recursion.read_all(view)
    if not recursion.maps_read:
        yield Phase(
            name="factoring", detail="the last convolution's gradient: which units are on, and what it read"
        )
        for stand in recursion.factor(seed):
            if view.clock.over:
                return None
            if stand.left <= recursion.tolerance:
                yield Phase(name="layers", detail="what each layer read, by least squares")
                recursion.read_all(view)
    return Features(network=network, values=recursion.values) if recursion.maps_read else None


def _error(network: ReluNetwork, gradients: Mapping[str, Tensor]) -> Tensor | None:
    """The loss's gradient at the logits of the only picture: that of the head's bias."""
    heads = [call for call in network.calls if isinstance(call.layer, nn.Linear)]
    if not heads or heads[-1] is not network.calls[-1] or heads[-1].layer.bias is None:
        return None
    return gradients.get(f"{heads[-1].name}.bias")


class _Recursion:
    """Layer by layer, from the head on.

    Args:
        network: in float64.
        gradients: by parameter, in float64.
        error_L: the loss's gradient at the logits.
        tolerance: what may be left over of equations, as a part of them.

    Attributes:
        on: by ReLU call, which units are on, as far as that is known.
        values: what was read so far, by source.
    """

    def __init__(
        self, network: ReluNetwork, gradients: Mapping[str, Tensor], error_L: Tensor, *, tolerance: float
    ) -> None:
        self.network = network
        self.gradients = gradients
        self.error_L = error_L
        self.tolerance = tolerance
        self.on: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self._doubtful: dict[int, Tensor] = {}  # by ReLU call, (1, C, H, W)

    @property
    def maps_read(self) -> bool:
        """Whether what a convolution gave was read."""
        return any(self.network.sources[number].shape[1:] for number in self.values)

    def read_all(self, view: View) -> None:
        """Read source after source from the head on, until time is up."""
        for number in reversed(range(len(self.network.sources))):
            if view.clock.over:
                return
            self.read(number)

    def factor(self, seed: int) -> Generator[Factored, None, None]:
        """Take the last convolution's gradient apart, after which it is known which of the last map's units are on.

        Nothing where there is none with a kernel of several places.
        """
        maps = [number for number, shape in enumerate(self.network.maps) if shape[1:]]
        if not maps:
            return
        last = maps[-1]
        # It must switch a call's output, unit by unit, and nothing else may.
        all_on = torch.ones(1, *self.network.maps[last], dtype=torch.float64)
        generator = torch.Generator().manual_seed(0)  # any units do
        some_on = (torch.rand(all_on.shape, generator=generator) > 0.5).double()
        by_all, by_some = (
            self.network.deltas(self.error_L, self.on | {last: on}) for on in (all_on, some_on)
        )
        found = [
            Equations(call=call, gradient=gradient, delta=delta)
            for call, delta, switched in zip(self.network.calls, by_all, by_some, strict=True)
            if isinstance(call.layer, nn.Conv2d) and call.layer.weight[0, 0].numel() > 1
            if call.given == self.network.maps[last] and reads_plainly(call.layer)
            if delta is not None and switched is not None
            if torch.allclose(switched, delta * some_on, rtol=1e-9, atol=0.0)
            if (gradient := self.gradients.get(f"{call.name}.weight")) is not None
        ]
        if found:
            shape = self.network.sources[found[-1].call.source].shape
            for stand in factored(found[-1], shape, tolerance=self.tolerance, seed=seed):
                if stand.left <= self.tolerance:
                    self.on[last] = stand.on
                yield stand

    def read(self, number: int) -> None:
        """Read a source, where the gradients determine it and fit it."""
        source, equations = self.network.sources[number], self._equations(number)
        found = solve(equations, source.shape) if equations else None
        if found is not None and found.left > self.tolerance:
            found = self._with_doubtful_ones_tried(number, found)
        if found is None or found.left > self.tolerance:
            return
        # Units taken for on or off wrongly would have left something over: those that these layers hang on are told.
        told = min(one.call.follows for one in equations)
        self._doubtful = {call: units for call, units in self._doubtful.items() if call < told}
        if source.relu is None:
            self.values[number] = found.values
            return
        bar = self._bar(found)
        on = found.values > bar
        low, high = (part * bar for part in _DOUBTFUL)
        self.values[number] = found.values * on
        if source.relu not in self.on:
            self.on[source.relu] = on.double()
            self._doubtful[source.relu] = (found.values > low) & (found.values < high)

    def _bar(self, found: Read) -> Tensor:
        """What a unit must have given to be on, (1, C, H, W)."""
        largest = float(found.values.abs().max())
        deviations = found.deviations.clamp_min(self.tolerance**2 * largest)
        wrong = float((-found.values / deviations).max())
        return (_BEYOND * max(wrong, 1.0) * deviations).clamp_min(_LEAST * self.tolerance * largest)

    def _equations(self, number: int, on: Mapping[int, Tensor] | None = None) -> list[Equations]:
        """Of the layers that read a source, but for those that hang on units that aren't known."""
        deltas = self.network.deltas(self.error_L, self.on if on is None else on)
        found = []
        for call, delta in zip(self.network.calls, deltas, strict=True):
            if call.source != number or not reads_plainly(call.layer):
                continue
            gradient = self.gradients.get(f"{call.name}.weight")
            if gradient is None or delta is None:
                continue
            found.append(Equations(call=call, gradient=gradient, delta=delta))
        return found

    def _with_doubtful_ones_tried(self, number: int, found: Read) -> Read:
        """The same with doubtful units switched, each where that leaves less of the equations."""
        for _ in range(_KEPT):
            for call, unit in self._suspects(number, found):
                was = self.on[call]
                other = was.flatten().clone()
                other[unit] = 1 - other[unit]
                self.on[call] = other.view_as(was)
                tried = solve(self._equations(number), self.network.sources[number].shape)
                if tried is not None and tried.left < found.left:
                    found = tried
                    break
                self.on[call] = was
            else:
                break
            if found.left <= self.tolerance:
                break
        return found

    def _suspects(self, number: int, found: Read) -> list[tuple[int, int]]:
        """Doubtful units (ReLU call, unit), first that whose switching would leave least of the equations.

        As it leaves what was read where it is: by the slope of what is left over, squared, over its curvature.
        """
        on = {call: units.clone().requires_grad_() for call, units in self.on.items()}
        equations = self._equations(number, on)
        with torch.enable_grad():
            left = torch.stack([left_over(one, found.values) for one in equations]).sum()
            if not self._doubtful or not left.requires_grad:
                return []
            units = [on[call] for call in self._doubtful]
            slopes: tuple[Tensor | None, ...] = torch.autograd.grad(left, units, allow_unused=True)
        suspects = []
        for (call, doubtful), slope in zip(self._doubtful.items(), slopes, strict=True):
            if slope is None:
                continue
            # Where all of its units are on, each layer's gradient shows by how much a unit switches it.
            switched = self._equations(number, self.on | {call: torch.ones_like(self.on[call])})
            curvature = sum(
                curvature_of(one, found.values) for one in switched if one.delta.shape == doubtful.shape
            )
            down = (slope * (2 * self.on[call] - 1)).clamp_min(0) * doubtful
            gains = (down.square() / (curvature + 1e-300)).flatten()
            largest = gains.topk(min(_TRIED, gains.numel()))
            suspects += [
                (gain, call, unit)
                for gain, unit in zip(largest.values.tolist(), largest.indices.tolist(), strict=True)
                if gain > 0
            ]
        return [(call, unit) for _, call, unit in sorted(suspects, reverse=True)[:_TRIED]]
