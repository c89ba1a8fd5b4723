"""The span of the first layers' inputs where a step or a short type left their gradients' entries between bounds.

Shapes: O and I the layers' output and input size, R rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.exact.adaptive.bounded import Bounds, LowRank, fitted, rank_between
from textleak.exact.subspace import InputSpan, as_rows
from textleak.models.base import Tensors
from textleak.models.probes.layers import LinearLayer, LocalLayer, local_layers
from textleak.numerics import exact
from textleak.shared.effects import before_rounding
from textleak.shared.traits import Trait

# Part of the dimensions beyond which a fit has too little left to go by (our choice).
_FULL = 0.5
# Ranks that are tried where nobody says how many inputs there are, from the one that singular values show; and what a
# fit leaves at most, in units of what the bounds allow (our choice; measured on minilm with four sentences: 0.87 at the
# rank of the gradient, 1.03 one below, 4.5 four below).
_TRIED, _ALLOWED = 4, 1.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BoundedSpan:
    """What layers that read one input show of it.

    Attributes:
        layers: which.
        span: of their input.
        gradient_OI: theirs, one after the other, as far as the bounds tell it.
        unsure_RI: standard deviation of each entry of the span's directions.
    """

    layers: tuple[LocalLayer, ...]
    span: InputSpan
    gradient_OI: Tensor
    unsure_RI: Tensor


def bounded_span(view: View) -> BoundedSpan | str:
    """The span of the first local input whose layers' gradients lie between bounds; else a sentence why there is none.

    Args:
        view: what the server sees.
    """
    seen = view.shared.gradients
    layers = [
        layer for layer in local_layers(view.text_model) if layer.weight_name in seen and layer.used_once
    ]
    layers = [layer for layer in layers if layer.input_group == layers[0].input_group]
    if not layers:
        return "No first layer's weight gradient was shared: there is no span to read."
    bounds = _bounds(view, {layer.weight_name: seen[layer.weight_name] for layer in layers})
    if bounds is None:
        return "The update doesn't show between what the gradient's entries lay."
    if view.shared.known.batch_size != 1 and view.has(Trait.REPEATABLE):
        return "Where entries are only told between bounds, inputs of several sentences are told apart by masks alone."
    found = _fitted(view, _stacked(bounds, layers), layers[0].input_size)
    if isinstance(found, str):
        return found
    return BoundedSpan(
        layers=tuple(layers),
        span=_as_span(found, layers),
        gradient_OI=found.whole_OI,
        unsure_RI=found.unsure_RI,
    )


def _bounds(view: View, seen: Tensors) -> Mapping[str, tuple[Tensor, Tensor]] | None:
    """Between what the entries of some tensors' gradients lay; None where nothing says that, or they are exact."""
    own, outer = view.client.bounds(seen, view.model), view.shared.defended_effects
    if own is None:
        found = {name: before_rounding(exact(one), exact(one), outer) for name, one in seen.items()}
        told = {name: pair for name, pair in found.items() if pair is not None}
        return told if outer and len(told) == len(found) else None
    return None if outer else own


def _fitted(view: View, bounds: Bounds, size: int) -> LowRank | str:
    """The gradient between bounds; else a sentence why there is none.

    Args:
        view: whose lengths say how many inputs there are, where they are known.
        bounds: of all layers.
        size: of the input.
    """
    lengths = view.shared.known.lengths
    if lengths is None:
        rank, tried = rank_between(bounds), _TRIED
        if rank is None:
            return "How long the sentences are isn't known, and the step's bounds don't show how many inputs there are."
    else:  # the last token of a causal language model's sentences is no input
        rank, tried = sum(lengths) - len(lengths) * (view.text_model.task == "causal-lm"), 1
    if rank > _FULL * size:
        return f"The batch fills {rank} of {size} dimensions of the first layers' input (n/D)."
    for more in range(tried):
        found = fitted(bounds, rank + more)
        if tried == 1 or found.misfit <= _ALLOWED:
            return found
    return f"Neither {rank} inputs nor some more give a gradient that lies between the step's bounds."


def _stacked(bounds: Mapping[str, tuple[Tensor, Tensor]], layers: Sequence[LinearLayer]) -> Bounds:
    """The layers' bounds, one after the other."""
    low, high = zip(*(bounds[layer.weight_name] for layer in layers), strict=True)
    pairs = list(zip(low, high, layers, strict=True))
    return Bounds(
        low_OI=torch.cat([as_rows(tensor, layer) for tensor, _, layer in pairs]),
        high_OI=torch.cat([as_rows(tensor, layer) for _, tensor, layer in pairs]),
    )


def _as_span(found: LowRank, layers: Sequence[LinearLayer]) -> InputSpan:
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
