"""Vectors of a span that equal a target in as many entries as possible and are 0 in the others.

Least squares, reweighted until the entries part: weights 1 / (r² + e²) with e falling are a local search for the
smallest Σ log(r² + e²), which counts the entries that are off (Chartrand & Yin 2008). Other starts, on a part of the
entries and with one entry held at 0 for a while, find other vectors of the kind (our choice).

Shapes: N fits, I entries, K columns that make the span.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

# Factor by which e falls a round, its last value, and rounds (our choice; measured on minilm, 8 CoLA sentences: slower
# schedules find no more).
_FALL, _LAST, _ROUNDS = 0.4, 1e-7, 15
# Entries this near to a value are fitted to it in the end, and that is done so often at most.
_NEAR, _REFITS = 1e-3, 6
# Other starts: part of the entries that counts at first, what the others count, weight of the entry that is held at 0,
# and rounds of it all; weights, to choose from, of entries that vectors found before have dropped (our choice; measured
# likewise: 3 finds most, and each of these some that the others don't).
_COUNTS, _OTHERS, _HELD, _ROUNDS_HELD, _NEW = 0.6, 1e-3, 1e4, 5, (1.0, 3.0, 3.0, 10.0)
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
        wanted_NI: what they are held at for the first rounds.
        first_NI: weights for the first rounds.
        always_NI: weights for all rounds.
    """

    targets_NI: Tensor
    wanted_NI: Tensor
    first_NI: Tensor
    always_NI: Tensor

    def only(self, rows: slice) -> _Start:
        """Some of the fits."""
        return _Start(
            targets_NI=self.targets_NI[rows],
            wanted_NI=self.wanted_NI[rows],
            first_NI=self.first_NI[rows],
            always_NI=self.always_NI[rows],
        )


class SparseFits:
    """Fits in one span, all entries of about one size.

    Args:
        columns_IK: what makes the span.
    """

    def __init__(self, columns_IK: Tensor) -> None:
        self.basis_IK, self.turn_KK = torch.linalg.qr(columns_IK)

    def coefficients(self, values_NI: Tensor) -> Tensor:
        """What of each column makes vectors of the span, (N, K)."""
        found_KN: Tensor = torch.linalg.solve_triangular(
            self.turn_KK, self.basis_IK.T @ values_NI.T, upper=True
        )
        return found_KN.T

    def plain(self, targets_NI: Tensor) -> Fit:
        """One fit for each target, from all entries alike."""
        ones_NI = torch.ones_like(targets_NI)
        return self._in_pieces(
            _Start(targets_NI=targets_NI, wanted_NI=targets_NI, first_NI=ones_NI, always_NI=ones_NI)
        )

    def again(self, targets_NI: Tensor, kept_NI: Tensor, generator: torch.Generator) -> Fit:
        """Fits from random starts, away from what was found before.

        Args:
            targets_NI: what entries may equal.
            kept_NI: entries that no vector found for the target drops; one of them is held at 0 for a while, and the
                others count for more, as another mask is likely to keep them.
            generator: draws the starts.
        """
        counts_NI = torch.rand(targets_NI.shape, generator=generator, dtype=torch.float64) < _COUNTS
        zero_N1 = torch.multinomial(kept_NI.double() + 1e-12, 1, generator=generator)
        chosen_N = torch.randint(len(_NEW), (len(targets_NI),), generator=generator)
        new_N1 = torch.tensor(_NEW, dtype=torch.float64)[chosen_N, None]
        return self._in_pieces(
            _Start(
                targets_NI=targets_NI,
                wanted_NI=targets_NI.scatter(1, zero_N1, 0.0),
                first_NI=(counts_NI.double() + _OTHERS).scatter(1, zero_N1, _HELD),
                always_NI=torch.where(kept_NI, 1.0, new_N1),
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
        targets_NI, wanted_NI, weights_NI = start.targets_NI, start.wanted_NI, start.first_NI
        for round_ in range(_ROUNDS):
            values_NI = self._solved(weights_NI * start.always_NI, wanted_NI)
            near = max(_LAST, _FALL**round_)
            weights_NI = 1 / ((values_NI - targets_NI).square() + near**2)
            weights_NI = weights_NI / weights_NI.amax(1, keepdim=True)
            held = round_ < _ROUNDS_HELD
            wanted_NI = start.wanted_NI if held else targets_NI
            weights_NI = weights_NI * start.first_NI if held else weights_NI
        tells_NI = (
            targets_NI.abs() > 4 * _NEAR
        )  # elsewhere it doesn't show yet which of its values an entry has
        for _ in range(_REFITS):
            agrees_NI, zero_NI = parted(values_NI, targets_NI, _NEAR)
            before_NI = values_NI
            values_NI = self._solved(((agrees_NI | zero_NI) & tells_NI).double(), targets_NI * agrees_NI)
            if torch.equal(before_NI, values_NI):
                break
        agrees_NI, zero_NI = parted(values_NI, targets_NI, _NEAR)
        return Fit(values_NI=values_NI, agrees_NI=agrees_NI, zero_NI=zero_NI)

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
