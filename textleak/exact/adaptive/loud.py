"""How strongly each pair of a position and a token is in a blurred update, by sparse Bayesian learning.

`pairs.pair_gradients` looks for the sparsest Δ that makes a gradient exactly; of a blurred one, false pairs then make
what no true ones do. Here that is noise, and each pair's part is drawn from a normal distribution whose width is
learned from all of its entries: most fall to 0 (MacKay 1992; Tipping 2001; for several measurements Wipf & Rao 2007).

Shapes: N pairs, R rank of the span, I and O the layers' input and output size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from textleak.exact.pairs import PairGradients, Pairs, Whitened, whitened
from textleak.exact.remainder import LayerRemainder

# What is noise, as a part of the norm of all (our choice; measured on minilm after eight steps of SGD on mini-batches
# of eight sentences: of its 89 pairs 84 to 87 are among the 89 loudest from 1e-3 to 1e-2, 48 at 1e-4, 30 without it).
_NOISE = 3e-3
# What is tried where a fit filled in what bounds left open (our choice; measured on minilm after a step of AdamW on
# four sentences: of its 53 pairs 10 are among the 53 loudest at 3e-3 to 3e-2, 49 at 0.1, 45 at 0.3, the likeliest).
_FILLED_IN = (0.03, 0.1, 0.3)
_ROUNDS = 150
# Part of a width that isn't told at least, so that a step of it stays finite.
_LEAST_TOLD = 1e-9


def likely_gradients(pairs: Pairs, left: LayerRemainder, *, filled_in: bool = False) -> PairGradients:
    """The Δ of all candidate pairs that make a blurred gradient most likely.

    Args:
        pairs: the candidates.
        left: the gradient.
        filled_in: whether a fit told what bounds left open of it: how much of it is noise is then looked for too.
    """
    white = whitened(pairs, left)
    _, deltas_NR = max(
        (_likely(white, noise) for noise in (_FILLED_IN if filled_in else (_NOISE,))), key=lambda one: one[0]
    )
    return white.as_gradients(deltas_NR)


def _likely(white: Whitened, part_of_all: float) -> tuple[float, Tensor]:
    """The logarithm of how likely the gradient is with so much noise, up to a constant, and the pairs' Δ (N, R)."""
    known_RN, wanted_RR = white.known_RN, white.wanted_RR
    rank, count = known_RN.shape
    noise = part_of_all**2 * float(wanted_RR.square().mean())
    noise_RR = noise * torch.eye(rank, dtype=known_RN.dtype, device=known_RN.device)
    part = float(wanted_RR.square().sum()) / (rank * count * float(known_RN.square().sum(0).mean()))
    widths_N = torch.full_like(known_RN[0], part)
    tiny = torch.finfo(known_RN.dtype).tiny
    for _ in range(_ROUNDS):
        spread_RR = noise_RR + (known_RN * widths_N) @ known_RN.T
        solved = torch.linalg.solve(spread_RR, torch.cat([wanted_RR, known_RN], 1))
        likely = -rank * torch.linalg.slogdet(spread_RR).logabsdet - (wanted_RR * solved[:, :rank]).sum()
        deltas_NR = widths_N[:, None] * (known_RN.T @ solved[:, :rank])
        told_N = widths_N * (known_RN * solved[:, rank:]).sum(0)
        widths_N = deltas_NR.square().sum(1) / rank / told_N.clamp_min(_LEAST_TOLD) + tiny
    return float(likely), deltas_NR
