"""Vectors of a span that equal a target in as many entries as possible and are 0 in the others.

First least absolute deviations, which a few entries that are off don't move (Candès & Tao 2005), by reweighted least
squares. From there Σ log(r² + e²) with e falling, which counts the entries that are off, so that they part (Chartrand &
Yin 2008). Other prices of the entries, with one of them held at 0 for a while, find other vectors of the kind (our
choice).

Shapes: N fits, I entries, K columns that make the span.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

# Rounds of least absolute deviations, and the e that counting begins with: from the plain start, and from others (our
# choice; on minilm with 8 CoLA sentences the first finds 89 of 89 tokens from the plain start).
_PLAIN, _OTHER = (8, 0.1), (16, 0.02)
# Rounds of counting; what e falls by a round in either, and to which value (our choice; slower ones find no more).
_COUNTED = 13
_DEVIATION_FALL, _LAST_DEVIATION = 0.5, 1e-3
_FALL, _LAST = 0.4, 1e-7
# Entries this near to a value are fitted to it in the end, and that is done so often at most.
_NEAR, _REFITS = 1e-3, 6
# Where the inputs moved between steps: what e falls to, and how near to a value an entry is, in times the usual entry's
# distance and at most (our choice; measured on minilm after 4 and 8 steps of SGD at 1e-2: true tokens' entries are
# within 6 times it, 2e-3 to 6e-2, wrong tokens' usual one alone is beyond 1e-2).
_MOVING, _USUAL, _MOST_MOVED = 3e-3, 8.0, 0.1
# Other starts: weight of the entry that is held at 0, and how much dearer entries are that vectors found before have
# dropped, as another one is likely to keep them (our choice; measured likewise: 8 masks of one token from 80 starts).
_HELD, _DEARER = 1e4, 5.0
_RIDGE = 1e-14
# Entries of matrices in one batch of fits: bounds the memory.
_ENTRIES = 2**22


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """N fitted vectors.

    Attributes:
        values_NI: the vectors.
        agrees_NI: entries near their target.
        zero_NI: the others that are near 0.
    """

    values_NI: Tensor
    agrees_NI: Tensor
    zero_NI: Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Start:
    """Where N fits begin.

    Attributes:
        targets_NI: what entries may equal.
        prices_NI: of each entry that is off.
        zero_N1: an entry of each that is held at 0 for a while; None for none.
    """

    targets_NI: Tensor
    prices_NI: Tensor
    zero_N1: Tensor | None = None

    def only(self, rows: slice) -> _Start:
        """Some of the fits."""
        return _Start(
            targets_NI=self.targets_NI[rows],
            prices_NI=self.prices_NI[rows],
            zero_N1=None if self.zero_N1 is None else self.zero_N1[rows],
        )


class SparseFits:
    """Fits in one span, all entries of about one size.

    Args:
        columns_IK: what makes the span.
        moving: whether vectors of the span are only near their targets, by a distance that each fit tells itself.
    """

    def __init__(self, columns_IK: Tensor, *, moving: bool = False) -> None:
        self.moving = moving
        self.basis_IK, self.turn_KK = torch.linalg.qr(columns_IK)

    def coefficients(self, values_NI: Tensor) -> Tensor:
        """What of each column makes vectors of the span, (N, K)."""
        found_KN: Tensor = torch.linalg.solve_triangular(
            self.turn_KK, self.basis_IK.T @ values_NI.T, upper=True
        )
        return found_KN.T

    def plain(self, targets_NI: Tensor) -> Fit:
        """One fit for each target, from all entries alike."""
        return self._in_pieces(_Start(targets_NI=targets_NI, prices_NI=torch.ones_like(targets_NI)))

    def again(self, targets_NI: Tensor, kept_NI: Tensor, generator: torch.Generator) -> Fit:
        """Fits from random starts, away from what was found before.

        Args:
            targets_NI: what entries may equal.
            kept_NI: entries that no vector found for the target drops.
            generator: draws the starts.
        """
        prices_NI = torch.empty_like(targets_NI).exponential_(generator=generator)
        return self._in_pieces(
            _Start(
                targets_NI=targets_NI,
                prices_NI=torch.where(kept_NI, prices_NI, _DEARER * prices_NI),
                zero_N1=torch.multinomial(kept_NI.double() + 1e-12, 1, generator=generator),
            )
        )

    def _in_pieces(self, start: _Start) -> Fit:
        size = max(1, _ENTRIES // self.basis_IK.numel())
        ends = range(0, len(start.targets_NI), size)
        pieces = [self._fitted(start.only(slice(at, at + size))) for at in ends]
        return Fit(
            values_NI=torch.cat([piece.values_NI for piece in pieces]),
            agrees_NI=torch.cat([piece.agrees_NI for piece in pieces]),
            zero_NI=torch.cat([piece.zero_NI for piece in pieces]),
        )

    def _fitted(self, start: _Start) -> Fit:
        targets_NI = start.targets_NI
        weights_NI = self._least_deviations(start)
        _, near = _PLAIN if start.zero_N1 is None else _OTHER
        for round_ in range(_COUNTED):
            values_NI = self._solved(weights_NI, targets_NI)
            least = max(_MOVING if self.moving else _LAST, near * _FALL**round_)
            weights_NI = 1 / ((values_NI - targets_NI).square() + least**2)
            weights_NI = weights_NI / weights_NI.amax(1, keepdim=True)
        for _ in range(_REFITS):
            near_N1 = self.nearness(values_NI, targets_NI)
            agrees_NI, zero_NI = parted(values_NI, targets_NI, near_N1)
            # Of small entries it doesn't show yet which of its values each has.
            tells_NI = targets_NI.abs() > 4 * near_N1
            before_NI = values_NI
            values_NI = self._solved(((agrees_NI | zero_NI) & tells_NI).double(), targets_NI * agrees_NI)
            if torch.equal(before_NI, values_NI):
                break
        agrees_NI, zero_NI = parted(values_NI, targets_NI, self.nearness(values_NI, targets_NI))
        return Fit(values_NI=values_NI, agrees_NI=agrees_NI, zero_NI=zero_NI)

    def nearness(self, values_NI: Tensor, targets_NI: Tensor) -> Tensor:
        """How near an entry is to its value or to 0 to count as equal, (N, 1)."""
        apart_NI = torch.minimum((values_NI - targets_NI).abs(), values_NI.abs())
        near_N1 = _USUAL * apart_NI.median(1, keepdim=True).values
        return near_N1.clamp(_NEAR, _MOST_MOVED) if self.moving else torch.full_like(near_N1, _NEAR)

    def _least_deviations(self, start: _Start) -> Tensor:
        """Weights of least squares that have about the least absolute deviations, (N, I)."""
        weights_NI, wanted_NI, held_NI = start.prices_NI, start.targets_NI, torch.ones_like(start.prices_NI)
        if start.zero_N1 is not None:
            wanted_NI = wanted_NI.scatter(1, start.zero_N1, 0.0)
            held_NI = held_NI.scatter(1, start.zero_N1, _HELD)
        rounds, _ = _PLAIN if start.zero_N1 is None else _OTHER
        for round_ in range(rounds):
            values_NI = self._solved(weights_NI * held_NI, wanted_NI)
            least = max(_LAST_DEVIATION, _DEVIATION_FALL**round_)
            weights_NI = start.prices_NI * ((values_NI - start.targets_NI).square() + least**2).rsqrt()
        return weights_NI

    def _solved(self, weights_NI: Tensor, wanted_NI: Tensor) -> Tensor:
        """Weighted least squares in the span: the fitted vectors (N, I)."""
        weighted_NKI = self.basis_IK.T * weights_NI[:, None]
        gram_NKK = weighted_NKI @ self.basis_IK
        ridge_N = _RIDGE * gram_NKK.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(torch.float64).tiny
        gram_NKK += torch.diag_embed(ridge_N[:, None].expand(-1, gram_NKK.shape[1]))
        factor_NKK = torch.linalg.cholesky_ex(gram_NKK).L
        parts_NK1 = torch.cholesky_solve(weighted_NKI @ wanted_NI[..., None], factor_NKK)
        fitted_NI: Tensor = parts_NK1[..., 0] @ self.basis_IK.T
        return fitted_NI


def parted(values: Tensor, targets: Tensor, off: float | Tensor) -> tuple[Tensor, Tensor]:
    """Entries that equal their targets, and those that are 0 instead: whichever is nearer."""
    apart = (values - targets).abs()
    agrees = (apart <= off) & (apart <= values.abs())
    return agrees, ~agrees & (values.abs() <= off)
