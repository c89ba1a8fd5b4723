"""What was done to a gradient or an update after it was computed, where that hides what training has left in it.

Entries that were set to 0, as by pruning, make zeros and ranks tell nothing of the batch; so do few levels. What moved
of weights is a difference of numbers of their type, unless something was done to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from textleak.inference.base import Seen, is_short, measured, per_cent, some_of
from textleak.inference.kind import grid_share, sent_as
from textleak.numerics import grid_step
from textleak.words import count_of

# Part of a matrix' entries that are exactly 0 without pruning: none, but for dropout in layers that were used once, and
# ReLU's dead units, which empty whole rows or columns (our choice). Below it nobody prunes.
_FEW_ZEROS = 0.02
# Different sizes of entries that int8 has at most; entries of a tensor that has more without it, and of an update that
# have to tell; matrices that are looked at (our choice).
_LEVELS, _ENTRIES, _LEAST, _LOOKED_AT = 127, 512, 256, 8
# Sizes are one that are so near each other, in units of the median: of a gradient's own 512 hundreds are left (our
# choice).
_ALIKE = 1e-3
# A move of so many steps of the weights' grid has more bits than a short type holds, but for a few by chance.
_LONG = 2.0**15
# An entry of a weight whose grid is so much finer than the usual move stays as it is by no rounding (our choice).
_FINER = 1e-3
# Part of an update's entries that are on the weights' grid, at least, where nothing was done to it (our choice;
# measured on minilm and bert-tiny: 0.98 and more).
_ON_GRID = 0.95


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
        return (self.share or 0.0) >= _FEW_ZEROS


@measured
def altered(seen: Seen) -> str | None:
    """What was done to it, in a sentence; None where nothing shows."""
    if zeroed(seen).pruned:
        return "Entries were set to 0, which hides it."
    few = _blurred_levels(seen)
    if few is not None and few_levels(few):
        return f"Entries have no more than {count_of(few, 'size')}, which hides it."
    if sent_as(seen).kind != "update":
        return None
    if _shortened(seen):
        return "All that moved has 16 bits, where a difference of such weights has more, which hides it."
    share = grid_share(seen)
    if share is not None and share < _ON_GRID:
        return (
            f"Only {per_cent(share)} of the entries, added to the weights, give numbers of their type: "
            "what was done to the update hides it."
        )
    return None


def _shortened(seen: Seen) -> bool:
    """Whether an update was rounded to a short type: entries that moved by many steps of the grid have few bits."""
    short = total = 0
    for moved_N, weights_N, dtype in seen.sampled():
        long_N = (weights_N != 0) & (moved_N.abs() >= _LONG * grid_step(weights_N, dtype))
        short += int(is_short(moved_N[long_N]).sum())
        total += int(long_N.sum())
    return total >= _LEAST and short >= _ON_GRID * total


def matrices_of(seen: Seen, *, least: int = _ENTRIES) -> list[tuple[str, Tensor]]:
    """The matrices of so many entries that moved, but for embeddings, whose rows are mostly 0."""
    return [
        (name, value)
        for name, value in seen.moved()
        if value.dim() == 2 and name not in seen.model.embedding_names and value.numel() >= least
    ]


@measured
def zeroed(seen: Seen) -> Zeroed:
    """Entries that are 0, beside whole rows and columns; of an update, where rounding can't have made them so.

    Where next to nothing is left beside these, of all entries.
    """
    inside, whole = [0, 0], [0, 0]
    gradient = sent_as(seen).kind == "gradient"
    for name, value in matrices_of(seen):
        tells = torch.ones_like(value, dtype=torch.bool)
        if not gradient:
            weights = seen.weights(name)
            if weights is None:
                continue
            usual = float(some_of(value[value != 0].abs())[0].median())
            tells = grid_step(weights, weights.dtype).to(value.device) <= _FINER * usual
        zero, inner = value == 0, tells & value.any(1)[:, None] & value.any(0)
        for counts, which in ((inside, inner), (whole, tells)):
            counts[0] += int((which & zero).sum())
            counts[1] += int(which.sum())
    zeros, total = inside
    if total < _LEAST <= whole[1] and whole[0] > (1 - _FEW_ZEROS) * whole[1]:
        zeros, total = whole
    return Zeroed(zeros=zeros, total=total if gradient or total >= _LEAST else 0)


@measured
def levels_of(seen: Seen) -> int | None:
    """The most different sizes that entries of a matrix have; None where no matrix tells, as of an update."""
    return max((len(torch.unique(sizes_N)) for sizes_N in _sizes(seen)), default=None)


def _blurred_levels(seen: Seen) -> int | None:
    """The same of some of their entries, where sizes are one that noise after rounding may have made of one."""
    some = [some_of(sizes_N)[0] for sizes_N in _sizes(seen)]
    steps = [torch.unique((sizes_N / (_ALIKE * sizes_N.median())).round()) for sizes_N in some]
    return max(map(len, steps), default=None)


def _sizes(seen: Seen) -> Iterator[Tensor]:
    """Those of the entries of a gradient's first matrices, but for 0; of an update none."""
    if sent_as(seen).kind == "gradient":
        for _, value in matrices_of(seen)[:_LOOKED_AT]:
            yield value[value != 0].abs()


def few_levels(count: int) -> bool:
    """Whether a matrix of so many different sizes was rounded to few."""
    return count <= _LEVELS
