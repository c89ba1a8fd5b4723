"""The learning rate."""

from __future__ import annotations

import dataclasses
import math

from textleak.inference.base import Seen, Told, measured
from textleak.inference.head import read_head
from textleak.inference.kind import sent_as
from textleak.inference.levels import levels_of
from textleak.inference.optimizer import first_step, optimizer_of
from textleak.inference.single import moves_of
from textleak.inference.steps import steps_of

WHAT = "learning rate"
# What people clip to: Hugging Face's Trainer, and nearly everyone else.
_CLIP = 1.0
# How near to a number of two figures a rate has to be to be one (our choice; a chance hit is one in 100).
_ROUND = 3e-4


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
    if head is None or steps_of(seen).count != 1:
        return Rate(
            rate=None,
            evidence="SGD's moves are rate times gradient: only one sentence's head, after one step, tells them apart.",
        )
    moved = [moves_of(seen, name) for name, _ in seen.moved()]
    norm = math.sqrt(sum(float(one[0].square().sum()) for one in moved if one is not None))
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


def _is_round(rate: float) -> bool:
    return abs(rate / float(f"{rate:.1e}") - 1) <= _ROUND


def ask(seen: Seen) -> Told:
    """The learning rate."""
    found = rate_of(seen)
    return Told(
        what=WHAT, value=None if found.rate is None else float(f"{found.rate:.4g}"), evidence=found.evidence
    )
