"""What ends the sentences of a language model's batch, where all but their last tokens are known.

No layer reads a sentence's last token: it is a label alone, at the head. The gradient is linear in what the loss asks
for at the head's inputs, so what the known predictions leave of it is J z, with z = Σ share · W[label] at the ends and
J what the network makes of a change there. z is solved for by conjugate gradients, in coordinates where the head's
rows are alike in all directions, and is a row of the head.

Shapes: N sentences of T tokens that are read, D the head's input size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from textleak.clients.view import Clock
from textleak.matching.discrete import Row
from textleak.matching.factored import requiring_grad
from textleak.models import TextModel
from textleak.models.base import Tensors
from textleak.models.guesses import padded
from textleak.models.probes.layers import following_layers
from textleak.models.running import run

# Steps of conjugate gradients, and after how many it is looked whether they tell (our choice; measured on smollm2:
# 5 to 20 steps do).
_STEPS, _LOOK_EVERY = 60, 5
# Steps with the other sentences' labels known, and rounds over all sentences (our choice).
_STEPS_ALONE, _SWEEPS = 15, 3
# Relative norm of the gradient that the right labels leave (our choice; measured in float32: 1e-6 to 1e-5).
_EXPLAINED = 1e-4
_RIDGE = 1e-4  # of the variance of the head's rows
# Tensors of the last layers that are looked at (our choice; measured on smollm2 with 1 and 4 sentences: 4 tell what all
# 120 do, in a third of the time or less; 8 and more in as few steps).
_LAST = 16


def read_endings(
    model: TextModel,
    gradients: Tensors,
    rows: Sequence[Row],
    clock: Clock,
    *,
    weights: Tensors | None = None,
) -> Iterator[tuple[list[int], float]]:
    """The last token of each sentence, likelier at each look.

    Args:
        model: the public model, a causal language model, whose gradients are the batch's.
        gradients: of it, by name.
        rows: all tokens of the sentences but the last, each sentence once.
        clock: when to stop.
        weights: how much each entry counts; None where all do alike.

    Yields:
        A token for each row, and the relative norm of the gradient that these leave; the last one is the best.
    """
    layers = [layer for group in following_layers(model, len(model.parameters)) for layer in group]
    last = [layer.weight_name for layer in layers if layer.weight_name in gradients][-_LAST:]
    with requiring_grad([model.parameters[name] for name in last]):
        yield from _solved(model, {name: gradients[name] for name in last}, rows, clock, weights)


def _solved(
    model: TextModel, gradients: Tensors, rows: Sequence[Row], clock: Clock, weights: Tensors | None
) -> Iterator[tuple[list[int], float]]:
    ends = _Ends(model, gradients, rows, clock, weights)
    every = list(range(len(rows)))
    best, off = [0] * len(rows), math.inf
    for labels in ends.looks(every, best, _STEPS):
        best, off = labels, ends.left_by(labels)
        yield best, off
        if off <= _EXPLAINED or clock.over:
            return
    # Where predictions are hardly told apart, the loud ones' labels come first; with these known the others' show.
    for _ in range(_SWEEPS):
        before = best
        for n in every:
            for labels in ends.looks([n], best, _STEPS_ALONE):
                if labels != best and (left := ends.left_by(labels)) < off:
                    best, off = labels, left
                yield best, off
                if off <= _EXPLAINED or clock.over:
                    return
        if best == before:
            return


class _Ends:
    """The labels of some sentences' last predictions, those of the others known."""

    def __init__(
        self,
        model: TextModel,
        gradients: Tensors,
        rows: Sequence[Row],
        clock: Clock,
        weights: Tensors | None,
    ) -> None:
        head = model.head
        assert head is not None
        weight_VD = head.weight
        assert isinstance(weight_VD, Tensor)
        self.clock = clock
        self.problem, self.weight_VD = _Linear(model, head, list(gradients), rows, weights), weight_VD
        self._seen = {
            name: self.problem.counted(name, value.to(self.problem.like)) for name, value in gradients.items()
        }
        self._rest = _difference(self.problem.push(self.problem.asked_NTD(head)), self._seen)
        self._mean_D = weight_VD.mean(0)
        centered_VD = weight_VD - self._mean_D
        covariance_DD = centered_VD.T @ centered_VD / len(centered_VD)
        covariance_DD.diagonal().add_(_RIDGE * covariance_DD.diagonal().mean())
        self._turn_DD = torch.linalg.cholesky(covariance_DD)
        self._white_VD = torch.linalg.solve_triangular(self._turn_DD, centered_VD.T, upper=False).T
        self._lengths_V = self._white_VD.norm(dim=1)

    def left_by(self, labels: Sequence[int]) -> float:
        """Relative norm of the gradient that labels leave."""
        return _norm(_difference(self._rest, self._push(self.weight_VD[list(labels)]))) / _norm(self._seen)

    def looks(self, free: Sequence[int], labels: Sequence[int], steps: int) -> Iterator[list[int]]:
        """The labels as they seem after every few steps, and once time is up.

        Args:
            free: sentences whose labels are looked for.
            labels: of all; those of the free ones don't matter.
            steps: of conjugate gradients.
        """
        free_N1 = torch.zeros(len(labels), 1, dtype=torch.bool, device=self.weight_VD.device)
        free_N1[list(free)] = True
        start_ND = torch.where(free_N1, self._mean_D, self.weight_VD[list(labels)])
        left = _difference(self._rest, self._push(start_ND))
        solved_ND = torch.zeros(len(labels), len(self._mean_D)).to(self.problem.like)
        slope_ND = self._slope(left, free_N1)
        way_ND, squared = slope_ND, float(slope_ND.square().sum())
        for step in range(1, steps + 1):
            change = self._push(way_ND @ self._turn_DD.T)
            length = squared / max(_norm(change) ** 2, 1e-300)
            solved_ND = solved_ND + length * way_ND
            left = {name: value - length * change[name] for name, value in left.items()}
            if step % _LOOK_EVERY == 0 or self.clock.over:
                likely_N = (solved_ND @ self._white_VD.T / self._lengths_V).argmax(1)
                yield [int(likely_N[n]) if n in free else label for n, label in enumerate(labels)]
            slope_ND = self._slope(left, free_N1)
            before, squared = squared, float(slope_ND.square().sum())
            way_ND = slope_ND + squared / max(before, 1e-300) * way_ND

    def _push(self, ends_ND: Tensor) -> Tensors:
        return self.problem.push(self.problem.at_ends(ends_ND * self.problem.share))

    def _slope(self, left: Tensors, free_N1: Tensor) -> Tensor:
        return torch.where(free_N1, self.problem.pull(left) * self.problem.share @ self._turn_DD, 0.0)


class _Linear:
    """The map from a change asked for at the head's inputs to the gradient as it counts, and its transpose.

    Attributes:
        share: of each prediction in the loss.
        like: a tensor of the right kind.
    """

    def __init__(
        self,
        model: TextModel,
        head: nn.Module,
        names: Sequence[str],
        rows: Sequence[Row],
        weights: Tensors | None,
    ) -> None:
        """Run the sentences once, keeping the graph."""
        self.rows, self._weights = rows, weights
        self.ids_NT, self.mask_NT = padded(model, rows)
        self.lengths_N = self.mask_NT.sum(1)
        self.share = 1 / float(self.lengths_N.sum())
        parameters = [model.parameters[name] for name in names]
        self.names = list(names)
        self.parameters = parameters
        self.hidden_NTD = _head_input(model, head, self.ids_NT, self.mask_NT)
        self.like = self.hidden_NTD.detach()
        self.free_NTD = torch.zeros_like(self.like, requires_grad=True)
        # Linear in `free_NTD`, so that its derivative is the transposed map.
        self.made = torch.autograd.grad(
            self.hidden_NTD, parameters, self.free_NTD, create_graph=True, allow_unused=True
        )

    def counted(self, name: str, gradient: Tensor) -> Tensor:
        """A tensor's gradient, each entry as much as it counts."""
        return gradient if self._weights is None else gradient * self._weights[name]

    def asked_NTD(self, head: nn.Module) -> Tensor:
        """What the loss asks for at the head's inputs: all of it but the last tokens' part."""
        weight_VD = head.weight
        assert isinstance(weight_VD, Tensor)
        with torch.no_grad():
            expected_NTD = head(self.like).float().softmax(-1).to(weight_VD.dtype) @ weight_VD
            following_NT = torch.cat([self.ids_NT[:, 1:], self.ids_NT[:, :1]], 1)
            known_NT = (
                torch.arange(self.mask_NT.shape[1], device=self.mask_NT.device) < self.lengths_N[:, None] - 1
            )
            asked_NTD: Tensor = expected_NTD - weight_VD[following_NT] * known_NT[..., None]
            return asked_NTD * self.mask_NT[..., None] * self.share

    def at_ends(self, ends_ND: Tensor) -> Tensor:
        """Changes at the last positions alone."""
        spread_NTD = torch.zeros_like(self.like)
        spread_NTD[torch.arange(len(self.rows)), self.lengths_N - 1] = ends_ND.to(spread_NTD)
        return spread_NTD

    def push(self, asked_NTD: Tensor) -> Tensors:
        """The gradient that a change asked for makes."""
        made = torch.autograd.grad(
            self.hidden_NTD, self.parameters, asked_NTD, retain_graph=True, allow_unused=True
        )
        return {
            name: torch.zeros_like(parameter) if value is None else self.counted(name, value)
            for name, parameter, value in zip(self.names, self.parameters, made, strict=True)
        }

    def pull(self, gradient: Tensors) -> Tensor:
        """The transposed map, at the last positions: (N, D)."""
        pairs = [
            (value, self.counted(name, gradient[name]))
            for name, value in zip(self.names, self.made, strict=True)
            if value is not None
        ]
        (slope_NTD,) = torch.autograd.grad(
            [value for value, _ in pairs], self.free_NTD, [wanted for _, wanted in pairs], retain_graph=True
        )
        return slope_NTD[torch.arange(len(self.rows)), self.lengths_N - 1]


def _head_input(model: TextModel, head: nn.Module, ids_NT: Tensor, mask_NT: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def read(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])
        raise _Enough

    handle = head.register_forward_pre_hook(read)
    try:
        with torch.enable_grad():
            run(model, ids_NT, mask=mask_NT)
    except _Enough:
        return seen[0]
    finally:
        handle.remove()
    raise ValueError(f"{model.name} never runs its head")


class _Enough(Exception):  # noqa: N818
    """What was wanted was seen; not an error."""


def _difference(one: Tensors, other: Tensors) -> Tensors:
    return {name: value - other[name] for name, value in one.items()}


def _norm(values: Tensors) -> float:
    return float(torch.stack([value.double().square().sum() for value in values.values()]).sum().sqrt())
