"""The sentences of a batch, of which each of a client's steps shows a copy with masks of its own (our choice).

Of some copies tokens are missing, and some tokens were put into the wrong copy. The sentences are those that together
have the most of the tokens that were found.

Shapes: C copies.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

from textleak.exact.found import OPEN
from textleak.matching.discrete import Row


def behind_copies(copies: Sequence[Row], size: int | None, *, ends: int | None) -> list[Row]:
    """So many of the copies, each filled up by those that agree with it, that have most of all tokens at their places.

    Args:
        copies: rows of tokens, `OPEN` where none was found.
        size: sentences of the batch; None for as few as have all of these tokens.
        ends: the token that ends every sentence; None where there is none.
    """
    often = Counter(_filled(copies, ends))
    if size is not None:
        return _chosen(often, size)
    everything, _ = _worth(often, often)
    fewer = (_chosen(often, size) for size in range(1, len(often)))
    return next((rows for rows in fewer if _worth(rows, often)[0] == everything), list(often))


def _chosen(often: Counter[Row], size: int) -> list[Row]:
    """So many of some rows, exchanged one by one for as long as they have more tokens then."""
    kept = [row for row, _ in often.most_common()]
    chosen, others = kept[:size], kept[size:]
    worth = _worth(chosen, often)
    better = True
    while better:
        better = False
        for place, row in itertools.product(range(len(chosen)), others):
            tried = [*chosen[:place], row, *chosen[place + 1 :]]
            if _worth(tried, often) > worth:
                others = [*(other for other in others if other != row), chosen[place]]
                chosen, worth, better = tried, _worth(tried, often), True
                break
    return chosen


def _filled(copies: Sequence[Row], ends: int | None) -> Iterable[Row]:
    """The copies, each that lacks tokens as the first fuller one that it agrees with."""
    fullest_first = sorted(copies, key=lambda row: (row.count(OPEN), -len(row)))
    filled: list[Row] = []
    for row in fullest_first:
        filled.append(next((other for other in filled if _agree(row, other, ends)), row))
    return filled


def _agree(row: Row, other: Row, ends: int | None) -> bool:
    """Whether one may be a copy of another: nothing at a place of both differs, and an end is an end."""
    if row[-1] == ends and len(row) != len(other):
        return False
    return len(row) <= len(other) and all(a in (OPEN, b) for a, b in zip(row, other, strict=False))


def _worth(chosen: Iterable[Row], often: Counter[Row]) -> tuple[int, int]:
    """How many different tokens at their places some sentences have, and how many copies there are of them."""
    there = {(place, token) for row in chosen for place, token in enumerate(row) if token != OPEN}
    return len(there), sum(often[row] for row in chosen)
