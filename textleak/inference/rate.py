"""The learning rate."""

from __future__ import annotations

import dataclasses
import math

import torch

from textleak.inference.base import Seen, Told, measured
from textleak.inference.head import read_head
from textleak.inference.kind import sent_as
from textleak.inference.levels import levels_of
from textleak.inference.optimizer import first_step, optimizer_of
from textleak.inference.single import moves_of
from textleak.inference.steps import steps_of
from textleak.numerics import exact, grid_step

WHAT = "learning rate"
# What people clip to: Hugging Face's Trainer, and nearly everyone else.
_CLIP = 1.0
# How near to a number of two figures a rate has to be to be one (our choice; a chance hit is one in 100), and the
# chance at which one is believed that nothing else speaks for.
_ROUND, _CHANCE = 3e-4, 0.01
# What clipping leaves of the norm it clips to: torch's divides by norm + 1e-6, and sums in float32.
_OF_CLIPPING = 2e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """The learning rate, and the norm that SGD's gradient was clipped to; None where they can't be told."""

    rate: float | None
    evidence: str
    clip: float | None = None


@measured
def rate_of(seen: Seen) -> Rate:
    """The learning rate of the optimizer."""
    if sent_as(seen).kind == "gradient":
        return Rate(rate=None, evidence="A gradient was sent: no rate is in it.")
    first, levels = first_step(seen), levels_of(seen)
    if first is not None:
        return Rate(
            rate=first.rate,
            evidence=f"Adam's first step moves entries by the rate: {first.rate:.5g}, which no entry exceeds.",
        )
    if levels is not None:
        return Rate(rate=levels.rate, evidence=levels.evidence)
    if optimizer_of(seen).name == "sgd":
        return _of_sgd(seen)
    return Rate(rate=None, evidence="No cluster of entries shows the rate.")


def _of_sgd(seen: Seen) -> Rate:
    head = read_head(seen)
    if steps_of(seen).count != 1:
        return Rate(
            rate=None, evidence="SGD's moves are rate times gradient: several steps' can't be told apart."
        )
    square, rounding = _squares(seen)
    norm = math.sqrt(square)
    if head is None:
        return _of_clipping(square, rounding)
    unclipped, clipped = head.scale, norm / _CLIP
    figure = f"The head's own prediction makes the scale {unclipped:.5g}, and the update's norm is {norm:.5g}"
    if norm / unclipped <= _CLIP * (1 - _ROUND):
        return Rate(rate=unclipped, evidence=f"{figure}: a gradient too small to be clipped to {_CLIP:g}.")
    round_ = [_is_round(unclipped), _is_round(clipped)]
    if round_ == [True, False]:
        return Rate(
            rate=unclipped,
            evidence=f"{figure}: of both only the scale is a rate of two figures, so no clipping.",
        )
    if round_ == [False, True]:
        return Rate(
            rate=clipped,
            clip=_CLIP,
            evidence=f"{figure}: of both only the norm is a rate of two figures, so it was clipped to {_CLIP:g}.",
        )
    return Rate(rate=None, evidence=f"{figure}: the rate without clipping, or with clipping to {_CLIP:g}.")


def _squares(seen: Seen) -> tuple[float, float]:
    """The squared norm of what moved beside decay, and what rounding of the weights has added to it."""
    square = rounding = 0.0
    for name, value in seen.moved():
        found, weights = moves_of(seen, name), seen.weights(name)
        if found is None or weights is None:
            continue
        square += float(found[0].square().sum())
        before, moved = exact(weights).cpu(), exact(value).cpu()
        steps = grid_step(torch.maximum(before.abs(), (before + moved).abs()), weights.dtype)
        rounding += float((steps * (moved != 0)).square().sum()) / 12
    return square, rounding


def _of_clipping(square: float, rounding: float) -> Rate:
    """By the norm alone: a clipped gradient's is the clip, so the update's is the rate, which people round."""
    low = math.sqrt(max(0.0, square - 2 * rounding)) * (1 - _OF_CLIPPING) / _CLIP
    high = math.sqrt(square + rounding) * (1 + _OF_CLIPPING) / _CLIP
    near = float(f"{(low + high) / 2:.1e}")
    apart = 10.0 ** (math.floor(math.log10(near)) - 1) if near > 0 else math.inf
    figure = f"The norm of the update is {math.sqrt(square):.5g}"
    if not low <= near <= high or (high - low) / apart > _CHANCE:
        return Rate(
            rate=None,
            evidence=f"{figure}, not clearly a number of two figures, as a gradient clipped to {_CLIP:g} makes it. "
            "SGD's moves are rate times gradient: beside that only one sentence's head tells them apart.",
        )
    return Rate(
        rate=near,
        clip=_CLIP,
        evidence=f"{figure}, which is {near:g} up to rounding: a rate of two figures, times a gradient clipped to "
        f"{_CLIP:g}. By chance a norm is so near to one in {apart / (high - low):,.0f} cases.",
    )


def _is_round(rate: float) -> bool:
    return abs(rate / float(f"{rate:.1e}") - 1) <= _ROUND


def ask(seen: Seen) -> Told:
    """The learning rate."""
    found = rate_of(seen)
    return Told(
        what=WHAT, value=None if found.rate is None else float(f"{found.rate:.4g}"), evidence=found.evidence
    )
