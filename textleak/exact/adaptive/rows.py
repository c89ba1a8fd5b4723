"""Sentences of an encoder's batch from spans that are blurred: by an optimizer's step, or by several steps.

Nothing can be taken off such an update or proved by it. But a sentence whose inputs further in lie in their span is
most likely in the batch, so each one is looked for by itself: from a loud token of its own, as `grouping` does. What
they make together is for the client's procedure to tell.

Shapes: K sentences, T positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from textleak.clients.view import View
from textleak.exact.adaptive.loud import likely_gradients
from textleak.exact.adaptive.rounded import rounded_span
from textleak.exact.adaptive.spans import bounded_span, first_layers, showing
from textleak.exact.pairs import Pairs, find_pairs
from textleak.exact.remainder import LayerRemainder
from textleak.exact.sentence_search import EFFORTS, SentenceSearch
from textleak.exact.subspace import NO_SPAN, InputSpan, stacked
from textleak.matching.discrete import Row
from textleak.models.probes.attention import first_attention
from textleak.models.probes.dropped import treated
from textleak.models.probes.layers import LinearLayer, following_layers, layer_inputs
from textleak.models.probes.reach import sees_ahead

# Inputs further in that are taken where each costs a decomposition, and where it costs a fit; and those that are asked
# for them (our choice).
_INPUTS, _INPUTS_BOUNDED, _ASKED = 2, 1, 4
# Bounds of a mean part outside below which a row is looked at closely (our choice; measured on minilm after 4 and 16
# steps of SGD: 3e-6 to 2e-5 for true sentences, above 1e-2 for others).
_CLOSEST, _FARTHEST = 1e-6, 1e-3
# Tokens that are looked at at a position, the surest: a span that drift has blurred may hold the whole vocabulary (our
# choice; measured on minilm with four sentences: true ones are among the first 13).
_MOST = 128
# Inputs of a sentence that are looked for at first where nothing shows how many there are (our choice).
_USUAL = 12
# Part of the dimensions beyond which a span tells nothing.
_FULL = 0.9
# The token that ends a sentence has no more outside at the last place that one ends at, in units of what is accounted
# for (our choice; measured on minilm with four to eight sentences: up to 3 there after steps of SGD or in bfloat16, and
# 46 and more behind it; where it is fitted between bounds up to 21, and a place too many costs only time).
_ENDS, _ENDS_BOUNDED = 20.0, 100.0


class BlurredRows:
    """Sentences that are most likely in a batch.

    Attributes:
        rows: those found so far.
        search: what they come from.
    """

    def __init__(
        self, view: View, pairs: Pairs, inputs: Sequence[LayerRemainder], *, bounded: bool = False
    ) -> None:
        """Nothing is found yet.

        Args:
            view: what the server sees.
            pairs: which tokens could stand where.
            inputs: what the update shows of the first input, and of those further in.
            bounded: whether the client's step left the gradient's entries between bounds.
        """
        self.view, self.pairs, self.inputs = view, pairs, inputs
        self.rows: list[Row] = []
        self.ends: dict[Row, float] = {}
        spans = [left.span for left in inputs[1:] if left.span is not None]
        solved = max((_turned(span) for span in spans), default=_CLOSEST)
        self.search = SentenceSearch(
            view.text_model,
            pairs,
            inputs,
            first_attention(view.text_model),
            self.ends,
            solved=min(max(solved, _CLOSEST), _FARTHEST),
            gradients=likely_gradients(pairs, inputs[0], filled_in=bounded),
        )

    @classmethod
    def of(cls, view: View) -> BlurredRows | str:
        """Of what the server sees; a sentence why there is nothing to read."""
        model = view.text_model
        if model.num_labels is None or not sees_ahead(model):
            return "Sentences behind several steps are read of an encoder that classifies."
        bounded = view.client.bounds({}, view.model) is not None
        if view.shared.defended_effects or (view.shared.effects and not bounded):
            return "A defense or a short type changed the update, so what rounding did to it isn't known."
        read_first = first_layers(view)
        first = _input(view, read_first, _USUAL * (view.shared.known.batch_size or 1), bounded=bounded)
        if isinstance(first, str):
            return first
        assert first.span is not None
        rank, size = first.span.rank, first.span.size
        if rank > _FULL * size:
            return f"The batch fills {rank} of {size} dimensions of the first layers' input (n/D)."
        lengths, reads = view.shared.known.lengths, treated(model, read_first[0].name, view.client.running)
        pairs = find_pairs(
            model,
            read_first[0],
            first.span,
            longest=max(lengths)
            if lengths
            else _longest(view, read_first[0], first.span, _ENDS_BOUNDED if bounded else _ENDS),
            rounded=None if reads is None else reads.dtype,
            most=_MOST,
        )
        if not len(pairs):
            return "No token's input lies in the span of the update."
        every = (showing(view, layers) for layers in following_layers(model, len(view.model.parameters)))
        asked = itertools.islice(filter(None, every), _ASKED)
        found = (_input(view, layers, rank, bounded=bounded) for layers in asked)
        shown = (left for left in found if not isinstance(left, str))
        further = list(itertools.islice(shown, _INPUTS_BOUNDED if bounded else _INPUTS))
        if not further:
            return "No layer beyond the first ones shows what it read, so nothing tells which tokens stand together."
        return cls(view, pairs, (first, *further), bounded=bounded)

    def look(self) -> Iterator[Row | None]:
        """One sentence after the other, as often as one is found; None after every start without one."""
        taken: set[int] = set()
        for effort in EFFORTS:
            for start in self.search.starts()[: round(max(1.0, effort.starts) * self.search.rank)]:
                if start in taken:
                    continue
                found = [row for row in self.search.from_start(start, effort) if self._likely(row)]
                new = [row for row in found if row not in self.rows]
                for row in new:
                    self.rows.append(row)
                    taken |= {*self.pairs.row(self.view.text_model, row)}
                    yield row
                if not new:
                    yield None

    def _likely(self, row: Row) -> bool:
        """Whether a sentence's inputs lie in all spans further in."""
        network = self.search.network
        indices = torch.tensor([self.pairs.row(self.view.text_model, row)])
        return network is None or float(network.outside(indices).mean()) <= self.search.solved


def _input(view: View, layers: Sequence[LinearLayer], least: int, *, bounded: bool) -> LayerRemainder | str:
    """What the update shows of what some layers read, which are `least` inputs or more.

    Args:
        view: what the server sees.
        layers: that read one input.
        least: inputs that there are at least.
        bounded: whether the client's step left the gradient's entries between bounds.
    """
    if not layers:
        return NO_SPAN
    seen = view.shared.gradients
    if bounded:
        between = bounded_span(view, layers, least=least)
        if isinstance(between, str):
            return between
        stacked_OI, span, edge = between.gradient_OI, between.span, 0.0
    else:
        stacked_OI = stacked(seen, layers)
        rounded = rounded_span(stacked_OI, [layer.name for layer in layers])
        if rounded is None:
            return "All of the update is rounding."
        span, edge = rounded.span, rounded.edge
    return LayerRemainder(
        layers=tuple(layers),
        stacked_OI=stacked_OI,
        outputs=[len(layer.as_rows(seen[layer.weight_name])) for layer in layers],
        span=span,
        rounding=edge,
    )


def _longest(view: View, layer: LinearLayer, span: InputSpan, outside: float) -> int | None:
    """Tokens of the longest sentence, by the last place where the input of what ends one lies in the span; else None.

    Drift lets some tokens in at every place, and looking at the whole vocabulary at each takes long.
    """
    model = view.text_model
    if not model.suffix_ids:
        return None
    places = min(span.rank, model.max_length)
    ids_1T = torch.full((1, places), model.suffix_ids[-1], device=model.device)
    inputs_TI = layer_inputs(model, ids_1T, [layer.name])[layer.name][0]
    inside_T = span.misfit(inputs_TI, eps=torch.finfo(model.dtype).eps) <= outside
    ends = inside_T.nonzero().flatten().tolist()
    return ends[-1] + 1 if ends else None


def _turned(span: InputSpan) -> float:
    """The part of an input that a span's errors turn out of it, in the mean over its directions."""
    return float((span.size - span.rank) * span.unsure_R.square().mean())
