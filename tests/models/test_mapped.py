"""Weights in a file's memory map: their values stay, whatever is let go; what the process alone holds stays there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import ToyModel
from textleak.models import cast, mapped
from textleak.models.mapped import let_go

linux = pytest.mark.skipif(sys.platform != "linux", reason="the system tells nothing of pages")
_MIB = 2**20


@pytest.fixture
def weight(tmp_path: Path) -> Tensor:
    """32 MiB in a file's memory map."""
    save_file({"weight": torch.arange(8 * _MIB, dtype=torch.float32)}, tmp_path / "weights.safetensors")
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        read: Tensor = file.get_tensor("weight")
    return read


def _resident(kind: str) -> int:
    """MiB of the process, of files or its own."""
    found = re.findall(rf"Rss{kind}:\s+(\d+)", Path("/proc/self/status").read_text("ascii"))
    return int(found[0]) // 1024


@linux
def test_what_a_file_holds_takes_no_memory_once_it_is_let_go_and_comes_back(weight: Tensor) -> None:
    total = weight.sum()
    before = _resident("File")
    let_go([weight])
    assert before - _resident("File") >= 30
    assert torch.equal(weight.sum(), total)
    assert _resident("File") >= before - 1


@linux
def test_a_weight_that_was_changed_keeps_its_change(weight: Tensor) -> None:
    weight[5 * _MIB] = -1.0
    total = weight.sum()
    before = _resident("File")
    let_go([weight])
    assert weight[5 * _MIB] == -1.0
    assert torch.equal(weight.sum(), total)
    assert _resident("File") >= before - 1


def test_what_no_file_holds_stays() -> None:
    own = torch.arange(4 * _MIB, dtype=torch.float32)
    expected = own.clone()
    let_go([own, own.view(4, -1).T, own[1:], torch.zeros(())])
    assert torch.equal(own, expected)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_wide_model_lets_go_of_each_layer_that_it_has_run(
    family: str, dtype: torch.dtype, toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = toy_model(family)
    ids_1T = model.content_ids[:6][None]
    expected = model.in_dtype(dtype).logits(ids_1T, torch.ones_like(ids_1T))
    monkeypatch.setattr(cast, "MOST_COPIED", 0)
    let: set[int] = set()

    def noted(tensors: list[Tensor]) -> None:
        let.update(getattr(tensor, "original", tensor).untyped_storage().data_ptr() for tensor in tensors)

    monkeypatch.setattr(mapped, "let_go", noted)
    wide = model.with_network(model.network).in_dtype(dtype)
    found = wide.logits(ids_1T, torch.ones_like(ids_1T))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    outside = model.embedding_names
    matrices = [p for name, p in model.parameters.items() if p.dim() == 2 and name not in outside]
    assert {p.untyped_storage().data_ptr() for p in matrices} <= let
