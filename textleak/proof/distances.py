"""How far a gradient is from the shared one, in float64, as far as the client's defenses let that be told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from textleak.models.gradient import plainly_apart
from textleak.numerics import exact
from textleak.shared.effects import nearest_accepted, of_batch
from textleak.shared.gradient import SharedGradient

Gradient = Mapping[str, Tensor]
"""By parameter name."""


def distance_to(shared: SharedGradient, own: Gradient) -> float:
    """Relative distance of a gradient from the nearest one that the defenses turn into the shared one."""
    return relative(*apart(shared, own))


def apart(shared: SharedGradient, own: Gradient) -> tuple[float, float]:
    """The nearest gradient to `own` that the defenses turn into the shared one: its distance, and its norm."""
    effects = of_batch(shared.seen_effects)
    if not effects:
        return plainly_apart(shared.gradients, own)
    device = next(iter(own.values())).device
    full = {
        name: exact(own[name]) if name in own else torch.zeros_like(exact(gradient), device=device)
        for name, gradient in shared.gradients.items()
    }
    nearest = nearest_accepted(full, shared.gradients, effects)
    squared_distance = sum(float((nearest[name] - full[name]).square().sum()) for name in nearest)
    squared_norm = sum(float(value.square().sum()) for value in nearest.values())
    return squared_distance**0.5, squared_norm**0.5


def norm_of(gradient: Gradient) -> float:
    """The norm of all tensors together, in float64."""
    return math.hypot(*(float(exact(value).norm()) for value in gradient.values()))


def off_direction(seen: Gradient, own: Gradient, *, as_one: bool) -> float:
    """How far tensors are from a gradient's direction, whatever it was scaled by: at most their distance from it.

    Args:
        seen: by name; those of `own`.
        own: float64.
        as_one: whether one factor scaled all of them; else each tensor may have its own.
    """
    groups = [list(own)] if as_one else [[name] for name in own]
    return math.hypot(*(_off(seen, own, names) for names in groups))


def _off(seen: Gradient, own: Gradient, names: Sequence[str]) -> float:
    """The norm of what some tensors have across their own direction."""
    pairs = [(exact(seen[name]).to(own[name].device), own[name]) for name in names]
    squared = sum(float(mine.square().sum()) for _, mine in pairs)
    factor = sum(float((theirs * mine).sum()) for theirs, mine in pairs) / squared if squared else 0.0
    return math.hypot(*(float((theirs - factor * mine).norm()) for theirs, mine in pairs))


def relative(distance: float, norm: float) -> float:
    """A distance as a share of a norm; infinite where there is none."""
    return distance / norm if norm else math.inf
