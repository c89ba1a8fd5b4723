"""How strongly each pair of a position and a token is in a blurred update, by sparse Bayesian learning.

`pairs.pair_gradients` looks for the sparsest Δ that makes a gradient exactly; of a blurred one, false pairs then make
what no true ones do. Here that is noise, and each pair's part is drawn from a normal distribution whose width is
learned from all of its entries: most fall to 0 (MacKay 1992; Tipping 2001; for several measurements Wipf & Rao 2007).

Shapes: N pairs, R rank of the span, I and O the layers' input and output size.
"""

from __future__ import annotations

import torch

from textleak.exact.pairs import PairGradients, Pairs, whitened
from textleak.exact.remainder import LayerRemainder

# What is noise, as a part of the norm of all (our choice; measured on minilm after eight steps of SGD on mini-batches
# of eight sentences: of its 89 pairs 84 to 87 are among the 89 loudest from 1e-3 to 1e-2, 48 at 1e-4, 30 without it;
# after a step of AdamW on four sentences fewer, 14 of 41, which is enough to find them).
_NOISE = 3e-3
_ROUNDS = 150
# Part of a width that isn't told at least, so that a step of it stays finite.
_LEAST_TOLD = 1e-9


def likely_gradients(pairs: Pairs, left: LayerRemainder) -> PairGradients:
    """The Δ of all candidate pairs that make a blurred gradient most likely."""
    white = whitened(pairs, left)
    known_RN, wanted_RR = white.known_RN, white.wanted_RR
    rank, count = known_RN.shape
    noise = _NOISE**2 * float(wanted_RR.square().mean())
    noise_RR = noise * torch.eye(rank, dtype=known_RN.dtype, device=known_RN.device)
    part = float(wanted_RR.square().sum()) / (rank * count * float(known_RN.square().sum(0).mean()))
    widths_N = torch.full_like(known_RN[0], part)
    tiny = torch.finfo(known_RN.dtype).tiny
    for _ in range(_ROUNDS):
        spread_RR = noise_RR + (known_RN * widths_N) @ known_RN.T
        solved = torch.linalg.solve(spread_RR, torch.cat([wanted_RR, known_RN], 1))
        deltas_NR = widths_N[:, None] * (known_RN.T @ solved[:, :rank])
        told_N = widths_N * (known_RN * solved[:, rank:]).sum(0)
        widths_N = deltas_NR.square().sum(1) / rank / told_N.clamp_min(_LEAST_TOLD) + tiny
    return white.as_gradients(deltas_NR)
