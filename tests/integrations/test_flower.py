"""A mod sees what a Flower client is sent and what it sends; messages here are of the same shape as Flower's."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import ToyModel
from textleak.errors import InputError
from textleak.integrations.flower import LeakageMod
from textleak.shared.gradient import SharedGradient

CLIENT = ["train-mode", "fedavg:lr=0.1,steps=2,batch_size=1"]


def message(
    tensors: dict[str, Tensor],
    kind: str = "train",
    *,
    failed: bool = False,
    number: int = 1,
    old: bool = False,
) -> Any:
    record = SimpleNamespace(to_torch_state_dict=lambda: tensors)
    settings = {} if old else {"config": {"server-round": number}}
    return SimpleNamespace(
        metadata=SimpleNamespace(message_type=kind, group_id=str(number) if old else ""),
        content=SimpleNamespace(array_records={"arrays": record}, config_records=settings),
        has_error=lambda: failed,
    )


CONTEXT = SimpleNamespace(node_id=77, node_config={"partition-id": 1})


def state(network: nn.Module, *, numbered: bool) -> dict[str, Tensor]:
    """As it is sent: by name, or in order alone as Flower's NumPy clients do."""
    return {
        str(at) if numbered else name: tensor.detach().clone()
        for at, (name, tensor) in enumerate(network.state_dict().items())
    }


@pytest.mark.parametrize("numbered", [False, True])
def test_what_a_round_changed_is_recorded(numbered: bool, toy_model: ToyModel, tmp_path: Path):
    model = toy_model("gpt2", task="causal-lm")
    network = copy.deepcopy(model.network).requires_grad_(True)
    before = state(network, numbered=numbered)

    def app(asked: Any, context: Any) -> Any:
        del asked, context
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.25
        return message(state(network, numbered=numbered))

    mod = LeakageMod(
        lambda: copy.deepcopy(network), model.tokenizer, client=CLIENT, out=tmp_path, know="nothing"
    )
    mod(message(before, number=2), CONTEXT, lambda *_: message(before))  # a round that nobody asked for
    reply = mod(message(before, old=numbered), CONTEXT, app)
    assert reply.metadata.message_type == "train"
    (recording,) = mod.recordings
    assert recording.file.name == "round-1-client-1.safetensors"
    assert recording.client == tuple(CLIENT)
    shared = SharedGradient.load(recording.file)
    assert shared.gradients.keys() == dict(network.named_parameters()).keys()
    assert shared.model.fingerprint == model.fingerprint  # of the weights that came in
    assert all(bool(torch.isclose(tensor, torch.tensor(0.25)).all()) for tensor in shared.gradients.values())


def test_other_messages_and_failed_replies_leave_nothing(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("gpt2", task="causal-lm")
    mod = LeakageMod(lambda: copy.deepcopy(model.network), model.tokenizer, out=tmp_path, rounds=(1, 2))
    mod(message({}, kind="evaluate"), CONTEXT, lambda *_: message({}))
    mod(message(state(model.network, numbered=False)), CONTEXT, lambda *_: message({}, failed=True))
    assert mod.recordings == []
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_recorded_does_not_stop_the_round(toy_model: ToyModel, tmp_path: Path):
    model = toy_model("gpt2", task="causal-lm")
    mod = LeakageMod(lambda: copy.deepcopy(model.network).requires_grad_(True), model.tokenizer, out=tmp_path)
    other = {"conv.weight": torch.zeros(2, 2)}
    with pytest.warns(UserWarning, match="round-1-client-1 was not recorded"):
        reply = mod(message(other), CONTEXT, lambda *_: message(other))
    assert not reply.has_error()


def test_a_client_that_is_not_there_is_refused_at_once(toy_model: ToyModel, tmp_path: Path):
    with pytest.raises(InputError, match="fedavgg"):
        LeakageMod(lambda: nn.Linear(1, 1), None, client="fedavgg", out=tmp_path)
