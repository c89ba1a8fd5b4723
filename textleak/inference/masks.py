"""Masks of dropout in the first layer's inputs: vectors of the span that are a token's in most entries and else 0.

Found as in `exact.dropout.fits`, by least absolute deviations and then by counting, but with room for rounding of the
weights: it takes the share of the entries that are 0 alone, not a proof of the token.

Shapes: N fits, I the layer's input size, R rank of the span.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textleak.inference.base import Seen, measured
from textleak.inference.inputs import first_inputs
from textleak.inference.pairs import clean_inputs, pairs_of
from textleak.numerics import least_squares

# Pairs of a token and a position that are tried: those whose input lies most in the span (our choice).
_TRIED = 64
# Rounds of fitting; what an entry may be off without counting as off, first and last, in its usual size (our choice).
_ROUNDS, _FIRST, _LAST = 24, 1.0, 0.02
# Entries of at least this size tell; near a value is within this part of it; of all that tell so many have to be near
# their own value or 0: a wrong pair's are with a chance of about a half each. And dropout leaves half at least.
_TELLS, _WITHIN, _EXPLAINED, _LEFT = 0.5, 0.2, 0.97, 0.5
_BEYOND = 64


@measured
def masked(seen: Seen) -> tuple[int, int]:
    """Entries that are 0 in dropped inputs that could be found, and how many were looked at."""
    span, pairs, inputs = first_inputs(seen), pairs_of(seen), clean_inputs(seen)
    if span is None or pairs is None or inputs is None or pairs.inside or span.down_AI is not None:
        return 0, 0
    scaled_NI = inputs * span.scale_I
    usual_I = scaled_NI.square().mean(0).sqrt()
    targets_NI = scaled_NI / usual_I
    basis_IR, _ = torch.linalg.qr((span.basis_RI / usual_I).T)
    near_N = (targets_NI @ basis_IR).square().sum(1) / targets_NI.square().sum(1)
    targets_NI = targets_NI[near_N.topk(min(_TRIED, len(near_N))).indices]
    values_NI = _fitted(targets_NI, basis_IR)
    tells_NI = targets_NI.abs() >= _TELLS
    own_NI = tells_NI & ((values_NI - targets_NI).abs() <= _WITHIN * targets_NI.abs())
    zero_NI = tells_NI & (values_NI.abs() <= _WITHIN * targets_NI.abs())
    told_N = tells_NI.sum(1)
    found_N = ((own_NI | zero_NI).sum(1) >= _EXPLAINED * told_N) & (own_NI.sum(1) >= _LEFT * told_N)
    found_N &= told_N >= basis_IR.shape[1] + _BEYOND
    return int(zero_NI[found_N].sum()), int((own_NI | zero_NI)[found_N].sum())


def _fitted(targets_NI: Tensor, basis_IR: Tensor) -> Tensor:
    """Vectors of the span that are off their targets in few entries, (N, I)."""
    weights_NI = torch.ones_like(targets_NI)
    values_NI = targets_NI
    for round_ in range(_ROUNDS):
        weighted_NRI = basis_IR.T * weights_NI[:, None]
        parts_NR1 = least_squares(weighted_NRI @ basis_IR, weighted_NRI @ targets_NI[..., None])
        values_NI = parts_NR1[..., 0] @ basis_IR.T
        off = max(_LAST, _FIRST * 0.5 ** (round_ / 2))
        apart_NI = (values_NI - targets_NI).square() + off**2
        weights_NI = apart_NI.rsqrt() if round_ < _ROUNDS // 2 else 1 / apart_NI
    return values_NI
