"""Whether a client's texts are of two parts that are embedded as such, as pairs of sentences are: what a server sees.

A pair ends with a token in its second part. Its input there is one that no text of one part has, so where it lies in
the span of the first layers' inputs, at any place, there is a pair in the batch. Where the parts' own embedding was
shared, its rows say the same.

Shapes: T positions, I a layer's input size, P parts, E embedding size.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.clients.view import AnyModel, View, view_of
from textleak.exact.subspace import OUTSIDE, InputSpan, shared_spans
from textleak.models import TextModel
from textleak.models.parts import Parts
from textleak.models.probes.layers import LocalLayer, layer_inputs
from textleak.shared.gradient import SharedGradient
from textleak.shared.traits import Trait

# A row of the parts' embedding that moved by less than this part of what the first one did has moved by rounding, or by
# decay alone where it moved along its own weights (our choices).
_MOVED, _ALONG = 1e-2, 0.9


def view_as_seen(shared: SharedGradient, model: AnyModel) -> View:
    """What a server makes of a shared gradient and the public model, read with texts of two parts where it shows such.

    Raises:
        InputError: as `view_of`.
    """
    view = view_of(shared, model)
    if not isinstance(view.model, TextModel) or view.model.pairs or not holds_pairs(view):
        return view
    return dataclasses.replace(view, model=view.model.in_pairs())


def holds_pairs(view: View) -> bool | None:
    """Whether the gradient is of texts of two parts, some of them; None where that can't be told."""
    model = view.text_model
    parts = model.parts
    if parts is None:
        return False
    if view.shared.noise_sigma > 0:
        return None
    rows_PE = view.shared.gradients.get(parts.weight_name)
    plain = view.has(Trait.ONE_POINT) and view.has(Trait.SCALED) and not view.shared.seen_effects
    if rows_PE is not None:
        return bool(rows_PE[1].any()) if plain else _moved(rows_PE, model.parameters[parts.weight_name])
    if not (view.has(Trait.IN_SPAN) and view.has(Trait.ADDITIVE)):
        return None
    spans = [(layers[0], span) for layers, span in shared_spans(model, view.shared) if span.clear]
    return any(_ends_inside(model, parts, layer, span) for layer, span in spans) if spans else None


def _moved(rows_PE: Tensor, weights_PE: Tensor) -> bool:
    """Whether the second part's row moved by what was learned: not by rounding, nor by decay alone."""
    first, second, own = (row.double() for row in (rows_PE[0], rows_PE[1], weights_PE[1].to(rows_PE.device)))
    along = float(
        (second @ own).abs() / (second.norm() * own.norm()).clamp_min(torch.finfo(torch.float64).tiny)
    )
    return bool(second.norm() > _MOVED * first.norm()) and along < _ALONG


def _ends_inside(model: TextModel, parts: Parts, layer: LocalLayer, span: InputSpan) -> bool:
    """Whether what ends a second part lies in a clear span at any place that it can stand at."""
    end = model.suffix_ids[-1]
    count = min(span.rank, model.max_length) if layer.depends_on_position else 1
    ids_1T = torch.full((1, count), end, device=model.device)
    network = model.network
    with torch.no_grad():
        embeddings_1TE = model.embed(ids_1T) + parts.added(network, torch.ones_like(ids_1T))
        inputs_TI = layer.meant(layer_inputs(model, embeddings_1TE, [layer.name])[layer.name][0])
    return bool((span.misfit(inputs_TI, eps=torch.finfo(model.dtype).eps) <= OUTSIDE).any())
