"""Entries that were set to 0 after a gradient was computed, as pruning does: its zeros tell nothing else then."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from textleak.inference.base import Seen, measured, some_of
from textleak.inference.kind import sent_as
from textleak.numerics import grid_step

# Part of a matrix' entries that are exactly 0 without pruning: none, but for dropout in layers that were used once, and
# ReLU's dead units, which empty whole rows or columns (our choice). Below it nobody prunes.
FEW_ZEROS = 0.02
# Entries that a matrix has at least, and that an update shows at least.
ENTRIES = 4096
# An entry of a weight whose grid is so much finer than the usual move stays as it is by no rounding (our choice).
_FINER = 1e-3
HIDDEN = "Entries were set to 0, and what would tell with them."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeroed:
    """How many of the entries that can tell are 0."""

    zeros: int
    total: int

    @property
    def share(self) -> float | None:
        """Which part of them; None where none can tell."""
        return self.zeros / self.total if self.total else None

    @property
    def pruned(self) -> bool:
        """Whether they are more than a gradient's own."""
        return (self.share or 0.0) >= FEW_ZEROS


def matrices_of(seen: Seen) -> list[tuple[str, Tensor]]:
    """The matrices that moved, but for embeddings, whose rows are mostly 0."""
    return [
        (name, value)
        for name, value in seen.moved()
        if value.dim() == 2 and name not in seen.model.embedding_names and value.numel() >= ENTRIES
    ]


@measured
def zeroed(seen: Seen) -> Zeroed:
    """Entries that are 0, beside whole rows and columns; of an update, where rounding can't have made them so."""
    zeros = total = 0
    gradient = sent_as(seen).kind == "gradient"
    for name, value in matrices_of(seen):
        inner = value.any(1)[:, None] & value.any(0)
        if not gradient:
            weights = seen.weights(name)
            if weights is None:
                continue
            usual = float(some_of(value[value != 0].abs())[0].median())
            inner &= grid_step(weights, weights.dtype).to(inner.device) <= _FINER * usual
        zeros += int((inner & (value == 0)).sum())
        total += int(inner.sum())
    return Zeroed(zeros=zeros, total=total if gradient or total >= ENTRIES else 0)
