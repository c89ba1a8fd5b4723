"""Matrices that are no layer's are found by their gradients, whichever way a module multiplies by them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.attacks.test_architectures import KINDS, drawn
from tests.conftest import FAMILIES, ToyModel
from textleak.models.probes.bare import bare_matrices
from textleak.models.probes.layers import layer_inputs, local_layers
from textleak.private.share import share


class Mixing(nn.Module):
    """Multiplies what it reads by two matrices, each stored another way, and adds a third that it reads nothing by."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.forth = nn.Parameter(0.1 * torch.randn(size, 2, size // 2))
        self.back = nn.Parameter(0.1 * torch.randn(2, size // 2, size))
        self.beside = nn.Parameter(0.1 * torch.randn(size, 2, size // 2))

    def forward(self, x_NTD: Tensor) -> Tensor:
        made = torch.einsum("ntd,dab->ntab", x_NTD, self.forth) + torch.einsum(
            "ntd,abd->ntab", x_NTD, self.back
        )
        made = made + torch.einsum("d,dab->ab", torch.ones(len(self.beside)), self.beside)
        return x_NTD + made.flatten(2).tanh().roll(1, 1)


def test_both_ways_of_storing_one_are_told(toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="classification")
    network = copy.deepcopy(model.network)
    torch.manual_seed(3)
    mixing = Mixing(model.hidden_size)
    network.transformer.drop = mixing
    changed = model.with_network(network)
    found = {matrix.weight_name.rpartition(".")[2]: matrix for matrix in bare_matrices(changed)}
    assert {name: matrix.transposed for name, matrix in found.items()} == {"forth": True, "back": False}
    assert all(matrix.used_once and matrix.input_size == model.hidden_size for matrix in found.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_families_of_layers_alone_have_none(family: str, toy_model: ToyModel) -> None:
    assert bare_matrices(toy_model(family)) == ()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "matrices that are no layer's"])
def test_other_parameters_of_modules_are_none(kind: str, tmp_path: Path) -> None:
    assert bare_matrices(drawn(kind, tmp_path)) == ()


def test_they_are_the_attentions_where_their_names_say_so(tmp_path: Path) -> None:
    model = drawn("matrices that are no layer's", tmp_path)
    attention = {f"transformer.layer.{block}.rel_attn.{name}" for block in (0, 1) for name in "qkv"}
    assert model.attention_names == attention


def test_inputs_span_the_rows_of_their_gradients(tmp_path: Path) -> None:
    model = drawn("matrices that are no layer's", tmp_path)
    layers = local_layers(model)
    assert [layer.weight_name.rpartition(".")[2] for layer in layers] == ["q", "k", "v"]
    assert all(layer.bare and not layer.depends_on_position for layer in layers)
    shared, secret = share(model, ["he sat on the mat"], share="no-embeddings")
    inputs_TI = layer_inputs(model, torch.tensor(secret.ids[:1]), [layers[0].name])[layers[0].name][0]
    basis_IT = torch.linalg.qr(inputs_TI.T.double()).Q
    for layer in layers:
        rows_OI = layer.as_rows(shared.gradients[layer.weight_name]).double()
        assert float((rows_OI - rows_OI @ basis_IT @ basis_IT.T).norm() / rows_OI.norm()) < 1e-5
