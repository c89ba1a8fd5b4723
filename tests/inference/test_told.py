"""What updates tell before any attack, on updates that plain training loops made."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import ToyModel
from tests.inference.recorded import Settings, record
from textleak.errors import InputError
from textleak.inference import told


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_adamw_s_first_step_tells_its_rate(toy_model: ToyModel, decay: float):
    recorded = record(toy_model("bert"), Settings(lr=3.1e-4, weight_decay=decay, dropout=0.1, seed=1))

    findings = told(recorded.sent, toy_model("bert"), before=recorded.before, after=recorded.after)

    assert findings.value("optimizer") == "adamw"
    assert findings.value("learning rate") == pytest.approx(3.1e-4, rel=0.01)
    assert findings.value("steps") == 1
    assert findings.client is not None
    assert findings.client[-1].startswith("fedavg:optimizer=adamw,lr=0.00031")


def test_a_gradient_is_told_from_a_difference_of_weights(toy_model: ToyModel):
    model = toy_model("bert")
    gradient = record(model, Settings(optimizer=None))
    update = record(model, Settings(optimizer="sgd", lr=1e-3))

    assert told(gradient.sent, model).value("sent") == "gradient"
    assert told(update.sent, model).value("sent") == "update"


def test_the_vocabulary_is_that_of_the_batch(toy_model: ToyModel):
    model = toy_model("bert")
    recorded = record(model, Settings(optimizer="adamw", weight_decay=0.1, seed=2))
    assert recorded.before is not None
    table = model.word_embedding.weight
    name = next(name for name, parameter in model.parameters.items() if parameter is table)
    moved = (recorded.sent[name].abs() > 4e-5).any(1).nonzero().flatten().tolist()

    assert told(recorded.sent, model, after=recorded.after).value("vocabulary") == moved


def test_lora_s_rank_and_modules_are_in_the_names(toy_model: ToyModel):
    pytest.importorskip("peft")
    model = toy_model("bert")
    recorded = record(model, Settings(rank=5, lr=2e-4))

    findings = told(recorded.sent, model, before=recorded.before, after=recorded.after)

    assert findings.value("LoRA") == {"rank": 5, "targets": ["query", "value"]}
    assert findings.value("steps") == 1


@pytest.mark.parametrize("sent", [{}, {"x": torch.tensor([float("nan")])}])
def test_nothing_and_what_is_not_finite_are_errors(toy_model: ToyModel, sent: dict[str, torch.Tensor]):
    with pytest.raises(InputError):
        told(sent, toy_model("bert"))
