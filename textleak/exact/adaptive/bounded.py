"""A matrix of low rank whose entries lie between bounds: what a step or a short type left of a gradient (our choice).

A gradient G = ΔᵀX has rank at most the batch's tokens. Entries that the bounds tell closely, each as closely as it is
told, determine it many times over, and with it those that only a sign and a least size are known of. Weighted
alternating least squares finds it, with momentum (Mitchell, Ye and De Sterck 2020). Their weights differ by many
orders, where it would hardly move; so all entries are first taken to be told no more closely than to a part of their
row's size, and that part falls.

Shapes: O rows, I columns, R rank, P pairs of R.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from textleak.clients.view import Clock
from textleak.exact.evened import evened
from textleak.numerics import singular_values, svd

# Parts of a row's size that an entry is told to at most, one after the other, and rounds with each (our choice;
# measured on minilm's first query, key and value after a step of AdamW: with one sentence its inputs then lie within
# 2e-5 of the span in the median and 6e-4 at most, with four within 5e-4 and 2e-3; without momentum weak tokens' lay up
# to 6e-3 outside after as many rounds, 20 times what the span's errors are taken to be). The last is what rounding of a
# sum in float32 is at most.
_FLOORS = (
    (0.3, 6),
    (0.1, 6),
    (0.03, 6),
    (0.01, 10),
    (3e-3, 10),
    (1e-3, 10),
    (3e-4, 10),
    (1e-4, 10),
    (1e-5, 12),
)
# Part of a round's move that is added to it once more: k / (k + 3) after k rounds, as Nesterov's, up to this one.
_MOMENTUM = 0.9
# Bounds beyond which a value isn't told but for its sign and least size: the larger is more than so many times the
# smaller. What lies within is taken to be as likely everywhere.
_TOLD = 20.0
# Or it is below this part of its row's size, whichever its sign.
_SMALL = 1e-5
# Of whichever sign, it is told to be near 0 where both bounds are within this part of its row's size.
_BROAD = 1.0
# A value that must be larger than it is in the fit is pulled to this part above its least size.
_PULL = 0.1
_RIDGE = 1e-10
# The step behind the matrix's own singular values once the errors of all entries are one, and the next one at most, in
# units of the largest that such errors make (our choice; measured on minilm's first layers after a step of AdamW:
# errors' own begin at 0.87 to 1.24 and fall by less than 1.15; the step to them is 12 to 45 with one sentence, 1.8 to 3
# with two, 1.0 to 1.9 with four; of what a fit leaves with four, the first is 0.92 to 1.15 at the gradient's rank, and
# 2.0 to 10 one below).
_STEP, _NEXT = 1.5, 1.3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bounds:
    """Between what each entry of a matrix lies.

    Attributes:
        low_OI, high_OI: float64, infinite where there is none.
    """

    low_OI: Tensor
    high_OI: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LowRank:
    """The matrix.

    Attributes:
        left_OR: coordinates of the rows, float64.
        basis_RI: orthonormal directions, those first that rows have most of.
        unsure_RI: standard deviation of each entry of the directions.
        missing: directions that stand out of what is left at entries that are told: what is left is more than their
            bounds explain, and the rank too small.
    """

    left_OR: Tensor
    basis_RI: Tensor
    unsure_RI: Tensor
    missing: int

    @property
    def whole_OI(self) -> Tensor:
        """All entries."""
        return self.left_OR @ self.basis_RI


class _Fit:
    """The fit as it goes on."""

    def __init__(self, bounds: Bounds) -> None:
        low_OI, high_OI = bounds.low_OI, bounds.high_OI
        one_sign_OI = low_OI * high_OI > 0
        least_OI = torch.where(one_sign_OI, torch.minimum(low_OI.abs(), high_OI.abs()), 0.0)
        most_OI = torch.maximum(low_OI.abs(), high_OI.abs())
        scale_O1 = least_OI.square().mean(1, keepdim=True).sqrt()
        self.scale_O1 = scale_O1.where(scale_O1 > 0, 1.0)
        near_0_OI = ~one_sign_OI & (most_OI <= _BROAD * self.scale_O1)
        self.told_OI = (most_OI <= _TOLD * least_OI) | (most_OI <= _SMALL * scale_O1) | near_0_OI
        spread_OI = torch.where(self.told_OI, high_OI - low_OI, 0.0) / self.scale_O1
        self.variance_OI = spread_OI.square() / 12
        self.sign_OI = torch.where(low_OI + high_OI > 0, 1.0, -1.0).to(least_OI)
        self.least_OI = least_OI / self.scale_O1
        middle_OI = torch.where(self.told_OI, low_OI + high_OI, 0.0) / 2 / self.scale_O1
        self.values_OI = torch.where(self.told_OI, middle_OI, self.sign_OI * self.least_OI)
        self.left_OR = self.basis_RI = least_OI[:0]

    def begin(self, rank: int) -> None:
        """From the leading directions of what is known."""
        _, _, directions_RI = svd(self.values_OI)
        self.basis_RI = directions_RI[:rank]
        self.left_OR = self.values_OI[:, :0]

    def settle(self, floor: float, count: int, clock: Clock) -> bool:
        """Rounds in which entries are told no more closely than to `floor` of their row's size; False if time is up."""
        left, since, ahead_RI = math.inf, -1, self.basis_RI
        for _ in range(count):
            if clock.over:
                return False
            before_RI = self.basis_RI
            misfit = self.round(floor, ahead_RI)
            self._turn_to(before_RI)
            since, left = since + 1 if misfit <= left else 0, misfit
            moved_RI = self.basis_RI + min(since / (since + 3), _MOMENTUM) * (self.basis_RI - before_RI)
            ahead_RI = torch.linalg.qr(moved_RI.T).Q.T
        return True

    def round(self, floor: float, basis_RI: Tensor) -> float:
        """One of them, from some directions; what it leaves at entries that are told, in units of what is allowed."""
        weights_OI = self.weights(floor)
        left_OR = _coordinates(weights_OI, self.values_OI, basis_RI)
        left_OR, _ = torch.linalg.qr(left_OR)
        right_IR = _coordinates(weights_OI.T, self.values_OI.T, left_OR.T)
        right_IR, turn_RR = torch.linalg.qr(right_IR)
        self.basis_RI, self.left_OR = right_IR.T, left_OR @ turn_RR.T
        apart_OI = (self.left_OR @ self.basis_RI - self.values_OI).square() * weights_OI
        return float(apart_OI[self.told_OI].mean())

    def _turn_to(self, other_RI: Tensor) -> None:
        """The same matrix by the directions of its span that are nearest to others."""
        one_RR, _, other_RR = svd(other_RI @ self.basis_RI.T)
        turn_RR = one_RR @ other_RR
        self.basis_RI, self.left_OR = turn_RR @ self.basis_RI, self.left_OR @ turn_RR.T

    def weights(self, floor: float) -> Tensor:
        """Of each entry: none where it is only known to be large, and is."""
        weights_OI = torch.where(self.told_OI, 1 / (self.variance_OI + floor**2), 0.0)
        if self.left_OR.shape[1]:
            low_OI = self.sign_OI * (self.left_OR @ self.basis_RI) < self.least_OI
            pull_OI = 1 / (floor**2 + (_PULL * self.least_OI).square())
            weights_OI = torch.where(~self.told_OI & low_OI, pull_OI, weights_OI)
        return weights_OI

    def result(self, floor: float) -> LowRank:
        """The matrix as it is now."""
        weights_OI = self.weights(floor)
        left_OR = _coordinates(weights_OI, self.values_OI, self.basis_RI)
        turned_OR, s_R, turn_RR = svd(left_OR)
        self.basis_RI, left_OR = turn_RR @ self.basis_RI, turned_OR * s_R
        apart_OI = (left_OR @ self.basis_RI - self.values_OI) * weights_OI.sqrt()
        # Errors of one that are independent have no larger singular value.
        s_S = singular_values(apart_OI.where(self.told_OI, 0.0)) / sum(size**0.5 for size in apart_OI.shape)
        normal_IRR = _normal(weights_OI.T, left_OR.T)
        unsure_RI = torch.linalg.inv(normal_IRR).diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().T
        return LowRank(
            left_OR=left_OR * self.scale_O1,
            basis_RI=self.basis_RI,
            unsure_RI=unsure_RI,
            missing=int((s_S > _NEXT).sum()),
        )


def fitted(bounds: Bounds, rank: int, *, clock: Clock) -> LowRank | None:
    """The matrix of a rank that lies between bounds best; None where time was up before."""
    fit = _Fit(bounds)
    fit.begin(rank)
    if not all(fit.settle(floor, count, clock) for floor, count in _FLOORS):
        return None
    return fit.result(_FLOORS[-1][0])


def rank_between(bounds: Bounds) -> int | None:
    """The rank of the matrix between bounds, where its singular values clearly stand out of what is left open."""
    fit = _Fit(bounds)
    # An entry that is only known to be large may be as far beyond its least size as that is.
    error_OI = fit.variance_OI.sqrt().where(fit.told_OI, fit.least_OI).clamp_min(_SMALL)
    even = evened(error_OI)
    s_S = singular_values(even.of(fit.values_OI)) / even.largest
    step_S = (s_S[:-1] / s_S[1:]).where(s_S[1:] <= _NEXT, 0.0)
    last = int(step_S.argmax())
    return last + 1 if float(step_S[last]) >= _STEP else None


def _normal(weights_OI: Tensor, basis_RI: Tensor) -> Tensor:
    """Each row's normal matrix in a basis, (O, R, R)."""
    rank = len(basis_RI)
    one_P, other_P = torch.triu_indices(rank, rank)
    normal_OP = weights_OI @ (basis_RI[one_P] * basis_RI[other_P]).T
    normal_ORR = normal_OP.new_empty(len(weights_OI), rank, rank)
    normal_ORR[:, one_P, other_P] = normal_OP
    normal_ORR[:, other_P, one_P] = normal_OP
    ridge_O = _RIDGE * normal_ORR.diagonal(dim1=1, dim2=2).mean(1) + 1e-30
    return normal_ORR + torch.diag_embed(ridge_O[:, None].expand(-1, rank))


def _coordinates(weights_OI: Tensor, values_OI: Tensor, basis_RI: Tensor) -> Tensor:
    """Each row's coordinates in a basis by weighted least squares, (O, R)."""
    wanted_OR1 = ((weights_OI * values_OI) @ basis_RI.T)[..., None]
    factor_ORR = torch.linalg.cholesky_ex(_normal(weights_OI, basis_RI)).L
    solved_OR1: Tensor = torch.cholesky_solve(wanted_OR1, factor_ORR)
    return solved_OR1[..., 0]
