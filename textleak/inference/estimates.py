"""The gradient behind what was sent, as far as it can be had back, with each entry's error.

SGD's step is the gradient times the rate. Adam's first step r = |g| / (|g| + ε) is undone by |g| = ε r / (1 − r): the
weights' grid lets 1 − r be told where the gradient isn't far above ε.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.inference.base import Seen
from textleak.inference.kind import sent_as
from textleak.inference.optimizer import first_step, optimizer_of
from textleak.inference.shrinking import decay_of
from textleak.numerics import exact, grid_step

ADAM_EPS = 1e-8
"""What torch's and Hugging Face's Adam add to the denominator by default."""

# Roundings of a move in Adam's own arithmetic: a square, a root, a sum, a quotient and a product.
_ARITHMETIC = 2.0
# How far the largest move may be from a rate of two figures that people set for that rate to stand (our choice), and by
# which part the moves of large gradients are below it in float32 (by torch 2.13: 2.2e-8 to 4.8e-8). The largest of many
# is 1e-7 to 2e-7 above it by rounding alone, which would bend every gradient alike.
_SET, _BELOW = 1e-6, 3.5e-8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A gradient, up to one factor of all tensors.

    Attributes:
        value: float64.
        error: standard deviation of each entry by the weights' grid; None for a gradient that was sent itself.
        steps: of the weights' grid, in units of the value; None likewise, and of Adam's.
    """

    value: Tensor
    error: Tensor | None
    steps: Tensor | None


def estimate_of(seen: Seen, name: str) -> Estimate | None:
    """The gradient of one parameter; None where it can't be had back."""
    sent, sent_kind = exact(seen.sent[name]).cpu(), sent_as(seen).kind
    if sent_kind == "gradient":
        return Estimate(value=sent, error=None, steps=None)
    weights = seen.weights(name)
    optimizer = optimizer_of(seen).name
    if sent_kind is None or weights is None or optimizer is None:
        return None
    before = exact(weights).cpu()
    first, decay = first_step(seen), decay_of(seen)
    product = first.product if first is not None else 0.0 if decay is None else decay.product
    left = sent + product * before
    steps = grid_step(torch.maximum(before.abs(), (before + sent).abs()), weights.dtype)
    error = steps / 12**0.5 * (2**0.5 if product and optimizer == "adamw" else 1.0)  # shrinking rounds too
    if optimizer == "sgd":
        return Estimate(value=-left, error=_with_own(error, left, weights.dtype), steps=steps)
    if first is None:
        return None
    rate = _most(first.rate)
    off = (error / rate).clamp_min(_ARITHMETIC * torch.finfo(weights.dtype).eps)
    below = (1 - left.abs() / rate).clamp_min(off)
    size = ADAM_EPS * (left.abs() / rate) / below
    return Estimate(
        value=-left.sign() * size,
        error=_with_own(ADAM_EPS / below.square() * off, size, weights.dtype),
        steps=None,
    )


def _most(rate: float) -> float:
    """How far Adam's first step moves an entry of a large gradient, by the largest move that was seen."""
    set_ = float(f"{rate:.1e}")
    return set_ * (1 - _BELOW) if abs(rate / set_ - 1) <= _SET else rate


def _with_own(error: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """With the rounding of the sum over tokens that a gradient's entry is: of the size of its row's and column's."""
    if value.dim() != 2 or not bool(value.any()):
        return error
    squares = value.square()
    usual = (squares.mean(0, keepdim=True) * squares.mean(1, keepdim=True) / squares.mean()).sqrt()
    return (error.square() + (torch.finfo(dtype).eps * usual).square()).sqrt()
