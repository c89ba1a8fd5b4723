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
    """The inputs (N, I) of all pairs of a word and a position that moved, positions inner; None where unknown."""
    span, words, places = first_inputs(seen), words_of(seen).rows, _places(seen)
    if span is None or not words or not places or len(words) * len(places) > _MOST:
        return None
    name = span.layers[0].name
    ids_W = torch.tensor(words, device=seen.model.device)
    rows_WT = ids_W[:, None].expand(-1, places[-1] + 1)
    inputs_WTI = layer_inputs(seen.model, rows_WT, [name])[name]
    return exact(inputs_WTI[:, list(places)]).cpu().flatten(0, 1)


def _places(seen: Seen) -> tuple[int, ...] | None:
    span = first_inputs(seen)
    if span is not None and not span.layers[0].depends_on_position:
        return (0,)
    return places_of(seen).rows


@measured
def pairs_of(seen: Seen) -> Pairs | None:
    """Which pairs of a token and a position that moved are in the span; None where either isn't known."""
    span, inputs_NI = first_inputs(seen), clean_inputs(seen)
    words, places = words_of(seen).rows, _places(seen)
    if span is None or inputs_NI is None or words is None or places is None:
        return None
    inside_N, outside_N = span.inside(inputs_NI)
    at = inside_N.nonzero().flatten().tolist()
    return Pairs(
        inside=tuple((words[n // len(places)], places[n % len(places)]) for n in at),
        outside=int(outside_N.sum()),
        unclear=int((~inside_N & ~outside_N).sum()),
        positions=span.layers[0].depends_on_position,
    )
