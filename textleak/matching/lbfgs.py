"""L-BFGS, of which every candidate is a coroutine that can be left and gone on with.

Shapes: K candidates, D numbers a candidate (all its leaves, flattened), M pairs that are remembered.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LBFGS:
    """L-BFGS with a strong Wolfe line search (Nocedal & Wright 2006, alg. 7.5, 3.5 and 3.6: N&W).

    Every candidate has its own curvature and line search; their trial points are evaluated together. A step
    of the driver is one trial point a candidate, not one iteration.

    Attributes:
        learning_rate: first length tried along a direction (the very first is shorter, as in torch).
        history: pairs kept of how gradients changed along steps; fewer where they would fill the memory.
        sufficient_decrease: c1 of the Wolfe conditions.
        curvature: c2 of the Wolfe conditions.
        line_search_evaluations: trial points a line search, at most.
        gradient_tolerance: a candidate is done when no entry of its gradient is larger.
        change_tolerance: a candidate is done when a step changes its value by at most this part of it,
            or no entry by more.
    """

    learning_rate: float = 1.0
    history: int = 100
    sufficient_decrease: float = 1e-4
    curvature: float = 0.9
    line_search_evaluations: int = 25
    gradient_tolerance: float = 1e-7
    change_tolerance: float = 1e-9

    def start(self, point_KD: Tensor) -> LBFGSState:
        """A run from these points."""
        return LBFGSState(self, point_KD)


# Numbers of a history's steps, and as many of its changes: 256 MB each in float64 (our choice).
_NUMBERS_KEPT = 2**25

Told = tuple[float, Tensor]
"""Value and gradient (D,) at the point asked for."""


class LBFGSState:
    """One coroutine a candidate: it asks for a point, is told its value and gradient, asks for the next.

    It works on the CPU wherever the points are: on a GPU each of its many small dot products would be waited for.
    """

    def __init__(self, rule: LBFGS, point_KD: Tensor) -> None:
        self.rule = rule
        self.device = point_KD.device
        self.point_KD = point_KD.cpu().clone()
        self.active_K = torch.ones(len(point_KD), dtype=torch.bool)
        self.diverged_K = torch.zeros(len(point_KD), dtype=torch.bool)
        self._candidates = [self._begin(k) for k in range(len(point_KD))]

    def _begin(self, k: int) -> Generator[Tensor, Told, bool]:
        candidate = self._candidate(k, self.point_KD[k].clone())
        self.point_KD[k] = next(candidate)
        return candidate

    def _candidate(self, k: int, point_D: Tensor) -> Generator[Tensor, Told, bool]:
        """Candidate k: yields trial points; returns False if even the first isn't finite."""
        del k
        return Descent(self.rule, point_D).steps()

    def ask(self) -> Tensor:
        """Each candidate's trial point; a finished one's last."""
        return self.point_KD.to(self.device)

    def tell(self, values_K: Tensor, gradients_KD: Tensor) -> None:
        """Advance every active candidate by one trial point."""
        points_KD = self.point_KD.clone()
        gradients_KD = gradients_KD.detach().cpu().clone()
        for k, value in enumerate(values_K.tolist()):
            if not self.active_K[k]:
                continue
            try:
                points_KD[k] = self._candidates[k].send((value, gradients_KD[k]))
            except StopIteration as end:
                self.active_K[k] = False
                self.diverged_K[k] = not end.value
        self.point_KD = points_KD

    def restart(self, k: int, point_D: Tensor) -> None:
        """Candidate k begins anew at a point, without memory."""
        self.point_KD[k] = point_D.cpu()
        self._candidates[k] = self._begin(k)
        self.active_K[k] = True
        self.diverged_K[k] = False

    def place(self, point_KD: Tensor) -> None:
        """Not possible: a line search that is moved finds nothing."""
        raise NotImplementedError("L-BFGS can't be kept within a range: use Adam")


class Memory:
    """How gradients changed along the latest steps: an estimate of the inverse curvature.

    Args:
        size: pairs of a step and a change that are kept.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.order: list[int] = []  # rows of the pairs, oldest first
        self._steps_MD = self._changes_MD = self._products_MM = torch.empty(0, 0)

    def remember(self, step_D: Tensor, change_D: Tensor) -> None:
        """Keep a step and the gradient's change along it, where that shows a positive curvature."""
        if float(change_D @ step_D) <= 1e-10 * float(change_D @ change_D):
            return
        if not self.order:
            self._steps_MD = step_D.new_zeros(self.size, len(step_D))  # memory is taken as rows are filled
            self._changes_MD = torch.zeros_like(self._steps_MD)
            self._products_MM = step_D.new_zeros(self.size, self.size)
        row = len(self.order) if len(self.order) < self.size else self.order.pop(0)
        self.order.append(row)
        self._steps_MD[row] = step_D
        self._changes_MD[row] = change_D
        count = len(self.order)
        self._products_MM[:count, row] = self._steps_MD[:count] @ change_D

    def copy(self) -> Memory:
        """As much, for another descent to go on from."""
        other, count = Memory(self.size), len(self.order)
        if count:
            other.order = list(self.order)
            other._steps_MD, other._changes_MD = map(torch.zeros_like, (self._steps_MD, self._changes_MD))
            other._steps_MD[:count] = self._steps_MD[:count]
            other._changes_MD[:count] = self._changes_MD[:count]
            other._products_MM = self._products_MM.clone()
        return other

    def direction(self, gradient_D: Tensor) -> Tensor:
        """−H g: both loops of N&W's algorithm 7.4, each as a triangular system in its shares.

        With A = s_i · y_j over pairs from old to new and U its upper triangle: U α = −S g, then with
        q = γ (−g − Yᵀ α): Uᵀ δ = diag(A) α − Y q, and −H g = q + Sᵀ δ.
        """
        if not self.order:
            return -gradient_D
        order = torch.tensor(self.order)
        steps_MD, changes_MD = self._steps_MD[: len(order)], self._changes_MD[: len(order)]
        upper_MM = self._products_MM[order][:, order].triu()
        along_M = upper_MM.diagonal()
        shares_M = torch.linalg.solve_triangular(
            upper_MM, -(steps_MD @ gradient_D)[order, None], upper=True
        ).squeeze(1)
        q_D = -gradient_D - torch.zeros_like(shares_M).index_copy(0, order, shares_M) @ changes_MD
        newest_D = changes_MD[order[-1]]
        q_D = q_D * (along_M[-1] / (newest_D @ newest_D))
        rest_M = along_M * shares_M - (changes_MD @ q_D)[order]
        shares_M = torch.linalg.solve_triangular(upper_MM.mT, rest_M[:, None], upper=False).squeeze(1)
        return q_D + torch.zeros_like(shares_M).index_copy(0, order, shares_M) @ steps_MD


class Descent:
    """One candidate: where it stands and what it remembers. It can be left and gone on with at any time.

    Args:
        rule: hyper-parameters.
        point_D: where it begins.
        memory: of how gradients change there; None where nothing is known yet.

    Attributes:
        point_D: the lowest point so far.
        value: the loss there, inf before the first evaluation.
        ended: whether nothing lower is found from there.
    """

    def __init__(self, rule: LBFGS, point_D: Tensor, memory: Memory | None = None) -> None:
        self.rule = rule
        self.point_D, self.value = point_D, math.inf
        self.memory = self._no_memory() if memory is None else memory
        self.ended = False
        self._gradient_D: Tensor | None = None

    def steps(self, evaluations: float = math.inf) -> Generator[Tensor, Told, bool]:
        """Yield trial points, as many as that or those of a line search more; False if the first isn't finite."""
        asked = 0
        if self._gradient_D is None:
            value, gradient_D = yield self.point_D
            asked = 1
            if not _finite(value, gradient_D):
                self.ended = True
                return False
            self.value, self._gradient_D = value, gradient_D
        while not self.ended and asked < evaluations:
            if float(self._gradient_D.abs().max()) <= self.rule.gradient_tolerance:
                self.ended = True
                break
            asked += yield from self._step(self._gradient_D)
        return True

    def with_part(self, part: slice, other_D: Tensor) -> Descent:
        """Another one, that begins where this one stands but for a part, and remembers what this one does."""
        point_D = self.point_D.clone()
        point_D[part] = other_D[part]
        return Descent(self.rule, point_D, self.memory.copy())

    def _step(self, gradient_D: Tensor) -> Generator[Tensor, Told, int]:
        """One line search; returns how many trial points it took."""
        direction_D = self.memory.direction(gradient_D)
        slope = float(direction_D @ gradient_D)
        if not slope < 0:  # rounding has spoilt the memory
            self.memory = self._no_memory()
            direction_D, slope = -gradient_D, -float(gradient_D @ gradient_D)
        length = self.rule.learning_rate
        if not self.memory.order:
            length *= min(1.0, 1.0 / float(gradient_D.abs().sum()))
        found, asked = yield from _line_search(
            self.rule, self.point_D, direction_D, self.value, slope, gradient_D, length
        )
        if found.length == 0.0:
            self.ended = not self.memory.order  # steepest descent finds nothing lower: rounding's floor
            self.memory = self._no_memory()
            return asked
        step_D = found.length * direction_D
        self.memory.remember(step_D, found.gradient_D - gradient_D)
        still = self.value - found.value <= self.rule.change_tolerance * abs(self.value)
        still |= float(step_D.abs().max()) <= self.rule.change_tolerance
        self.point_D, self.value, self._gradient_D = self.point_D + step_D, found.value, found.gradient_D
        self.ended = still
        return asked

    def _no_memory(self) -> Memory:
        return Memory(max(1, min(self.rule.history, _NUMBERS_KEPT // len(self.point_D))))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Trial:
    """A point along a direction: how far, its value, its slope along the direction, its gradient."""

    length: float
    value: float
    slope: float
    gradient_D: Tensor


def _line_search(
    rule: LBFGS,
    point_D: Tensor,
    direction_D: Tensor,
    value: float,
    slope: float,
    gradient_D: Tensor,
    length: float,
) -> Generator[Tensor, Told, tuple[_Trial, int]]:
    """A trial that meets the strong Wolfe conditions, else the lowest one met (of length 0 if none is lower).

    Beside it, how many were evaluated.

    A value that isn't finite counts as too high: the search goes back from it.
    """
    low = _Trial(length=0.0, value=value, slope=slope, gradient_D=gradient_D)
    high: _Trial | None = None  # with low it brackets a good length; unknown as long as it goes down
    reach = float(direction_D.abs().max())
    for asked in range(1, rule.line_search_evaluations + 1):
        told, told_gradient_D = yield point_D + length * direction_D
        finite = _finite(told, told_gradient_D)
        trial = _Trial(
            length=length,
            value=told if finite else math.inf,
            slope=float(told_gradient_D @ direction_D) if finite else math.nan,
            gradient_D=told_gradient_D,
        )
        if trial.value > value + rule.sufficient_decrease * length * slope or trial.value >= low.value:
            high = trial
        elif abs(trial.slope) <= -rule.curvature * slope:
            return trial, asked
        else:
            ahead = 1.0 if high is None else high.length - low.length
            before, low, high = low, trial, low if trial.slope * ahead >= 0 else high
        if high is None:  # as in torch: a little further at least, tenfold at most
            shortest = low.length + 0.01 * (low.length - before.length)
            length = min(max(_cubic_minimum(before, low), shortest), 10 * low.length)
        else:
            width = high.length - low.length
            if abs(width) * reach <= rule.change_tolerance:
                break
            ends = sorted((low.length + 0.1 * width, high.length - 0.1 * width))
            length = min(max(_cubic_minimum(low, high), ends[0]), ends[1])
    return low, asked


def _cubic_minimum(a: _Trial, b: _Trial) -> float:
    """Where the cubic through two trials is lowest (N&W, eq. 3.59); halfway if nowhere."""
    middle = (a.length + b.length) / 2
    if not math.isfinite(b.value) or a.length == b.length:
        return middle
    mean = a.slope + b.slope - 3 * (a.value - b.value) / (a.length - b.length)
    square = mean * mean - a.slope * b.slope
    if square < 0:
        return middle
    root = math.copysign(math.sqrt(square), b.length - a.length)
    below = b.slope - a.slope + 2 * root
    if below == 0:
        return middle
    return b.length - (b.length - a.length) * (b.slope + root - mean) / below


def _finite(value: float, gradient_D: Tensor) -> bool:
    return math.isfinite(value) and bool(gradient_D.isfinite().all())
