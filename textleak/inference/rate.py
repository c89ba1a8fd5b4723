"""The learning rate."""

from __future__ import annotations

import dataclasses
import math

import torch

from textleak.inference.base import Seen, Told, Value, measured, roundest
from textleak.inference.furthest import MOST_STEPS, furthest_of, most_of
from textleak.inference.head import read_head
from textleak.inference.heads import read_heads
from textleak.inference.kind import sent_as
from textleak.inference.levels import levels_of
from textleak.inference.optimizer import first_step, optimizer_of
from textleak.inference.repeated import repeated_of
from textleak.inference.single import moves_of
from textleak.inference.steps import steps_of
from textleak.numerics import exact, grid_step

WHAT = "learning rate"
TIMES_CLIP, TIMES_LEFT, TIMES_STEPS = "rate × clipped norm", "rate × what clipping left", "rate × steps"
"""What is told in its place, where an update shows no more: the two can't be told apart."""
# How near to a number of two figures a rate has to be to be one (our choice; a chance hit is one in 100), and the
# chance at which one is believed that nothing else speaks for.
_ROUND, _CHANCE = 3e-4, 0.01
_CLIPPED = (
    "is a number of two figures: the rate times what gradients were clipped to, the rate itself if to 1."
)
# How far the furthest of all entries may be short of what Adam can do at most (our choice; measured on minilm after 3
# to 5 steps: 0.0001 to 0.0012), and beyond it by rounding.
_SHORT_OF, _BEYOND = 2e-3, 1e-4
# What clipping leaves of the norm it clips to: torch's divides by norm + 1e-6, and sums in float32.
_OF_CLIPPING = 2e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """The learning rate, and what is known of SGD's where it isn't; None for what can't be told.

    Attributes:
        rate: the learning rate.
        evidence: what it rests on.
        times_clip: the rate times the norm that gradients were clipped to.
        as_if: the rate at which the gradient as it was, clipped or not, makes the same step.
        times_steps: the sum of all steps' rates, where Adam took several.
    """

    rate: float | None
    evidence: str
    times_clip: float | None = None
    as_if: float | None = None
    times_steps: float | None = None


@measured
def rate_of(seen: Seen) -> Rate:
    """The learning rate of the optimizer, where one was at work."""
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
    return _of_several(seen)


def _of_several(seen: Seen) -> Rate:
    """By how far Adam's steps moved any entry; each alone, where weights shrank as by so many equal steps."""
    edge, repeated = furthest_of(seen), repeated_of(seen)
    if edge is None:
        return Rate(
            rate=None, evidence="Neither a cluster of entries nor an edge of their moves shows the rate."
        )
    figure = f"Adam's steps moved entries by up to {edge:.4g}, in most tensors alike"
    if repeated is None:
        return Rate(
            rate=None,
            times_steps=edge,
            evidence=f"{figure}: the rates of all steps together (to 1 % for up to {MOST_STEPS} steps); how many there "
            "were doesn't show.",
        )
    if repeated.steps > MOST_STEPS:
        return Rate(
            rate=None, evidence=f"{figure}, which doesn't tell the rate of {repeated.steps} steps to 1 %."
        )
    low, high = edge / most_of(repeated.steps), edge / repeated.steps
    rate = roundest((1 - _SHORT_OF) * low, (1 + _BEYOND) * high)
    return Rate(
        rate=rate,
        evidence=f"{figure}, which {repeated.steps} equal steps do at a rate between {low:.5g} and {high:.5g}.",
    )


def _of_sgd(seen: Seen) -> Rate:
    head = read_head(seen) or read_heads(seen)
    steps = steps_of(seen).count
    if steps != 1:
        said = (
            "it isn't known whether this is one step's"
            if steps is None
            else "several steps' can't be told apart without the text"
        )
        return Rate(rate=None, evidence=f"SGD's moves are rate times gradient, and {said}.")
    square, rounding = _squares(seen)
    norm = math.sqrt(square)
    if head is None:
        return _of_clipping(square, rounding)
    figure = (
        f"The head's own prediction makes the scale {head.scale:.5g}, and the update's norm is {norm:.5g}"
    )
    round_ = [is_round(head.scale), is_round(norm)]
    if round_ == [True, False]:
        return Rate(
            rate=head.scale,
            evidence=f"{figure}: of both only the scale is a number of two figures, so no clipping.",
        )
    if round_ == [False, True]:
        evidence = f"{figure}: of both only the norm {_CLIPPED}"
        return Rate(rate=None, times_clip=norm, as_if=head.scale, evidence=evidence)
    evidence = f"{figure}: the rate without clipping, or the rate times what was clipped to."
    return Rate(rate=None, as_if=head.scale, evidence=evidence)


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
    """By the norm alone: a clipped gradient's is what it was clipped to, which people round as they round the rate."""
    low = math.sqrt(max(0.0, square - 2 * rounding)) * (1 - _OF_CLIPPING)
    high = math.sqrt(square + rounding) * (1 + _OF_CLIPPING)
    near = float(f"{(low + high) / 2:.1e}")
    apart = 10.0 ** (math.floor(math.log10(near)) - 1) if near > 0 else math.inf
    figure = f"The norm of the update is {math.sqrt(square):.5g}"
    if not near or not low <= near <= high or (high - low) / apart > _CHANCE:
        return Rate(
            rate=None,
            evidence=f"{figure}, not clearly a number of two figures, as clipped gradients make it. SGD's moves are "
            "rate times gradient: only one sentence's head tells them apart.",
        )
    return Rate(
        rate=None,
        times_clip=near,
        evidence=f"{figure}, up to rounding {near:g}, which {_CLIPPED} By chance one norm in "
        f"{apart / (high - low):,.0f} is.",
    )


def is_round(rate: float) -> bool:
    """Whether a rate is a number of two figures, as people set it."""
    return abs(rate / float(f"{rate:.1e}") - 1) <= _ROUND


def ask(seen: Seen) -> Told | None:
    """The learning rate, or what it shows up multiplied by; None of a gradient."""
    if sent_as(seen).kind == "gradient":
        return None
    found = rate_of(seen)
    value: Value = None
    if found.rate is not None:
        value = float(f"{found.rate:.4g}")
    elif found.times_clip is not None:
        value = {TIMES_CLIP: float(f"{found.times_clip:.4g}")}
    elif found.as_if is not None:
        value = {TIMES_LEFT: float(f"{found.as_if:.4g}")}
    elif found.times_steps is not None:
        value = {TIMES_STEPS: float(f"{found.times_steps:.4g}")}
    return Told(what=WHAT, value=value, evidence=found.evidence)
