"""The first attention of a network, told by running it: which layers make its queries, keys and values.

Shapes: N sentences, T positions, H heads, O a layer's output size.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from textleak.models.probes.layers import (
    LinearLayer,
    LocalLayer,
    following_layers,
    layer_inputs,
    local_layers,
)
from textleak.models.text import TextModel

_LENGTH = 6  # of the text that the roles are told by


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstAttention:
    """softmax(q kᵀ / √d) v of every head, over all positions of a sentence.

    Attributes:
        query, key, value: local layers that read the same input.
        heads: H.
        output: the layer that reads what the heads mixed.
    """

    query: LocalLayer
    key: LocalLayer
    value: LocalLayer
    heads: int
    output: LinearLayer


def first_attention(model: TextModel) -> FirstAttention | None:
    """The first attention of an encoder; None where it isn't of the plain kind (masks, rotations, biases)."""
    heads = getattr(model.network.config, "num_attention_heads", None)
    following = following_layers(model, 1)
    groups: dict[str, list[LocalLayer]] = {}
    for layer in local_layers(model):
        groups.setdefault(layer.input_group, []).append(layer)
    if not heads or not following:
        return None
    output = following[0][0]
    ids_1T = model.content_ids[None, :_LENGTH]
    mixed_1TO = layer_inputs(model, ids_1T, [output.name])[output.name]
    for layers in groups.values():
        read_1TI = layer_inputs(model, ids_1T, [layers[0].name])[layers[0].name]
        for query, key, value in itertools.permutations(layers, 3):
            sizes = {layer.output_size for layer in (query, key, value)}
            if sizes != {mixed_1TO.shape[-1]} or mixed_1TO.shape[-1] % heads:
                continue
            made = [project(model, layer, read_1TI) for layer in (query, key, value)]
            own_1TO = _attend(*made, heads=heads)
            if (own_1TO - mixed_1TO).abs().max() <= 1e-3 * mixed_1TO.abs().max():
                return FirstAttention(query=query, key=key, value=value, heads=heads, output=output)
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Projected:
    """Outputs of a local layer that are queries, keys or values of the first attention.

    Attributes:
        layer: the layer.
        outputs: which of its outputs.
    """

    layer: LocalLayer
    outputs: slice


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalAttention:
    """softmax(q kᵀ / √d) v of every head, over the positions up to each one's own.

    Attributes:
        query, key, value: of the same layer, or of three.
        heads: H.
    """

    query: Projected
    key: Projected
    value: Projected
    heads: int


def first_causal_attention(model: TextModel) -> CausalAttention | None:
    """The first attention of a decoder; None where it isn't of the plain kind (rotations, biases, shared heads)."""
    heads = getattr(model.network.config, "num_attention_heads", None)
    following = following_layers(model, 1)
    if not heads or not following:
        return None
    ids_1T = model.content_ids[None, :_LENGTH]
    name = following[0][0].name
    mixed_1TO = layer_inputs(model, ids_1T, [name])[name]
    size = mixed_1TO.shape[-1]
    parts = [
        Projected(layer=layer, outputs=slice(start, start + size))
        for layer in local_layers(model)
        for start in range(0, layer.output_size, size)
        if layer.output_size in (size, 3 * size)
    ]
    if size % heads:
        return None
    inputs = layer_inputs(model, ids_1T, list({part.layer.name for part in parts})) if parts else {}
    made = [project(model, part.layer, inputs[part.layer.name])[..., part.outputs] for part in parts]
    for query, key, value in itertools.permutations(range(len(parts)), 3):
        if len({parts[i].layer.input_group for i in (query, key, value)}) > 1:
            continue
        own_1TO = _attend(made[query], made[key], made[value], heads=heads, causal=True)
        if (own_1TO - mixed_1TO).abs().max() <= 1e-3 * mixed_1TO.abs().max():
            return CausalAttention(query=parts[query], key=parts[key], value=parts[value], heads=heads)
    return None


def project(model: TextModel, layer: LocalLayer, inputs: Tensor) -> Tensor:
    """The layer's output for some inputs, in their precision: (..., I) to (..., O)."""
    module = model.network.get_submodule(layer.name)
    weight, bias = model.parameters[layer.weight_name].detach().flatten(1), getattr(module, "bias", None)
    outputs = inputs @ (weight if layer.transposed else weight.T).to(inputs)
    return outputs + bias.detach().to(inputs) if isinstance(bias, Tensor) else outputs


def _attend(
    queries_NTO: Tensor, keys_NTO: Tensor, values_NTO: Tensor, *, heads: int, causal: bool = False
) -> Tensor:
    q, k, v = (
        torch.unflatten(x, -1, (heads, -1)).transpose(1, 2) for x in (queries_NTO, keys_NTO, values_NTO)
    )
    scores_NHTT = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    if causal:
        later_TT = torch.ones_like(scores_NHTT[0, 0], dtype=torch.bool).triu(1)
        scores_NHTT = scores_NHTT.masked_fill(later_TT, -torch.inf)
    weights_NHTT = scores_NHTT.softmax(-1)
    return torch.flatten((weights_NHTT @ v).transpose(1, 2), 2)
