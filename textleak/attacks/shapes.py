"""How many sentences, of which lengths: what is known of it, else what the layer inputs' span shows."""

from __future__ import annotations

import itertools

from textleak.attacks.proposals import Proposals
from textleak.errors import InputError
from textleak.gradients import SharedGradient
from textleak.matching.discrete import Row
from textleak.models import TextModel

Shape = tuple[int, ...]
"""Tokens of each sentence, special tokens counted."""

# Shapes of one size that are tried at most (our choice).
_MOST_SHAPES = 24


def batch_shapes(
    model: TextModel, shared: SharedGradient, proposals: Proposals | None, prefixes: list[Row]
) -> list[Shape]:
    """Shapes that the batch can have: those with the fewest sentences first, among these the likeliest first.

    Raises:
        InputError: lengths are neither known nor shown.
    """
    known = shared.known
    if known.lengths is not None:
        return [known.lengths]
    if proposals is None or proposals.rank is None:
        raise InputError(
            "The sentences' lengths are not known, and this gradient doesn't show them.",
            why="Without them there is no telling how many tokens to look for.",
            fix="Tell the attacker with --know lengths,batch-size, or share a first layer's weights.",
        )
    if model.task == "causal-lm":
        return _causal_shapes(known.batch_size, proposals, prefixes)
    sizes = [known.batch_size] if known.batch_size else _batch_sizes(proposals)
    ends = _ends(model, proposals)
    found: list[tuple[int, Shape]] = []
    for size in sizes:
        for shape in itertools.combinations_with_replacement(sorted(ends, reverse=True), size):
            # All sentences share their first token, so this many tokens at least are counted twice.
            surplus = sum(shape) - proposals.rank - (size - 1 if model.prefix_ids else 0)
            if shape[0] == max(ends) and surplus >= 0:
                found.append((surplus, shape))
            if len(found) > 50 * _MOST_SHAPES:
                break
    shapes: list[Shape] = []
    for size in sizes:
        fitting = sorted(pair for pair in found if len(pair[1]) == size)
        shapes += [shape for _, shape in fitting[:_MOST_SHAPES]]
    return shapes or [(max(ends),) * sizes[0]]


def _causal_shapes(size: int | None, proposals: Proposals, prefixes: list[Row]) -> list[Shape]:
    """Each beginning is a sentence without its last token, which no layer's gradient shows."""
    if prefixes:
        lengths = [len(prefix) + 1 for prefix in prefixes]
        return [tuple((lengths * (size or 1))[: size or len(lengths)])]
    assert proposals.rank is not None
    return [(proposals.rank // (size or 1) + 1,) * (size or 1)]


def _batch_sizes(proposals: Proposals) -> list[int]:
    """Up to one sentence more than the fullest position has tokens; the span's rank rules the too small ones out."""
    return list(range(1, max(1, *proposals.inside) + 2))


def _ends(model: TextModel, proposals: Proposals) -> list[int]:
    """Lengths at which a sentence can end."""
    longest = proposals.occupied
    if model.suffix_ids:
        last = model.suffix_ids[-1]
        ends = [t + 1 for t in range(longest) if last in proposals.surest_at(t)]
        if ends:
            return ends
    return list(range(len(model.prefix_ids) + len(model.suffix_ids) + 1, longest + 1)) or [longest or 1]
