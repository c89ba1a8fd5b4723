"""How many sentences, of which lengths: what is known of it, else what the layer inputs' span shows."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence

from textleak.errors import InputError
from textleak.exact.proposals import Proposals
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.shared.gradient import SharedGradient

Shape = tuple[int, ...]
"""Tokens of each sentence, special tokens counted."""

# Shapes of one size that are tried at most, and that are looked at to find these (our choice).
_MOST_SHAPES, _LOOKED_AT = 24, 100_000


def batch_shapes(
    model: TextModel, shared: SharedGradient, proposals: Proposals | None, prefixes: list[Row]
) -> list[Shape]:
    """Shapes that the batch can have: those with the fewest sentences first, among these the likeliest first.

    Where nothing tells how many sentences there are, as behind a defense, it is taken for one.

    Raises:
        InputError: lengths are neither known nor shown.
    """
    known = shared.known
    if known.lengths is not None:
        return [known.lengths]
    size = known.size
    if proposals is not None and proposals.ends:
        return _likeliest_shapes(size or 1, proposals.ends)
    if proposals is None or proposals.rank is None:
        raise InputError(
            "The sentences' lengths are not known, and this gradient doesn't show them.",
            why="Without them there is no telling how many tokens to look for.",
            fix="Tell the attacker with --know lengths,batch-size, or share a first layer's weights.",
        )
    if model.task == "causal-lm":
        return _causal_shapes(size, proposals, prefixes)
    ends = _ends(model, proposals)
    shapes: list[Shape] = []
    for count in [size] if size else _batch_sizes(proposals):
        # All sentences share their first tokens, so this many tokens at least are counted twice.
        least = proposals.rank + (count - 1) * len(model.prefix_ids)
        fitting = (shape for shape in _shapes_of(count, ends, proposals) if sum(shape) >= least)
        shapes += heapq.nsmallest(_MOST_SHAPES, fitting, key=lambda shape: (sum(shape), shape))
    return shapes or [(max(ends),) * (size or 1)]


def _likeliest_shapes(count: int, ends: Sequence[int]) -> list[Shape]:
    """Shapes of `count` sentences from lengths that are ranked only; those of the first ranks come first."""
    ranks = itertools.combinations_with_replacement(range(len(ends)), count)
    shapes = heapq.nsmallest(_MOST_SHAPES, itertools.islice(ranks, _LOOKED_AT), key=sum)
    return [tuple(sorted((ends[rank] for rank in shape), reverse=True)) for shape in shapes]


def _shapes_of(count: int, ends: Sequence[int], proposals: Proposals) -> Iterator[Shape]:
    """Shapes of `count` sentences, longest sentence first; the longest ends where the span does, if that shows."""
    longest, free = ((max(ends),), count - 1) if proposals.ordered else ((), count)
    for rest in itertools.islice(itertools.combinations_with_replacement(sorted(ends), free), _LOOKED_AT):
        yield (*longest, *reversed(rest))


def _causal_shapes(size: int | None, proposals: Proposals, prefixes: list[Row]) -> list[Shape]:
    """Each beginning is a sentence without its last token, which no layer's gradient shows."""
    if prefixes:
        lengths = tuple(len(prefix) + 1 for prefix in prefixes)
        if size is None:
            return [lengths[:count] for count in range(1, len(lengths) + 1)]
        return [(lengths * size)[:size]]
    assert proposals.rank is not None
    return [(proposals.rank // (size or 1) + 1,) * (size or 1)]


def _batch_sizes(proposals: Proposals) -> list[int]:
    """Up to one sentence more than the fullest position has tokens; the span's rank rules the too small ones out."""
    return list(range(1, max(1, *proposals.inside) + 2))


def _ends(model: TextModel, proposals: Proposals) -> list[int]:
    """Lengths at which a sentence can end."""
    shortest = len(model.prefix_ids) + len(model.suffix_ids) + 1
    if not proposals.ordered:  # repeated tokens don't show without positions: sentences may be longer still
        assert proposals.rank is not None
        return list(range(shortest, max(shortest, proposals.rank) + _MOST_SHAPES))
    longest = proposals.occupied
    if model.suffix_ids:
        last = model.suffix_ids[-1]
        ends = [t + 1 for t in range(longest) if last in proposals.surest_at(t)]
        if ends:
            return ends
    return list(range(shortest, longest + 1)) or [shortest]
