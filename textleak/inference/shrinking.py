"""How all weights shrink: some show it, as nothing else moves them.

These are rows of the embeddings that nobody looked up, and LoRA's A as long as B is 0, which makes its gradient 0.

Shapes: V rows of a table, E columns, R rows that were looked at.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.inference.base import Seen, measured
from textleak.inference.kind import sent_as
from textleak.numerics import exact, grid_step

# Rows of a table that are looked at, entries that it takes, and the part of the rows that has to shrink alike: most
# tokens are absent (our choice).
_ROWS, _LEAST, _MOST = 4096, 256, 0.5
# A row that is further off than so many times the median row was looked up; and the median itself, in steps of the
# weights' grid, is at most so far off where all that happens is rounding (our choice; measured on minilm and bert-tiny:
# 0.5 after one step of AdamW, 2.5 after ten).
_TIMES, _MOST_OFF = 2.0, 16.0
# Rounding is spread evenly where weights shrink by more than so many steps of their grid, in so many entries.
_WELL, _ENTRIES = 2.0, 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decay:
    """How all weights shrink in the course of an update.

    Attributes:
        product: by which part: rate times decay, over all steps.
        half: how far that may be off, as 1 − product is rounded to the weights' type.
        rows, entries: how many do nothing else.
        off: how far an entry of such a row is off at most, in steps of the weights' grid.
        rounding: variance of that over that of one rounding; None where weights shrink too little to tell.
        table: of which parameter.
    """

    product: float
    half: float
    rows: int
    entries: int
    off: float
    rounding: float | None
    table: str


@measured
def decay_of(seen: Seen) -> Decay | None:
    """The decay that weights without a gradient show; None where there are none, or no update."""
    if sent_as(seen).kind != "update":
        return None
    found = [one for name in seen.sent if (one := _of_table(seen, name)) is not None]
    if not found:
        return None
    best, _ = max(found, key=lambda one: one[0].entries)
    # Each A of an adapter is too small by itself to tell how often it was rounded.
    telling_N = torch.cat([off_N for one, off_N in found if abs(one.product - best.product) <= best.half])
    told = len(telling_N) >= _ENTRIES
    return dataclasses.replace(best, rounding=float(telling_N.square().mean()) * 12 if told else None)


def _of_table(seen: Seen, name: str) -> tuple[Decay, Tensor] | None:
    """What one table shows, and how far the entries that shrink enough are off, in steps of their grid."""
    weights = seen.weights(name)
    table = name in seen.model.embedding_names or ".lora_A." in name
    if not table or weights is None or weights.dim() != 2:
        return None
    chosen = torch.linspace(0, len(weights) - 1, min(len(weights), _ROWS)).long()
    before_RE = exact(weights[chosen.to(weights.device)]).cpu()
    moved_RE = exact(seen.sent[name][chosen.to(seen.sent[name].device)]).cpu()
    there_R = before_RE.any(1)
    before_RE, moved_RE = before_RE[there_R], moved_RE[there_R]
    if before_RE.numel() < _LEAST:
        return None
    product = max(0.0, float((-(before_RE * moved_RE).sum(1) / before_RE.square().sum(1)).median()))
    if product >= 1:  # decay leaves every weight its sign
        return None
    off_RE = off_the_grid(moved_RE, before_RE, product, weights.dtype)
    off_R = off_RE.abs().amax(1)
    off = _TIMES * float(off_R.median())
    still_R = off_R <= off
    rows = int(still_R.sum())
    if rows < _MOST * len(before_RE) or off > _TIMES * _MOST_OFF:
        return None
    shrunk_RE = product * before_RE.abs() >= _WELL * grid_step(before_RE, weights.dtype)
    decay = Decay(
        product=product,
        half=torch.finfo(weights.dtype).eps / 4,
        rows=round(rows / len(chosen) * len(weights)),
        entries=rows * weights.shape[1],
        off=off,
        rounding=None,
        table=name,
    )
    return decay, off_RE[still_R][shrunk_RE[still_R]]


def off_the_grid(moved: Tensor, before: Tensor, product: float, dtype: torch.dtype) -> Tensor:
    """How far each entry is from one that only shrank, in steps of the weights' grid."""
    return (moved + product * before) / grid_step(before, dtype)
