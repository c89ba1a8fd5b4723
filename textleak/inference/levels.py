"""Several steps of Adam: a word that occurs in one step alone moves by the rate times a number that step decides.

Its row's gradient is g in step k and 0 in the others, so in step j ≥ k Adam moves it by rate · s · m / √v with
m = β₁^(j−k) (1−β₁) / (1−β₁^j) and v = β₂^(j−k) (1−β₂) / (1−β₂^j), whatever g is (Kingma & Ba 2015, alg. 1). The sums
over the steps make as many levels as there are steps with such words.
"""

from __future__ import annotations

import dataclasses

import torch

from textleak.inference.base import Seen, measured
from textleak.inference.kind import sent_as
from textleak.inference.optimizer import first_step, optimizer_of
from textleak.inference.shrinking import decay_of
from textleak.inference.vocabulary import words_of
from textleak.numerics import exact

BETAS = (0.9, 0.999)
"""Adam's, as torch and Hugging Face set them by default."""

_MOST_STEPS = 16
# Part of a row's entries within so much of its level; levels nearer than the third are one; and how far each may be
# from what one rate makes of it (our choice; measured on bert-tiny: 3e-4 within a row, 1e-4 between levels).
_SHARE, _WITHIN, _APART, _OFF = 0.8, 1e-3, 0.02, 2e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Levels:
    """What the levels tell."""

    rate: float
    steps: int
    evidence: str


@measured
def levels_of(seen: Seen) -> Levels | None:
    """Rate and number of steps, where every step has words of its own and the rate stays the same; None otherwise."""
    if sent_as(seen).kind != "update" or optimizer_of(seen).name != "adamw" or first_step(seen) is not None:
        return None
    found = _found(seen)
    count = len(found)
    if not 2 <= count <= _MOST_STEPS:
        return None
    rates = [level / wanted for level, wanted in zip(found, _expected(count), strict=True)]
    rate = sum(rates) / count
    if max(abs(one / rate - 1) for one in rates) > _OFF:
        return None
    listed = ", ".join(f"{level:.4g}" for level in found)
    return Levels(
        rate=rate,
        steps=count,
        evidence=f"Words of one step alone moved by {listed}: what {count} steps of Adam at {rate:.4g} make of them.",
    )


def _expected(count: int) -> list[float]:
    """How far a word of each step alone moves, over the rate; the first step's is largest."""
    beta1, beta2 = BETAS
    return [
        sum(
            (beta1 ** (j - k) * (1 - beta1) / (1 - beta1**j))
            / (beta2 ** (j - k) * (1 - beta2) / (1 - beta2**j)) ** 0.5
            for j in range(k, count + 1)
        )
        for k in range(1, count + 1)
    ]


def _found(seen: Seen) -> list[float]:
    """The levels of rows whose entries all moved equally far, descending."""
    words, decay = words_of(seen).rows, decay_of(seen)
    table = seen.model.word_embedding.weight
    name = next((name for name, parameter in seen.model.parameters.items() if parameter is table), "")
    weights = seen.weights(name) if name in seen.sent else None
    if not words or decay is None or weights is None:
        return []
    before_RE, moved_RE = (
        exact(table_VE[torch.tensor(words, device=table_VE.device)]).cpu()
        for table_VE in (weights, seen.sent[name])
    )
    sizes_RE = (moved_RE + decay.product * before_RE).abs()
    level_R = sizes_RE.median(1).values
    sharp_R = ((sizes_RE / level_R[:, None] - 1).abs() <= _WITHIN).double().mean(1) >= _SHARE
    levels: list[list[float]] = []
    for level in sorted(level_R[sharp_R].tolist(), reverse=True):
        if levels and level > (1 - _APART) * levels[-1][0]:
            levels[-1].append(level)
        else:
            levels.append([level])
    return [sum(group) / len(group) for group in levels]
