"""Optimizers that are asked for points and told what they are worth; one engine call serves all candidates.

An optimizer is a frozen dataclass of hyper-parameters; `start` gives its state, which holds everything that
changes. The driver owns the loop.

Shapes: K candidates, D numbers a candidate (all its leaves, flattened).
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# A candidate whose loss is this many times its first one is lost (our choice).
EXPLODED = 1e4


class State(Protocol):
    """One run of an optimizer on K candidates."""

    @property
    def active_K(self) -> Tensor:
        """Which candidates (bool) still ask for evaluations."""

    @property
    def diverged_K(self) -> Tensor:
        """Which candidates (bool) found no way on: not finite, or exploded."""

    def ask(self) -> Tensor:
        """Points to be evaluated, (K, D)."""

    def tell(self, values_K: Tensor, gradients_KD: Tensor) -> None:
        """The values and gradients at the points asked for; those of inactive candidates are ignored."""

    def restart(self, k: int, point_D: Tensor) -> None:
        """Candidate k begins anew at a point."""

    def place(self, point_KD: Tensor) -> None:
        """Move the points that will be asked for next, and remember everything else."""


class Optimizer(Protocol):
    """Hyper-parameters."""

    def start(self, point_KD: Tensor) -> State:
        """A run from these points."""


@dataclass(frozen=True, kw_only=True)
class StepDecay:
    """Learning rate × gamma every so many steps (LAMP: 0.89 every 50)."""

    gamma: float = 0.89
    every: int = 50

    def __call__(self, step: int) -> float:
        """Factor at a step, counted from 0."""
        return float(self.gamma ** (step // self.every))


@dataclass(frozen=True, kw_only=True)
class LinearDecay:
    """Learning rate falling to 0 over a number of steps (TAG on BERT-large: 10,000)."""

    steps: int

    def __call__(self, step: int) -> float:
        """Factor at a step, counted from 0."""
        return max(0.0, 1 - step / self.steps)


@dataclass(frozen=True, kw_only=True)
class MilestoneDecay:
    """Learning rate × gamma at each of some steps (Geiping et al. 2020: ×0.1 at 3/8, 5/8, 7/8 of all)."""

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __call__(self, step: int) -> float:
        """Factor at a step, counted from 0."""
        return float(self.gamma ** sum(step >= milestone for milestone in self.milestones))


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma & Ba 2015), or AdamW with a decoupled weight decay (Loshchilov & Hutter 2019).

    Attributes:
        learning_rate: at the start.
        betas: decay of the first and second moments.
        epsilon: added to the root of the second moment.
        weight_decay: decoupled, times the learning rate; 0 is plain Adam.
        schedule: factor on the learning rate by the candidate's own step, None for a constant one.
        clip: largest norm of a candidate's gradient, None for no limit.
        signed: take the sign of each entry of the gradient in its place (Geiping et al. 2020).
    """

    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    schedule: StepDecay | LinearDecay | MilestoneDecay | None = None
    clip: float | None = None
    signed: bool = False

    def start(self, point_KD: Tensor) -> AdamState:
        """A run from these points."""
        return AdamState(self, point_KD)


class AdamState:
    """Points, moments and step numbers of K candidates."""

    def __init__(self, rule: Adam, point_KD: Tensor) -> None:
        self.rule = rule
        self.point_KD = point_KD.clone()
        self.first_KD = torch.zeros_like(point_KD)
        self.second_KD = torch.zeros_like(point_KD)
        self.steps_K = torch.zeros(len(point_KD), dtype=torch.long)
        self.first_value_K = torch.full((len(point_KD),), math.inf, dtype=torch.float64)
        self.active_K = torch.ones(len(point_KD), dtype=torch.bool)
        self.diverged_K = torch.zeros(len(point_KD), dtype=torch.bool)

    def ask(self) -> Tensor:
        """The current points."""
        return self.point_KD

    def tell(self, values_K: Tensor, gradients_KD: Tensor) -> None:
        """One Adam step of every candidate whose value and gradient are finite and that hasn't exploded."""
        rule = self.rule
        values = values_K.detach().cpu().double()
        finite_K = values.isfinite() & gradients_KD.isfinite().all(1).cpu()
        begins_K = (self.steps_K == 0) & finite_K
        self.first_value_K = torch.where(begins_K, values.abs(), self.first_value_K)
        self.diverged_K = ~finite_K | (values > EXPLODED * self.first_value_K)
        moves_K = (~self.diverged_K).to(self.point_KD.device).unsqueeze(1)
        if rule.clip is not None:
            norm_K1 = gradients_KD.norm(dim=1, keepdim=True)
            gradients_KD = gradients_KD * (rule.clip / norm_K1.clamp_min(1e-12)).clamp_max(1)
        gradients_KD = torch.where(moves_K, gradients_KD, 0.0)
        if rule.signed:
            gradients_KD = gradients_KD.sign()
        self.first_KD.lerp_(gradients_KD, 1 - rule.betas[0])
        self.second_KD.mul_(rule.betas[1]).addcmul_(gradients_KD, gradients_KD, value=1 - rule.betas[1])
        factors = [rule.schedule(int(n)) if rule.schedule else 1.0 for n in self.steps_K]
        rate_K1 = rule.learning_rate * self._column(torch.tensor(factors, dtype=torch.float64))
        self.steps_K += 1
        first_bias_K1 = self._column(1 - rule.betas[0] ** self.steps_K.double())
        second_bias_K1 = self._column(1 - rule.betas[1] ** self.steps_K.double())
        step_KD = self.first_KD / first_bias_K1 / (self.second_KD / second_bias_K1).sqrt_().add_(rule.epsilon)
        moved_KD = self.point_KD * (1 - rate_K1 * rule.weight_decay) - rate_K1 * step_KD
        self.point_KD = torch.where(moves_K, moved_KD, self.point_KD)

    def restart(self, k: int, point_D: Tensor) -> None:
        """Candidate k begins anew at a point, without moments."""
        self.point_KD[k] = point_D
        self.first_KD[k] = 0
        self.second_KD[k] = 0
        self.steps_K[k] = 0
        self.first_value_K[k] = math.inf
        self.diverged_K[k] = False

    def place(self, point_KD: Tensor) -> None:
        """Move the points; the moments stay."""
        self.point_KD = point_KD.clone()

    def _column(self, values_K: Tensor) -> Tensor:
        return values_K.to(self.point_KD).unsqueeze(1)


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
        candidate = _lbfgs(self.rule, self.point_KD[k].clone())
        self.point_KD[k] = next(candidate)
        return candidate

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


class _Memory:
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


def _lbfgs(rule: LBFGS, point_D: Tensor) -> Generator[Tensor, Told, bool]:
    """One candidate: yields trial points; returns False if even the first isn't finite."""
    value, gradient_D = yield point_D
    if not _finite(value, gradient_D):
        return False
    size = max(1, min(rule.history, _NUMBERS_KEPT // len(point_D)))
    memory = _Memory(size)
    while float(gradient_D.abs().max()) > rule.gradient_tolerance:
        direction_D = memory.direction(gradient_D)
        slope = float(direction_D @ gradient_D)
        if not slope < 0:  # rounding has spoilt the memory
            memory = _Memory(size)
            direction_D, slope = -gradient_D, -float(gradient_D @ gradient_D)
        length = rule.learning_rate
        if not memory.order:
            length *= min(1.0, 1.0 / float(gradient_D.abs().sum()))
        found = yield from _line_search(rule, point_D, direction_D, value, slope, gradient_D, length)
        if found.length == 0.0:
            if not memory.order:
                return True  # steepest descent finds nothing lower: rounding's floor
            memory = _Memory(size)
            continue
        step_D = found.length * direction_D
        memory.remember(step_D, found.gradient_D - gradient_D)
        still = value - found.value <= rule.change_tolerance * abs(value)
        still |= float(step_D.abs().max()) <= rule.change_tolerance
        point_D, value, gradient_D = point_D + step_D, found.value, found.gradient_D
        if still:
            return True
    return True


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
) -> Generator[Tensor, Told, _Trial]:
    """A trial that meets the strong Wolfe conditions, else the lowest one met (of length 0 if none is lower).

    A value that isn't finite counts as too high: the search goes back from it.
    """
    low = _Trial(length=0.0, value=value, slope=slope, gradient_D=gradient_D)
    high: _Trial | None = None  # with low it brackets a good length; unknown as long as it goes down
    reach = float(direction_D.abs().max())
    for _ in range(rule.line_search_evaluations):
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
            return trial
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
    return low


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
