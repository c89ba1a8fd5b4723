"""FSDP, in a world of one process: full state dicts are audited; shards are refused, and told the way out.

What torch loads for it is loaded by the tests: they are slow ones, and to collect them for the others took 1.6 seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import textleak
from tests.conftest import ToyModel
from textleak.errors import InputError
from textleak.models import TextModel
from textleak.shared.formats import read_state

RATE = 0.05
# Of torch's own: what it says of a world of one, and of the interface before.
pytestmark = [
    pytest.mark.slow,  # for what torch imports
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(autouse=True)
def _world_of_one(tmp_path: Path) -> Iterator[None]:
    from torch import distributed

    distributed.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def spread(network: nn.Module, kind: str) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import init_device_mesh

    if kind == "fully_shard":
        mesh = init_device_mesh("cpu", (1,))
        for layer in network.bert.encoder.layer:  # type: ignore[union-attr]
            fully_shard(layer, mesh=mesh)
        return fully_shard(network, mesh=mesh)
    return FullyShardedDataParallel(network, device_id=torch.device("cpu"))


def train(model: TextModel, called: nn.Module) -> None:
    optimizer = torch.optim.SGD(called.parameters(), lr=RATE)
    batch = model.tokenizer(["the cat sat"], return_tensors="pt")
    called(**batch, labels=torch.tensor([1])).loss.backward()
    optimizer.step()


def full(called: nn.Module) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    state = get_model_state_dict(called, options=StateDictOptions(full_state_dict=True))
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("kind", ["fully_shard", "FullyShardedDataParallel"])
def test_full_state_dicts_are_audited_and_shards_told_to_be_gathered(
    kind: str, toy_model: ToyModel, tmp_path: Path
):
    model = toy_model("bert")
    plain, network = (copy.deepcopy(model.network).requires_grad_(True) for _ in range(2))
    called = spread(network, kind)

    with pytest.raises(InputError, match="full_state_dict=True"):
        textleak.record(called, model.tokenizer, optimizer=torch.optim.SGD(called.parameters(), lr=RATE))

    for name in ("before", "after"):
        torch.save(full(called), tmp_path / f"{name}.pt")
        train(model, called) if name == "before" else None
    train(model, plain)
    before, after = (read_state(tmp_path / f"{name}.pt").tensors for name in ("before", "after"))
    client = f"fedavg:optimizer=sgd,lr={RATE},steps=1"
    shared = textleak.from_update(model, before, after, client=client)

    moved = {name: now - model.parameters[name] for name, now in plain.named_parameters()}
    assert shared.gradients.keys() == moved.keys()
    assert all(torch.allclose(shared.gradients[name], moved[name], atol=1e-6) for name in moved)


def test_files_of_shards_are_refused_with_the_way_out(toy_model: ToyModel, tmp_path: Path):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    called = spread(copy.deepcopy(toy_model("bert").network).requires_grad_(True), "fully_shard")
    shards = get_model_state_dict(called)
    torch.save(shards, tmp_path / "shards.pt")
    checkpoint.save(shards, checkpoint_id=tmp_path / "folder")

    with pytest.raises(InputError, match=r"shards of a training .* full state dict"):
        read_state(tmp_path / "shards.pt")
    with pytest.raises(InputError, match="dcp_to_torch"):
        read_state(tmp_path / "folder")
