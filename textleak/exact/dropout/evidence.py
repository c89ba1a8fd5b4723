"""When a fitted vector proves its token: agreement that no other token could have by accident, nor any other has.

A space of K dimensions can be made to agree in K entries. Each entry beyond is a coincidence for a wrong token, so
hundreds of them are a proof that needs no other layer.

Shapes: N fits, C tokens, I entries, K columns that make the span.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from textleak.exact.dropout.fits import Fit, SparseFits, parted
from textleak.exact.dropout.frame import Frame

# Entries may be off by this many standard deviations of the gradient's own noise, by so many roundings of the input's
# own, and never by more than the third, in scales (our choice; measured on minilm in float32: up to 60 of the first).
_OFF, _ROUNDINGS, _MOST_OFF = 200.0, 1024.0, 1e-2
# A token counts as proved where a wrong one would fit so well with a chance below this, all tokens, places and masks
# counted; and where no other one is nearer than so many times its own distance from the vector (our choice).
_CHANCE, _CLEARLY = 1e-12, 10.0
# Standard deviations that the number of dropped entries may be off (our choice).
_SPREAD = 6.0
# Entries that twins are first looked for by.
_FEW = 16


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What a fit says for its token.

    Attributes:
        value_I: the fitted vector.
        target_I: what an entry is where it isn't dropped.
        off_I: how far an entry may be from its value, by rounding.
        kept_I: entries that equal the token's own; the others are 0.
        tells_I: entries whose two values are clearly apart.
    """

    value_I: Tensor
    target_I: Tensor
    off_I: Tensor
    kept_I: Tensor
    tells_I: Tensor

    @property
    def agreeing(self) -> int:
        """Telling entries that equal the token's own."""
        return int((self.kept_I & self.tells_I).sum())

    @property
    def dropped(self) -> int:
        """Telling entries that are 0."""
        return int((~self.kept_I & self.tells_I).sum())

    def chance(self, *, columns: int, tokens: int) -> float:
        """Logarithm of a bound on the chance that any wrong token at all would have fitted as well.

        For each mask with no more zeros, each spare entry lies by chance within what rounding allows of its value, of a
        spread of about one scale.

        Args:
            columns: K.
            tokens: how many could stand at how many places.
        """
        told = self.agreeing + self.dropped
        spare, off = told - columns, float(self.off_I.median())
        if spare <= 0:
            return 0.0
        masks = math.lgamma(told + 1) - math.lgamma(self.dropped + 1) - math.lgamma(self.agreeing + 1)
        return masks + math.log(self.dropped + 1) + math.log(tokens) + spare * math.log(min(1.0, 2 * off))

    def differs(self, kept_I: Tensor) -> float:
        """The part of the telling entries in which a mask isn't this one."""
        return float((self.kept_I != kept_I)[self.tells_I].double().mean())

    def twins(self, targets_CI: Tensor) -> Tensor:
        """Which of some tokens' targets are so near the vector that it can't be told whose it is, (C,)."""
        bar = _CLEARLY * max(self._apart(self.target_I[None])[0], len(self.off_I) ** 0.5 / _CLEARLY)
        few = self.value_I.abs().topk(min(_FEW, len(self.value_I))).indices
        near_C: Tensor = ((targets_CI[:, few] - self.value_I[few]).abs() <= bar * self.off_I[few]).all(1)
        for index in near_C.nonzero().flatten().tolist():
            near_C[index] = self._apart(targets_CI[index, None])[0] <= bar
        return near_C

    def _apart(self, targets_CI: Tensor) -> list[float]:
        apart_CI = torch.minimum((targets_CI - self.value_I).abs(), self.value_I.abs()) / self.off_I
        distances: list[float] = apart_CI.norm(dim=1).tolist()
        return distances


class Court:
    """Judges fits of one span.

    Args:
        frame: what is compared.
        fits: in its span.
    """

    def __init__(self, frame: Frame, fits: SparseFits) -> None:
        self.frame, self.fits = frame, fits

    def whole(self, fit: Fit, targets_NI: Tensor) -> list[tuple[int, Evidence]]:
        """The fits whose every entry equals the token's or 0, as far as rounding lets one tell."""
        off_NI = self._off(fit, targets_NI)
        kept_NI, zero_NI = parted(fit.values_NI, targets_NI, off_NI)
        found = (kept_NI | zero_NI).all(1).nonzero().flatten().tolist()
        return [
            (
                n,
                Evidence(
                    value_I=fit.values_NI[n],
                    target_I=targets_NI[n],
                    off_I=off_NI[n],
                    kept_I=kept_NI[n],
                    tells_I=targets_NI[n].abs() > 4 * off_NI[n],
                ),
            )
            for n in found
        ]

    def proves(self, evidence: Evidence, *, places: int) -> bool:
        """Whether no wrong token would fit so well by chance, and as many entries are dropped as is usual."""
        told, rate = evidence.agreeing + evidence.dropped, self.frame.dropped.rate
        if evidence.dropped > told * rate + _SPREAD * math.sqrt(told * rate * (1 - rate)) + 3:
            return False
        tokens = self.frame.model.marks * max(1, places)
        return evidence.chance(columns=len(self.fits.turn_KK), tokens=tokens) <= math.log(_CHANCE)

    def _off(self, fit: Fit, targets_NI: Tensor) -> Tensor:
        """How far an entry of a true vector may be from its value, in scales: rounding of gradient and input.

        Where the input moved between steps, as far as the fit itself says: what it claims is judged by that.
        """
        if self.frame.moving:
            return self.fits.nearness(fit.values_NI, targets_NI).expand_as(targets_NI)
        parts_NK = self.fits.coefficients(fit.values_NI)
        noise_NI = (parts_NK.square() @ self.frame.noise_IK.square().T).sqrt()
        eps = torch.finfo(self.frame.model.dtype).eps
        return (_OFF * noise_NI + _ROUNDINGS * eps * (targets_NI.abs() + 1)).clamp_max(_MOST_OFF)
