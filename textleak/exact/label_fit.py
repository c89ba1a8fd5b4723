"""Labels that make a layer's loss gradient, by least squares: one more at a time, until only rounding is left.

Shapes: L labels, O the gradient's size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from textleak.numerics import least_squares

# Squared, what rounding accounts for is off by this factor at most (our choice; measured on gpt2 and smollm2).
_OUTSIDE = 100.0
ROUNDINGS = 8.0
"""Rounding errors of a deep layer's input, of one entry's eps (our choice; measured likewise)."""
# Where less than this part of what one prediction adds is left, nothing is (our choice; measured on smollm2 with 16
# sentences: 2e-4 is left at most).
_HARDLY = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelFit:
    """Labels after one beginning, or after all of them at once, and how well they make its Δ.

    Attributes:
        labels: those found, L of them.
        atoms_LO: what each adds to Δ for a share of 1.
        shares_L: least-squares shares.
        delta_O: the loss gradient Δ at the layer's output there.
        noise: squared norm that Δ may be off by.
        eps: relative rounding error of an entry of the atoms.
    """

    labels: tuple[int, ...]
    atoms_LO: Tensor
    shares_L: Tensor
    delta_O: Tensor
    noise: float
    eps: float

    @classmethod
    def of(cls, delta_O: Tensor, *, noise: float, eps: float) -> LabelFit:
        """Without labels yet."""
        return cls(
            labels=(),
            atoms_LO=delta_O.new_empty(0, len(delta_O)),
            shares_L=delta_O.new_empty(0),
            delta_O=delta_O,
            noise=noise,
            eps=eps,
        )

    @cached_property
    def _basis_OL(self) -> Tensor:
        basis_OL: Tensor = torch.linalg.qr(self.atoms_LO.T).Q
        return basis_OL

    @cached_property
    def missing_O(self) -> Tensor:
        """What the labels leave of Δ."""
        return self.delta_O - self.shares_L @ self.atoms_LO

    def explained(self, unit: float) -> bool:
        """Whether they leave only rounding, or hardly anything of what one prediction more would add."""
        squared_L = self.atoms_LO.square().sum(1)
        rounded = float((self.shares_L.square() * squared_L).sum())
        allowed = _OUTSIDE * (self.noise + (ROUNDINGS * self.eps) ** 2 * rounded)
        if self.labels:
            allowed = max(allowed, (_HARDLY * unit) ** 2 * float(squared_L.max()))
        return float(self.missing_O.square().sum()) <= allowed

    def match(self, label: int, atom_O: Tensor) -> float:
        """How much of the missing part one more label would take away, as a norm; 0 for one that's there."""
        if label in self.labels:
            return 0.0
        missing_O = self.missing_O
        if self.labels:
            atom_O = atom_O - self._basis_OL @ (self._basis_OL.T @ atom_O)
        return float(atom_O @ missing_O / atom_O.norm().clamp_min(torch.finfo(atom_O.dtype).tiny))

    def with_label(self, label: int, atom_O: Tensor) -> LabelFit:
        """With one more label."""
        return self.with_labels([label], atom_O[None])

    def with_labels(self, labels: Sequence[int], more_LO: Tensor) -> LabelFit:
        """With some more."""
        atoms_LO = torch.cat([self.atoms_LO, more_LO])
        shares_L = least_squares(atoms_LO.T, self.delta_O[:, None])[:, 0]
        return dataclasses.replace(self, labels=(*self.labels, *labels), atoms_LO=atoms_LO, shares_L=shares_L)


def unit_of(fits: Sequence[LabelFit]) -> float:
    """About one prediction's share of the loss; 0 where no label is known."""
    shares = [share for fit in fits for share in fit.shares_L.tolist() if share > 0]
    largest = max(shares, default=0.0)
    return float(torch.tensor([s for s in shares if s >= _HARDLY * largest]).median()) if shares else 0.0
