"""Which tokens at which positions lie in the span of the first layer's inputs: a clean input does, a dropped doesn't.

Shapes: N pairs, I the layer's input size.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.inference.base import Seen, measured
from textleak.inference.inputs import first_inputs
from textleak.inference.vocabulary import places_of, words_of
from textleak.models.probes.layers import layer_inputs
from textleak.numerics import exact

# Pairs that are looked at, at most (our choice: bounds the time).
_MOST = 1 << 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of a token and a position.

    Attributes:
        inside: those whose clean input lies in the span.
        outside: how many were looked at and lie clearly outside.
        unclear: how many can't be told.
        positions: whether the layer's input depends on the position; if not, pairs have position 0.
    """

    inside: tuple[tuple[int, int], ...]
    outside: int
    unclear: int
    positions: bool


@measured
def clean_inputs(seen: Seen) -> Tensor | None:
    """The inputs (N, I) of all pairs that are looked at; None where there are none."""
    span, looked_at = first_inputs(seen), _looked_at(seen)
    if span is None or not looked_at:
        return None
    name = span.layers[0].name
    words = sorted({word for word, _ in looked_at})
    ids_W = torch.tensor(words, device=seen.model.device)
    rows_WT = ids_W[:, None].expand(-1, max(place for _, place in looked_at) + 1)
    inputs_WTI = layer_inputs(seen.model, rows_WT, [name])[name]
    where = {word: w for w, word in enumerate(words)}
    rows = torch.tensor([where[word] for word, _ in looked_at], device=inputs_WTI.device)
    places = torch.tensor([place for _, place in looked_at], device=inputs_WTI.device)
    return exact(inputs_WTI[rows, places]).cpu()


def _looked_at(seen: Seen) -> list[tuple[int, int]]:
    """Every word that moved at every position that did; what the tokenizer puts first where those aren't known."""
    span, words, places = first_inputs(seen), words_of(seen).rows, places_of(seen).rows
    if span is None:
        return []
    if not span.layers[0].depends_on_position:
        places = (0,)
    if not words or not places:
        return [(word, place) for place, word in enumerate(seen.model.prefix_ids)]
    return [(word, place) for word in words for place in places] if len(words) * len(places) <= _MOST else []


@measured
def pairs_of(seen: Seen) -> Pairs | None:
    """Which pairs of a token and a position are in the span; None where none could be looked at."""
    span, inputs_NI = first_inputs(seen), clean_inputs(seen)
    if span is None or inputs_NI is None:
        return None
    inside_N, outside_N = span.inside(inputs_NI)
    looked_at = _looked_at(seen)
    return Pairs(
        inside=tuple(looked_at[n] for n in inside_N.nonzero().flatten().tolist()),
        outside=int(outside_N.sum()),
        unclear=int((~inside_N & ~outside_N).sum()),
        positions=span.layers[0].depends_on_position,
    )
