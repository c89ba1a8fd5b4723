"""Which entries of a gradient are the largest: what `prune` and `topk` keep."""

from __future__ import annotations

import torch
from torch import Tensor


def keep_largest(value: Tensor, share: float) -> Tensor:
    """The tensor with all but a share of its entries set to 0, the largest magnitudes kept; at least one is."""
    kept = max(1, round(share * value.numel()))
    flat = value.flatten()
    where = flat.abs().topk(kept, sorted=False).indices
    return torch.zeros_like(flat).index_copy(0, where, flat[where]).view_as(value)
