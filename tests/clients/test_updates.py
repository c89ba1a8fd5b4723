"""A training that isn't textleak's: its network wrapped, its gradients or weights taken, its text found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import textleak
from tests.adapters import adapted
from textleak.errors import InputError
from textleak.events import Recovery
from textleak.models import TextModel
from textleak.shared.known import SideInformation

TEXT = "the doctor wrote a private letter"
STEP = "fedavg:optimizer=sgd,lr=0.1,steps=1"


@pytest.fixture
def model(toy_model: Callable[..., TextModel]) -> TextModel:
    return toy_model("bert", task="classification")


@pytest.fixture
def network(model: TextModel) -> nn.Module:
    """What a training script has: parameters that are trained, in train mode, without dropout."""
    network = copy.deepcopy(model.network).requires_grad_(True).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def backward(network: nn.Module, model: TextModel, label: int = 1) -> torch.Tensor:
    batch = model.tokenizer([TEXT], return_tensors="pt")
    network.zero_grad()
    loss = network(**batch, labels=torch.tensor([label])).loss
    loss.backward()
    return loss


def gradients_of(network: nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: p.grad for name, p in network.named_parameters()}


def words(recovery: Recovery) -> str:
    return recovery.sentences[0].text


def test_the_text_behind_one_s_own_gradients_is_found(network: nn.Module, model: TextModel) -> None:
    public = textleak.wrap(network, model.tokenizer)
    backward(network, model)
    shared = textleak.from_gradients(public, gradients_of(network))
    assert words(textleak.recover(shared, public, "auto")) == TEXT


@pytest.mark.parametrize("wrapper", ["data-parallel", "compile", "inside"])
def test_wrappers_are_taken_away(wrapper: str, network: nn.Module, model: TextModel) -> None:
    class Opacus(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self._module = module

    def compiled(module: nn.Module) -> nn.Module:
        return torch.compile(module, backend="eager")  # type: ignore[return-value]

    wrap = {"data-parallel": nn.DataParallel, "compile": compiled, "inside": Opacus}[wrapper]
    outer = wrap(network)
    public = textleak.wrap(outer, model.tokenizer)
    backward(network, model)
    shared = textleak.from_gradients(public, gradients_of(outer))
    assert set(shared.gradients) == {n for n, p in network.named_parameters() if p.grad is not None}


def test_a_wrapped_network_stays_as_it_is(network: nn.Module, model: TextModel) -> None:
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    hook = network.register_forward_hook(lambda *_: pytest.fail("somebody else's hook"))
    public = textleak.wrap(network, model.tokenizer)
    hook.remove()
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1.0)
    assert all(torch.equal(public.parameters[name], before[name]) for name in before)
    public.encode([TEXT])


def test_the_text_behind_a_step_of_one_s_own_is_found(network: nn.Module, model: TextModel) -> None:
    public = textleak.wrap(network, model.tokenizer)
    before = {f"module.{name}": t.clone() for name, t in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    backward(network, model)
    optimizer.step()
    shared = textleak.from_update(public, before, network.state_dict(), client=STEP)
    assert words(textleak.recover(shared, public, "auto")) == TEXT
    sent = textleak.from_update(public, None, network.state_dict(), client=f"{STEP},share=weights")
    assert words(textleak.recover(sent, public, "auto")) == TEXT


def test_a_saved_update_is_read_as_any_gradient(network: nn.Module, model: TextModel, tmp_path: Path) -> None:
    public = textleak.wrap(network, model.tokenizer)
    backward(network, model)
    known = SideInformation(batch_size=1)
    shared = textleak.from_gradients(public, gradients_of(network), known=known)
    shared.save(tmp_path / "step.safetensors")
    loaded = textleak.SharedGradient.load(tmp_path / "step.safetensors")
    assert loaded.known == known
    assert loaded.share == "all"
    assert words(textleak.recover(loaded, public, "auto")) == TEXT


def test_frozen_parameters_are_not_what_a_client_trains(network: nn.Module, model: TextModel) -> None:
    network.requires_grad_(False)
    with pytest.raises(InputError, match="No parameter"):
        textleak.wrap(network, model.tokenizer)
    network.classifier.requires_grad_(True)
    assert set(textleak.wrap(network, model.tokenizer).trainable) == {"classifier.weight", "classifier.bias"}


def test_adapters_are_trained_alone(network: nn.Module, model: TextModel) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"], lora_dropout=0.0)
    wrapped = adapted(network, config)
    public = textleak.wrap(wrapped, model.tokenizer)
    assert all(".lora_" in name or name.startswith("classifier") for name in public.trainable)
    before = peft.get_peft_model_state_dict(wrapped)
    before = {name: t.clone() for name, t in before.items()}
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.1)
    backward(wrapped, model)
    optimizer.step()
    after = peft.get_peft_model_state_dict(wrapped)
    shared = textleak.from_update(public, before, after, client=STEP)
    assert set(shared.gradients) == set(public.trainable)
    moved = [name for name, t in shared.gradients.items() if t.any()]
    assert moved
    assert all("lora_A" not in name for name in moved)  # B is 0 before the first step


def test_what_load_model_is_not_for_is_told(network: nn.Module) -> None:
    with pytest.raises(InputError, match="was given a BertForSequenceClassification") as told:
        textleak.load_model(network)  # type: ignore[arg-type]
    assert "textleak.wrap(network, tokenizer)" in told.value.fix


def test_what_can_t_be_wrapped_is_told(
    network: nn.Module, model: TextModel, toy_model: Callable[..., TextModel]
) -> None:
    with pytest.raises(InputError, match="Linear can't be wrapped"):
        textleak.wrap(nn.Linear(2, 2), model.tokenizer)
    with pytest.raises(InputError, match="no head"):
        textleak.wrap(network.bert, model.tokenizer)
    with pytest.raises(InputError, match="doesn't do causal-lm"):
        textleak.wrap(network, model.tokenizer, task="causal-lm")
    with pytest.raises(InputError, match="tokens up to number"):
        textleak.wrap(network, toy_model("gpt2", task="classification").tokenizer)
    network.bert.pooler.dense.weight = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(InputError, match="quantized") as told:
        textleak.wrap(network, model.tokenizer)
    assert "adapters" in told.value.why


def test_what_is_of_another_model_is_told(network: nn.Module, model: TextModel) -> None:
    public = textleak.wrap(network, model.tokenizer)
    state = network.state_dict()
    other = {name: tensor + 1 for name, tensor in state.items()}
    with pytest.raises(InputError, match="weights before are not those of"):
        textleak.from_update(public, other, state, client=STEP)
    with pytest.raises(InputError, match="Unknown parameter in the update"):
        textleak.from_update(public, None, {**state, "pooler.new": torch.ones(3)}, client=STEP)
    with pytest.raises(InputError, match="not finite"):
        textleak.from_update(
            public, None, {**state, "classifier.bias": torch.full((3,), float("nan"))}, client=STEP
        )
    with pytest.raises(InputError, match="sends no gradients"):
        textleak.from_gradients(public, state, client=STEP)
    with pytest.raises(InputError, match="changes no weights"):
        textleak.from_update(public, None, state, client="train-mode")


def test_a_parameter_that_is_not_the_model_s_may_be_there_unmoved(
    network: nn.Module, model: TextModel
) -> None:
    public = textleak.wrap(network, model.tokenizer)
    state = {**network.state_dict(), "cls.unused": torch.ones(3)}
    shared = textleak.from_update(public, state, state, client=STEP)
    assert not any(tensor.any() for tensor in shared.gradients.values())
