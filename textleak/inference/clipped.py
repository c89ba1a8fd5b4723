"""Clipping: a gradient whose norm over all tensors is a round number was scaled down to it."""

from __future__ import annotations

import math

from textleak.inference.base import Seen, Told
from textleak.inference.kind import sent_as
from textleak.inference.optimizer import optimizer_of
from textleak.inference.rate import rate_of
from textleak.numerics import exact

WHAT = "clipped norm"
# How near to a number of one figure the norm has to be: clip_grad_norm_ divides by norm + 1e-6, and tensors are summed
# in float32. By chance one in 10,000 norms is (our choice).
_NEAR = 5e-6


def norm_of(seen: Seen) -> float:
    """Norm of all that was sent."""
    return math.sqrt(sum(float(exact(value).square().sum()) for value in seen.sent.values()))


def ask(seen: Seen) -> Told:
    """The norm that a gradient was clipped to."""
    norm = norm_of(seen)
    if sent_as(seen).kind == "gradient":
        figure = f"The norm of all that was sent is {norm:.7g}"
        near = float(f"{norm:.0e}") if norm else 0.0
        if norm and abs(norm / near - 1) <= _NEAR:
            return Told(what=WHAT, value=near, evidence=f"{figure}: clipped to {near:g}.")
        return Told(
            what=WHAT,
            value=None,
            evidence=f"{figure}, no round number: not clipped to one, or not all was sent.",
        )
    product = rate_of(seen).times_clip
    if product is not None:
        return Told(
            what=WHAT,
            value=None,
            evidence=f"It was clipped: the norm times the learning rate is {product:.4g}.",
        )
    optimizer = optimizer_of(seen).name
    if optimizer == "sgd":
        hidden = "Nothing shows a clipped step; several, or one of unknown rate, could have been clipped."
        rate = rate_of(seen)
        if rate.rate is not None:
            hidden = f"The norm is {norm / rate.rate:.5g} times the rate, no number that one clips to."
    elif optimizer == "adamw":
        hidden = "Adam's steps have the size of the rate, whatever a gradient's norm was; only the text's own tells."
    else:
        hidden = "Which optimizer took the step can't be told, so its gradient's norm can't either."
    return Told(what=WHAT, value=None, evidence=hidden)
