"""Which tokens at which positions lie in the span of the first layer's inputs: a clean input does, a dropped doesn't.

Shapes: N pairs, I the layer's input size.
"""

from __future__ import annotations

import dataclasses

import torch

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
def pairs_of(seen: Seen) -> Pairs | None:
    """Which pairs of a token and a position that moved are in the span; None where either isn't known."""
    span, words, places = first_inputs(seen), words_of(seen).rows, places_of(seen).rows
    if span is None or not words:
        return None
    layer = span.layers[0]
    if not layer.depends_on_position:
        places = (0,)
    if not places or len(words) * len(places) > _MOST:
        return None
    ids_W = torch.tensor(words, device=seen.model.device)
    length = places[-1] + 1
    inputs_WTI = layer_inputs(seen.model, ids_W[:, None].expand(-1, length), [layer.name])[layer.name]
    inputs_WTI = exact(inputs_WTI[:, list(places)]).cpu()
    inside_N, outside_N = span.inside(inputs_WTI.flatten(0, 1))
    inside = [
        (words[n // len(places)], places[n % len(places)]) for n in inside_N.nonzero().flatten().tolist()
    ]
    return Pairs(
        inside=tuple(inside),
        outside=int(outside_N.sum()),
        unclear=int((~inside_N & ~outside_N).sum()),
        positions=layer.depends_on_position,
    )
