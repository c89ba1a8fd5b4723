"""The client's procedure as `--client` takes it, where all of it can be told."""

from __future__ import annotations

import torch

from textleak.inference.adapters import adapters_of
from textleak.inference.base import Seen
from textleak.inference.decay import ask as decay_ask
from textleak.inference.defended import changed
from textleak.inference.dropout import dropout_of
from textleak.inference.kind import sent_as
from textleak.inference.optimizer import optimizer_of
from textleak.inference.precision import grids_of
from textleak.inference.rate import rate_of
from textleak.inference.shrinking import decay_of
from textleak.inference.steps import steps_of


def client_of(seen: Seen) -> tuple[str, ...] | None:
    """Kinds in the order in which they compose; None where what was sent, or how it was made, can't be told.

    Dropout that can't be told counts as on where the model has any, which is how people train.
    """
    sent = sent_as(seen).kind
    if sent is None:
        return None
    hidden = changed(seen) is not None
    parts = [] if not hidden and dropout_of(seen).on is False else ["train-mode"]
    if sent == "gradient" and _autocast(seen):
        parts.append("autocast")
    adapters = adapters_of(seen)
    if adapters.ranks:
        if adapters.rank is None:
            return None
        parts.append(f"lora:rank={adapters.rank},targets={'/'.join(adapters.targets)}")
    if sent == "gradient":
        return tuple(parts)
    optimizer, found, steps = optimizer_of(seen).name, rate_of(seen), steps_of(seen).count
    # Half the rate on a gradient clipped to twice the norm is the same step: it is told as if clipped to 1.
    rate = found.rate or found.as_if or found.times_clip
    if hidden or optimizer is None or rate is None or steps != 1:
        return None
    rounded = float(f"{rate:.4g}")
    spec = f"fedavg:optimizer={optimizer},lr={rounded:g},steps=1"
    told = decay_ask(seen) if found.rate else None
    decay = told.value if told and isinstance(told.value, float) else _decay(seen, rounded)
    spec += f",weight_decay={decay:.9g}" if decay else ""
    return (*parts, spec + (",max_grad_norm=1" if rate == found.times_clip else ""))


def _autocast(seen: Seen) -> bool:
    """Whether entries lie on the grid of bfloat16 where they aren't stored in it: a file's own type tells nothing."""
    grids = grids_of(seen).grids
    return any(grid == "bf16" and seen.sent[name].dtype is not torch.bfloat16 for name, grid in grids.items())


def _decay(seen: Seen, rate: float) -> float:
    """The decay at which weights shrink at a rate as they did: exactly, as all of a weight is beside its gradient."""
    decay = decay_of(seen)
    return 0.0 if decay is None or decay.product <= decay.half else decay.product / rate
