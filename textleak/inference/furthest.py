"""How far Adam can move an entry in some steps: a bit more than the rate each, whatever its gradients were.

Step j moves an entry by rate · m̂/√v̂ (Kingma & Ba 2015, alg. 1). Over all gradients g₁ … g_N the sum is largest where
they grow by a little each step: 1.0007 rates a step for 2 steps, 1.0045 for 5. Of millions of entries some come near to
that, in every tensor alike, so that the moves end at one edge.
"""

from __future__ import annotations

import functools

import torch

from textleak.inference.base import Seen, measured
from textleak.inference.levels import BETAS
from textleak.inference.optimizer import first_step, optimizer_of
from textleak.inference.shrinking import decay_of
from textleak.numerics import exact, grid_step

MOST_STEPS = 6
"""Of more steps the edge is not told within 1 %: moves may end where all gradients are equal, or at the largest sum."""

# Entries that a tensor needs to be looked at, tensors, the part of them that end at the edge, and how near to it (our
# choice; measured on minilm after 2 to 5 steps: within 0.2 % in three of four).
_LEAST, _TENSORS, _AT_EDGE, _NEAR = 1000, 4, 0.4, 3e-3
# Part of a move that one step of the weights' grid may be (our choice).
_GRID = 1e-3


@measured
def furthest_of(seen: Seen) -> float | None:
    """The edge of the entries' moves beside decay, after several of Adam's steps; None where they have none."""
    decay = decay_of(seen)
    if optimizer_of(seen).name != "adamw" or first_step(seen) is not None:
        return None
    ends = []
    for name, value in seen.moved():
        weights = seen.weights(name)
        # A word that occurs in one step alone moves its row's entries equally far, at no edge.
        if weights is None or name in seen.model.embedding_names:
            continue
        before, sent = exact(weights).cpu(), exact(value).cpu()
        if decay is None and bool(before.any()):
            continue
        moved = (sent + (0.0 if decay is None else decay.product) * before).abs()
        grid = grid_step(torch.maximum(before.abs(), (before + sent).abs()), weights.dtype)
        told_N = moved[grid <= _GRID * moved]
        if len(told_N) >= _LEAST:
            ends.append(float(told_N.max()))
    at_edge = sum(end >= (1 - _NEAR) * max(ends) for end in ends)
    return max(ends) if at_edge >= max(_TENSORS, _AT_EDGE * len(ends)) else None


@functools.cache
def most_of(steps: int) -> float:
    """How far so many of Adam's steps move an entry at most, over the rate."""
    import numpy as np
    from scipy.optimize import minimize

    beta1, beta2 = BETAS

    def moved(logs: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        mean = square = total = 0.0
        for j, gradient in enumerate(np.exp([0.0, *logs]), 1):
            mean = beta1 * mean + (1 - beta1) * float(gradient)
            square = beta2 * square + (1 - beta2) * float(gradient) ** 2
            total += mean / (1 - beta1**j) / (square / (1 - beta2**j)) ** 0.5
        return -total

    return 1.0 if steps == 1 else -float(minimize(moved, np.zeros(steps - 1)).fun)
