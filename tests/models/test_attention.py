"""The first attention's roles and heads are told by running the network."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import DECODERS, ToyModel
from textleak.models.probes.attention import first_attention, project
from textleak.models.probes.layers import following_layers, layer_inputs
from textleak.models.probes.reach import sees_ahead

ENCODERS = {
    "bert": ("query", "key", "value", "dense"),
    "distilbert": ("q_lin", "k_lin", "v_lin", "out_lin"),
    "roberta": ("query", "key", "value", "dense"),
    "electra": ("query", "key", "value", "dense"),
}


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoders_query_key_value_and_heads_are_found(family: str, toy_model: ToyModel) -> None:
    attention = first_attention(toy_model(family, task="classification"))
    assert attention is not None
    layers = (attention.query, attention.key, attention.value, attention.output)
    assert tuple(layer.name.rpartition(".")[2] for layer in layers) == ENCODERS[family]
    assert attention.heads == 2
    assert len({layer.input_group for layer in layers[:3]}) == 1


@pytest.mark.parametrize("family", ENCODERS)
def test_its_parts_make_what_the_next_layer_reads(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task="classification")
    attention = first_attention(model)
    assert attention is not None
    ids_1T = model.content_ids[None, 5:13]
    own = layer_inputs(model, ids_1T, [attention.query.name, attention.output.name])
    read_TI, mixed_TO = own[attention.query.name][0], own[attention.output.name][0]
    q, k, v = (
        project(model, layer, read_TI).unflatten(1, (attention.heads, -1)).transpose(0, 1)
        for layer in (attention.query, attention.key, attention.value)
    )
    weights_HTT = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    torch.testing.assert_close((weights_HTT @ v).transpose(0, 1).flatten(1), mixed_TO, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["albert", *DECODERS])
def test_shared_blocks_and_causal_attention_are_none_of_this_kind(family: str, toy_model: ToyModel) -> None:
    assert first_attention(toy_model(family, task="classification")) is None


@pytest.mark.parametrize("family", [*ENCODERS, "albert", *DECODERS])
def test_only_encoders_see_ahead(family: str, toy_model: ToyModel) -> None:
    assert sees_ahead(toy_model(family, task="classification")) == (family not in DECODERS)


def test_the_layers_that_follow_come_in_forward_order(toy_model: ToyModel) -> None:
    first, *_, last = following_layers(toy_model("bert", task="classification"), 4)
    assert [layer.name.partition("layer.")[2] for layer in first] == ["0.attention.output.dense"]
    roles = ("query", "key", "value")
    assert [layer.name.partition("layer.")[2] for layer in last] == [f"1.attention.self.{r}" for r in roles]


def test_weights_that_every_block_shares_show_no_input_of_their_own(toy_model: ToyModel) -> None:
    groups = following_layers(toy_model("albert", task="classification"), 4)
    assert not [layer for group in groups for layer in group if ".layer." in layer.name.replace("_", ".")]
