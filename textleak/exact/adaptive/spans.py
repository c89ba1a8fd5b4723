"""The span of the first layers' inputs where a step or a short type left their gradients' entries between bounds.

Shapes: O and I the layers' output and input size, R rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.exact.adaptive.bounded import Bounds, LowRank, fitted, rank_between
from textleak.exact.subspace import NO_SPAN, InputSpan
from textleak.models.base import Tensors
from textleak.models.probes.layers import LinearLayer, LocalLayer, local_layers
from textleak.shared import effects
from textleak.shared.traits import Trait

# Part of the dimensions beyond which a fit has too little left to go by (our choice).
_FULL = 0.5
# Part of a rank that is added to it at most where a fit leaves more than the bounds explain: nearly everything stands
# out where the rank is much too small (our choice).
_ADDED = 8
# Directions more than show that are taken where too many do no harm: what a weak token adds may be within the bounds,
# and without it no sentence with that token is found (measured on minilm with four sentences: of 43 inputs 42 showed,
# of 48 47).
_SPARE = 2

_Layer = TypeVar("_Layer", bound=LinearLayer)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BoundedSpan:
    """What layers that read one input show of it.

    Attributes:
        span: of their input.
        gradient_OI: theirs, one after the other, as far as the bounds tell it.
        unsure_RI: standard deviation of each entry of the span's directions.
    """

    span: InputSpan
    gradient_OI: Tensor
    unsure_RI: Tensor


def showing(view: View, layers: Iterable[_Layer]) -> list[_Layer]:
    """Those layers whose gradients were shared and aren't 0."""
    seen = view.shared.gradients
    return [layer for layer in layers if layer.weight_name in seen and bool(seen[layer.weight_name].any())]


def first_layers(view: View) -> tuple[LocalLayer, ...]:
    """The layers that read the first local input, of those whose shared gradients aren't 0."""
    layers = showing(view, [layer for layer in local_layers(view.text_model) if layer.used_once])
    return tuple(layer for layer in layers if layer.input_group == layers[0].input_group)


def bounded_span(view: View, layers: Sequence[LinearLayer], *, least: int | None = None) -> BoundedSpan | str:
    """The span of what some layers read, whose gradients lie between bounds; else a sentence why there is none.

    Args:
        view: what the server sees.
        layers: that read one input, and whose gradients were shared.
        least: inputs that there are at least, where a few directions too many do no harm.
    """
    if not layers:
        return NO_SPAN
    bounds = _bounds(view, {layer.weight_name: view.shared.gradients[layer.weight_name] for layer in layers})
    if bounds is None:
        return "The update doesn't show between what the gradient's entries lay."
    between = _stacked(bounds, layers)
    if not bool(((between.low_OI > 0) | (between.high_OI < 0)).any()):
        return "All gradients of what reads one input may be 0: there is no span to read."
    found = _fitted(view, between, least)
    if isinstance(found, str):
        return found
    return BoundedSpan(
        span=as_span(found, layers),
        gradient_OI=found.whole_OI,
        unsure_RI=found.unsure_RI,
    )


def _bounds(view: View, seen: Tensors) -> effects.Bounds | None:
    """Between what the entries of some tensors' gradients lay; None where nothing says that, or they are exact."""
    own, rounded = view.client.bounds(seen, view.model), view.shared.defended_effects
    if not rounded:
        return own
    # What was rounded afterwards is the gradient itself only where the client's own procedure leaves that.
    if own is not None or view.shared.client.effects or not view.has(Trait.ADDITIVE):
        return None
    return effects.before_rounding(effects.known_exactly(seen), rounded)


def _fitted(view: View, bounds: Bounds, least: int | None) -> LowRank | str:
    """The gradient between bounds; else a sentence why there is none.

    Args:
        view: whose lengths say how many inputs there are, where they are known.
        bounds: of all layers.
        least: see `bounded_span`.
    """
    lengths, full = view.shared.known.lengths, int(_FULL * bounds.low_OI.shape[1])
    spare = 0 if least is None else _SPARE
    if lengths is not None:  # the last token of a causal language model's sentences is no input
        rank = sum(lengths) - len(lengths) * (view.text_model.task == "causal-lm")
    elif (shown := rank_between(bounds)) is not None and shown <= full:
        rank = shown + spare
    elif least is not None:
        rank = least + spare
    else:
        return "How long the sentences are isn't known, and the step's bounds don't show how many inputs there are."
    if rank > full:
        return f"The batch fills more than {_FULL:.0%} of the dimensions of the first layers' input (n/D)."
    first = rank
    while rank <= full:
        found = fitted(bounds, rank, clock=view.clock)
        if found is None:
            return "Time was up before a gradient that lies between the step's bounds was found."
        if lengths is not None or not found.missing:
            return found
        rank += min(found.missing, max(2, rank // _ADDED)) + spare
    return f"Neither {first} inputs nor more give a gradient that lies between the step's bounds."


def _stacked(bounds: effects.Bounds, layers: Sequence[LinearLayer]) -> Bounds:
    """The layers' bounds, one after the other."""
    low, high = zip(*(bounds[layer.weight_name] for layer in layers), strict=True)
    pairs = list(zip(low, high, layers, strict=True))
    return Bounds(
        low_OI=torch.cat([layer.as_rows(tensor) for tensor, _, layer in pairs]),
        high_OI=torch.cat([layer.as_rows(tensor) for _, tensor, layer in pairs]),
    )


def as_span(found: LowRank, layers: Sequence[LinearLayer]) -> InputSpan:
    """The span of a fit's directions."""
    rank, size = found.basis_RI.shape
    return InputSpan(
        layers=tuple(layer.name for layer in layers),
        basis_RI=found.basis_RI,
        weights_R=torch.ones_like(found.basis_RI[:, 0]),
        rank=rank,
        size=size,
        clear=True,
        unsure_R=found.unsure_RI.square().mean(1).sqrt(),
    )
