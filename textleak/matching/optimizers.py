"""Optimizers that are asked for points and told what they are worth; one engine call serves all candidates.

An optimizer is a frozen dataclass of hyper-parameters; `start` gives its state, which holds everything that
changes. The driver owns the loop.

Shapes: K candidates, D numbers a candidate (all its leaves, flattened).
"""

from __future__ import annotations

import math
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
