"""What LoRA's B reads: r numbers of each input, in which fewer than r inputs span only a part (our choice).

An adapter's A makes these numbers, and B's gradient is a sum over them: it tells them while B is still 0 and A's
gradient with it, as in the first round, and behind a step of AdamW too, as a weight that begins at 0 is hardly rounded.

Shapes: O and I a layer's output and input size.
"""

from __future__ import annotations

import dataclasses

from textleak.clients.view import View
from textleak.exact.adapters.measured import first_layers
from textleak.exact.adaptive.bounded import Bounds, fitted, rank_between
from textleak.exact.adaptive.spans import as_span
from textleak.exact.subspace import InputSpan, input_span
from textleak.models.probes.layers import LinearLayer, following_layers, local_layers
from textleak.models.probes.reach import sees_ahead
from textleak.shared.traits import Trait

# Later narrow layers that are looked at, and those of them that tell (our choice; measured on smollm2: one leaves no
# other token at all).
_LOOKED_AT, _LATER = 16, 8
# How far a direction may be turned out of the true span where tokens are told apart by it (our choice; measured after a
# step of AdamW on smollm2: queries' are 1e-6 to 1e-2, values', whose gradients are larger, up to 0.5).
_TURNED = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Narrow:
    """What the layers show of the numbers that they read.

    Attributes:
        clear: spans of those that read each token by itself, as far as they tell tokens apart.
        rough: of those that don't, or not well.
        later: of the next layers, those that do.
        size: numbers of an input.
    """

    clear: tuple[InputSpan, ...]
    rough: tuple[InputSpan, ...]
    later: tuple[InputSpan, ...]
    size: int


def reads_narrow(view: View) -> bool:
    """Whether this channel can work: one text of a causal language model, of which adapters alone tell."""
    model, shared = view.text_model, view.shared
    plain = view.has(Trait.ONE_POINT) and view.has(Trait.REPEATABLE) and not shared.seen_effects
    one = shared.known.size == 1 and model.task == "causal-lm" and model.language.padding == "masked"
    return plain and one and not sees_ahead(model) and bool(first_layers(model, shared))


def narrow_spans(view: View) -> Narrow:
    """The spans of what narrow layers read, as far as a step's bounds tell them."""
    first = [layer for layer in local_layers(view.text_model) if layer.used_once and _is_narrow(view, layer)]
    groups = following_layers(view.text_model, len(view.model.parameters))
    next_ones = [layer for group in groups for layer in group if _is_narrow(view, layer)]
    later: list[InputSpan] = []
    for layer in next_ones[:_LOOKED_AT]:
        span = _span(view, layer)
        if span is not None and _tells(span):
            later.append(span)
        if len(later) == _LATER or view.clock.over:
            break
    # What says nothing of how many inputs there are has about as many as others, and the first one, which queries lack.
    about = 1 + max((span.rank for span in later), default=0)
    clear, rough = [], []
    for layer in first:
        span = _span(view, layer)
        if span is not None and _tells(span):
            clear.append(span)
        elif (span := _span(view, layer, rank=about)) is not None:
            rough.append(span)
    sizes = [layer.input_size for layer in first]
    return Narrow(clear=tuple(clear), rough=tuple(rough), later=tuple(later), size=max(sizes, default=0))


def _is_narrow(view: View, layer: LinearLayer) -> bool:
    """Whether a layer reads few numbers, and its gradient was shared."""
    gradient = view.shared.gradients.get(layer.weight_name)
    if gradient is None:
        return False
    outputs, inputs = layer.as_rows(gradient).shape
    return inputs < min(outputs, view.text_model.hidden_size)


def _tells(span: InputSpan) -> bool:
    return span.clear and span.rank < span.size and float(span.unsure_R.max()) <= _TURNED


def _span(view: View, layer: LinearLayer, *, rank: int | None = None) -> InputSpan | None:
    """What one layer reads, of a rank or of the one that shows; None where none does, or it fills all numbers."""
    gradient = view.shared.gradients[layer.weight_name]
    bounds = view.client.bounds({layer.weight_name: gradient}, view.model)
    if bounds is None:
        return input_span([layer.as_rows(gradient)], [layer.name])
    low_OI, high_OI = (layer.as_rows(bound) for bound in bounds[layer.weight_name])
    between = Bounds(low_OI=low_OI, high_OI=high_OI)
    rank = rank_between(between) if rank is None else rank
    while rank and rank < low_OI.shape[1]:
        found = fitted(between, rank, clock=view.clock)
        if found is None:
            return None
        if not found.missing:
            return as_span(found, [layer])
        rank += found.missing
    return None
