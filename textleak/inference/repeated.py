"""How often weights that nothing else moved were shrunk: decoupled decay multiplies them by one number a step, and each
step rounds what comes of it, so that only the right number of steps gives every last bit.

Shapes: V rows of a table, E columns, R rows that are looked at.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.inference.base import Seen, measured
from textleak.inference.shrinking import decay_of, off_the_grid
from textleak.numerics import exact

# Rows that are looked at, and the numbers of steps that are tried (our choice).
_ROWS, _MOST_STEPS = 64, 32
# Part of the entries that come out to the last bit with the right number of steps, and at most with a wrong one (our
# choice; measured on minilm and bert-tiny: all of them, and half at most).
_ALL, _WRONG = 0.999, 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Repeated:
    """A number of equal steps.

    Attributes:
        steps: how many.
        product: of rate and weight decay, of each step.
        half: how far that may be off, as 1 − product is rounded to the weights' type.
        evidence: what it rests on.
    """

    steps: int
    product: float
    half: float
    evidence: str


@measured
def repeated_of(seen: Seen) -> Repeated | None:
    """The number of steps, where all shrank weights alike; None where weights don't shrink, or not alike."""
    decay = decay_of(seen)
    if decay is None or decay.product <= decay.half:
        return None
    weights = seen.weights(decay.table)
    if weights is None or weights.dtype != torch.float32:
        return None
    before_VE, sent_VE = weights.detach().cpu(), seen.sent[decay.table].detach().cpu()
    step = max(1, len(before_VE) // (4 * _ROWS)) | 1
    before_RE, sent_RE = before_VE[::step], sent_VE[::step]
    off_RE = off_the_grid(exact(sent_RE), exact(before_RE), decay.product, weights.dtype)
    still_R = (off_RE.abs().amax(1) <= decay.off) & before_RE.any(1)
    before_RE, sent_RE = before_RE[still_R][:_ROWS], sent_RE[still_R][:_ROWS]
    if not len(before_RE):
        return None
    # The difference of two near numbers is exact, so the sum is what the weights were afterwards.
    shares = _shares(before_RE, before_RE + sent_RE, decay.product)
    ranked = sorted(shares, key=lambda one: -shares[one])
    best, other = ranked[0], max((shares[one] for one in ranked if one[0] != ranked[0][0]), default=0.0)
    if shares[best] < _ALL or other > _WRONG:
        return None
    steps, units = best
    unit = torch.finfo(weights.dtype).eps / 2
    return Repeated(
        steps=steps,
        product=units * unit,
        half=unit / 2,
        evidence=f"{before_RE.numel():,} entries of {decay.table} that only shrank are to the last bit what {steps} "
        f"equal steps make of them; another number of steps explains {other:.0%} at most.",
    )


def _shares(before_RE: Tensor, after_RE: Tensor, product: float) -> dict[tuple[int, int], float]:
    """The part of the entries that come out, by number of steps and each step's product in units below 1."""
    unit = torch.finfo(before_RE.dtype).eps / 2
    shares: dict[tuple[int, int], float] = {}
    for steps in range(1, _MOST_STEPS + 1):
        middle = round((1 - (1 - product) ** (1 / steps)) / unit)
        for units in range(max(1, middle - 1), middle + 2):
            shrunk_RE = before_RE
            for _ in range(steps):
                shrunk_RE = shrunk_RE * (1 - units * unit)
            shares[steps, units] = float((shrunk_RE == after_RE).double().mean())
    return shares
