"""What the first layers read follows from one row a token and one a position, where a network is built so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import ToyModel, write_toy
from textleak.models import TextModel, load_model
from textleak.models.probes import additive
from textleak.models.probes.additive import AdditiveInputs, additive_inputs
from textleak.models.probes.layers import LocalLayer, layer_inputs, local_layers

POSITIONS = 7
# RoBERTa's positions start at an offset; OPT's do too, and its norm reads tokens that were added before.
ADDED = ("bert", "distilbert", "roberta", "electra", "gpt2", "opt", "albert")
ROTARY = ("llama", "qwen2")


def first_layer(model: TextModel) -> LocalLayer:
    return local_layers(model)[0]


def made(model: TextModel, layer: LocalLayer) -> AdditiveInputs:
    found = additive_inputs(model, layer)
    assert found is not None
    return found


def read(model: TextModel, layer: LocalLayer, ids_N: torch.Tensor) -> torch.Tensor:
    """What the network's own layer reads of each token at each position, (N, T, I)."""
    return layer_inputs(model, ids_N[:, None].expand(-1, POSITIONS), [layer.name])[layer.name]


@pytest.mark.parametrize("family", [*ADDED, *ROTARY])
def test_tokens_and_positions_make_the_networks_own_inputs(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task="classification")
    layer = first_layer(model)
    inputs, ids_N = made(model, layer), model.content_ids[:20]
    own_NTI = read(model, layer, ids_N)
    for position in range(POSITIONS):
        at_NI = inputs.at(ids_N, position)
        torch.testing.assert_close(at_NI, own_NTI[:, position], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
@pytest.mark.parametrize("at_once", [2**17, 150])
def test_products_with_directions_need_no_inputs(
    family: str, at_once: int, toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(additive, "_NUMBERS", at_once)
    model = toy_model(family, task="classification", seed=29)  # its own: its norms are changed
    generator = torch.Generator().manual_seed(0)
    for norm in model.network.modules():
        if "Norm" in type(norm).__name__:
            for weight in norm.parameters(recurse=False):
                weight.data = weight + 0.5 * torch.randn(weight.shape, generator=generator)
    layer = first_layer(model)
    directions_RI = torch.randn(3, layer.input_size, generator=generator)
    every_V = torch.arange(model.vocab_size)
    expected_VTR = read(model, layer, every_V) @ directions_RI.T
    inputs = made(model, layer)
    along, squared = inputs.along(directions_RI), inputs.squared_along(directions_RI)
    share = inputs.share_along(directions_RI)
    lengths_VT = read(model, layer, every_V).square().sum(2)
    for position in (3, 0, *range(POSITIONS)):
        expected_VR = expected_VTR[:, position]
        torch.testing.assert_close(along(position), expected_VR, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(squared(position), expected_VR.square().sum(1), rtol=1e-4, atol=1e-4)
        expected_V = expected_VR.square().sum(1) / lengths_VT[:, position]
        torch.testing.assert_close(share(position), expected_V, rtol=1e-4, atol=1e-4)


def test_rms_norms_keep_the_mean_and_layer_norms_take_it_off(toy_model: ToyModel) -> None:
    for family, centered in (("llama", False), ("bert", True)):
        model = toy_model(family, task="classification")
        assert made(model, first_layer(model)).centered is centered


def test_rotary_positions_add_nothing(toy_model: ToyModel) -> None:
    model = toy_model("llama", task="classification")
    assert not made(model, first_layer(model)).places.first(POSITIONS).any()


def test_there_are_no_positions_beyond_the_longest_text(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    assert len(made(model, first_layer(model)).places.first(10_000)) == model.max_length


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_position_is_run_that_nobody_asks_for(family: str, tmp_path: Path) -> None:
    # A million positions would take a mask of 4 TB.
    longest = "n_positions" if family == "gpt2" else "max_position_embeddings"
    folder = write_toy(family, tmp_path, **{longest: 2**20})
    model = load_model(str(folder), weights="random", task="classification")
    layer = first_layer(model)
    inputs = made(model, layer)
    assert inputs.at(model.content_ids[:3], 4).isfinite().all()
    assert inputs.along(torch.ones(1, layer.input_size))(4).isfinite().all()


def test_an_input_that_isnt_a_norm_of_a_sum_is_recognized(toy_model: ToyModel) -> None:
    # ELECTRA's and ALBERT's first block reads a projection of the normalized sum.
    for family in ("electra", "albert"):
        model = toy_model(family, task="classification")
        query = next(layer for layer in local_layers(model) if layer.name.endswith("query"))
        assert additive_inputs(model, query) is None
