"""What a run may do beside minimizing, each an optimizer around another one, so that the loop knows none of it.

Patience counts a converged candidate as stuck, and a race lets some rest for good: of the two the race goes outside.

Shapes: K candidates, D numbers a candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from textleak.matching.optimizers import Optimizer, State

# A loss that fell to less than this part of an earlier one is on its way (our choice).
PROGRESS = 0.9


@dataclass(frozen=True, kw_only=True)
class Patient:
    """A candidate that has converged, or hardly gets on, counts as diverged: the loop lets it begin anew.

    Attributes:
        optimizer: what it goes around.
        patience: evaluations that have to bring the loss below `PROGRESS` of what it was; inf to count a candidate as
            stuck only when it has converged.
    """

    optimizer: Optimizer
    patience: float

    def start(self, point_KD: Tensor) -> State:
        """A run from these points."""
        return _PatientState(self.optimizer.start(point_KD), point_KD, self.patience)


@dataclass(frozen=True, kw_only=True)
class Race:
    """The candidates with the lowest losses go on, the others rest for good (Jamieson & Talwalkar 2016).

    Attributes:
        optimizer: what it goes around.
        survivors: how many candidates go on, by the number of steps after which that is decided.
    """

    optimizer: Optimizer
    survivors: Mapping[int, int]

    def start(self, point_KD: Tensor) -> State:
        """A run from these points."""
        return _RaceState(self.optimizer.start(point_KD), point_KD, self.survivors)


class _Around:
    """The state of an optimizer inside another one's, and each candidate's lowest loss."""

    def __init__(self, inner: State, point_KD: Tensor) -> None:
        self.inner = inner
        self.told = 0
        self.lowest_K = point_KD.new_full((len(point_KD),), torch.inf)

    @property
    def active_K(self) -> Tensor:
        return self.inner.active_K

    @property
    def diverged_K(self) -> Tensor:
        return self.inner.diverged_K

    def ask(self) -> Tensor:
        return self.inner.ask()

    def tell(self, values_K: Tensor, gradients_KD: Tensor) -> None:
        self.inner.tell(values_K, gradients_KD)
        self.told += 1

    def restart(self, k: int, point_D: Tensor) -> None:
        self.inner.restart(k, point_D)

    def place(self, point_KD: Tensor) -> None:
        self.inner.place(point_KD)


class _PatientState(_Around):
    """When each candidate last came to a loss that is lower by far than any since it began."""

    def __init__(self, inner: State, point_KD: Tensor, patience: float) -> None:
        super().__init__(inner, point_KD)
        self.patience = patience
        self.lowered_K = torch.zeros(len(point_KD), dtype=torch.long)

    @property
    def diverged_K(self) -> Tensor:
        """Those that are stuck too."""
        stuck_K = (self.told - self.lowered_K >= self.patience) | ~self.inner.active_K
        return self.inner.diverged_K | stuck_K

    def tell(self, values_K: Tensor, gradients_KD: Tensor) -> None:
        super().tell(values_K, gradients_KD)
        lower_K = values_K < PROGRESS * self.lowest_K
        self.lowest_K = torch.where(lower_K, values_K, self.lowest_K)
        self.lowered_K[lower_K.cpu()] = self.told

    def restart(self, k: int, point_D: Tensor) -> None:
        super().restart(k, point_D)
        self.lowest_K[k], self.lowered_K[k] = torch.inf, self.told


class _RaceState(_Around):
    """Which candidates still run."""

    def __init__(self, inner: State, point_KD: Tensor, survivors: Mapping[int, int]) -> None:
        super().__init__(inner, point_KD)
        self.survivors = survivors
        self.runs_K = torch.ones(len(point_KD), dtype=torch.bool)

    @property
    def active_K(self) -> Tensor:
        return self.inner.active_K & self.runs_K

    @property
    def diverged_K(self) -> Tensor:
        return self.inner.diverged_K & self.runs_K

    def tell(self, values_K: Tensor, gradients_KD: Tensor) -> None:
        super().tell(values_K, gradients_KD)
        self.lowest_K = torch.where(values_K < self.lowest_K, values_K, self.lowest_K)  # a NaN never is
        if self.told in self.survivors:
            self.runs_K[self.lowest_K.argsort()[self.survivors[self.told] :].to(self.runs_K.device)] = False
