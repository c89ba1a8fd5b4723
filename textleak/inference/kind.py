"""Gradient or weights' difference: a difference of two near numbers is a multiple of their grid, a gradient isn't."""

from __future__ import annotations

import dataclasses
import math

from textleak.inference.base import Kind, Seen, Told, is_short, lies_on, measured, per_cent
from textleak.models import TextModel
from textleak.models.base import Tensors

WHAT = "sent"
# Entries whose sum with the weight is a number of the weights' own type: of a difference all, of a gradient those that
# happen to be (our choice; measured on minilm and bert-tiny in float32: 0.98 and more of a difference, which is rounded
# where a weight more than doubles, and up to 0.05 of a gradient).
_ALL, _FEW = 0.95, 0.5
# Entries that are looked at, at least, and at least of those that are small beside their weights (our choice). A small
# difference is exact; of a small gradient a quarter at most is on the grid by chance. Of one as large as its weight it
# is more, where weights have few bits.
_LEAST, _LEAST_SMALL, _SMALL = 200, 64, 0.25
# Entries off the grid with one sign where none is with the other (our choice).
_CROSSED = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sent:
    """What was sent; None where it can't be told."""

    kind: Kind | None
    evidence: str


@measured
def sent_as(seen: Seen) -> Sent:
    """Whether it is a gradient or an update, by the weights' grid."""
    if seen.given is not None:
        said = {"gradient": "gradients were given", "update": "weights before and after were given"}
        return Sent(kind=seen.given, evidence=f"It was said so: {said[seen.given]}.")
    # What has 16 bits is on most grids anyway, so that only the rest can show a difference.
    on_grid, total = _counted(seen, telling=True, part=_SMALL)
    if total < _LEAST_SMALL:
        on_grid, total = _counted(seen, telling=True)
        if total < _LEAST:
            total = 0
    if not total:
        on_grid, total = _counted(seen, telling=False)
        if total < _LEAST:
            return Sent(
                kind=None,
                evidence=f"Only {total} entries can be held against known weights: too few to tell.",
            )
        if on_grid > _FEW * total:
            return Sent(
                kind=None,
                evidence="Nearly all that was sent has 16 bits, and any such number can be a difference of weights.",
            )
    share = on_grid / total
    figure = f"{per_cent(share)} of {total:,} entries, added to the model's weights, give numbers of the weights' type"
    if share >= _ALL:
        return Sent(kind="update", evidence=f"{figure}: a difference of weights.")
    if share <= _FEW:
        return Sent(kind="gradient", evidence=f"{figure}, as gradients do by chance.")
    return Sent(kind=None, evidence=f"{figure}: more than a gradient's, less than a difference's.")


def turned(sent: Tensors, model: TextModel) -> bool:
    """Whether it is before − after, as optimizers of servers take updates: a difference, but not of the other sign.

    What is small beside its weight is exact, so of the right sign all sums with the weights are on their grid, of the
    other all but where a step crossed a power of 2.
    """
    seen = Seen(sent=sent, model=model)
    (there, total), (turned_, _) = (_counted(seen, telling=True, part=_SMALL, sign=sign) for sign in (1, -1))
    return total >= _LEAST_SMALL and turned_ == total and total - there >= _CROSSED


def grid_share(seen: Seen) -> float | None:
    """Which part of an update's entries, added to the weights, are of their type; None for too few to tell.

    Of those that are small beside their weights, as a difference of two such is exact; of all where there are too few.
    """
    for part, least in ((_SMALL, _LEAST_SMALL), (math.inf, _LEAST)):
        on_grid, total = _counted(seen, telling=part == _SMALL, part=part)
        if total >= least:
            return on_grid / total
    return None


def _counted(seen: Seen, *, telling: bool, part: float = math.inf, sign: int = 1) -> tuple[int, int]:
    """Entries whose sum with the weight is a number of the weights' type, and how many were looked at.

    Args:
        seen: the update.
        telling: whether only entries count that neither bfloat16 nor float16 holds.
        part: of its weight that an entry is at most.
        sign: of the entries in that sum.
    """
    on_grid = total = 0
    for sent_N, weights_N, dtype in seen.sampled():
        told_N = (weights_N != 0) & (sent_N != 0) & (sent_N.abs() <= part * weights_N.abs())
        if telling:
            told_N &= ~is_short(sent_N)
        sum_N = (sign * sent_N + weights_N)[told_N]
        on_grid += int(lies_on(sum_N, dtype).sum())
        total += len(sum_N)
    return on_grid, total


def ask(seen: Seen) -> Told:
    """What was sent."""
    found = sent_as(seen)
    return Told(what=WHAT, value=found.kind, evidence=found.evidence)
