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


def project(model: TextModel, layer: LocalLayer, inputs: Tensor) -> Tensor:
    """The layer's output for some inputs, in their precision: (..., I) to (..., O)."""
    module = model.network.get_submodule(layer.name)
    weight, bias = model.parameters[layer.weight_name].detach(), getattr(module, "bias", None)
    outputs = inputs @ (weight if layer.transposed else weight.T).to(inputs)
    return outputs + bias.detach().to(inputs) if isinstance(bias, Tensor) else outputs


def _attend(queries_NTO: Tensor, keys_NTO: Tensor, values_NTO: Tensor, *, heads: int) -> Tensor:
    q, k, v = (
        torch.unflatten(x, -1, (heads, -1)).transpose(1, 2) for x in (queries_NTO, keys_NTO, values_NTO)
    )
    weights_NHTT = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    return torch.flatten((weights_NHTT @ v).transpose(1, 2), 2)
