"""The Trainer's callback records what the Trainer's own steps did, and puts an audit's figures into its log.

The Trainer, which loads much that nothing else needs, is loaded by the tests, so that of several processes one does so.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.conftest import ToyModel
from textleak.errors import AttackError, InputError
from textleak.integrations.recording import Recording
from textleak.models import TextModel
from textleak.shared.gradient import SharedGradient

if TYPE_CHECKING:
    from transformers import Trainer

    from textleak.integrations.transformers import LeakageCallback

EIGHT = (
    "the cat sat",
    "a dog ran home",
    "he read",
    "she wrote a letter",
    "red tea",
    "blue car",
    "no rain",
    "old sun",
)
FIGURES = {"verdict": "PARTLY", "token_match_rate": 0.25, "token_recall": None, "proved_tokens": 3}


def recorder(**options: Any) -> LeakageCallback:
    from textleak.integrations.transformers import LeakageCallback

    return LeakageCallback(**options)


def trainer(model: TextModel, out: Path, callbacks: Any = (), **arguments: Any) -> Trainer:
    """As a script has it, everything at its default but what keeps a test quiet and small."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    rows = [{**model.tokenizer(text), "labels": at % 3} for at, text in enumerate(EIGHT)]
    return Trainer(
        model=copy.deepcopy(model.network).requires_grad_(True),
        args=TrainingArguments(
            output_dir=str(out),
            num_train_epochs=1,
            per_device_train_batch_size=2,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=True,
            **arguments,
        ),
        train_dataset=rows,  # type: ignore[arg-type]
        processing_class=model.tokenizer,
        data_collator=DataCollatorWithPadding(model.tokenizer),
        callbacks=list(callbacks),
    )


def test_the_default_step_and_the_whole_training_are_recorded_as_they_are(
    toy_model: ToyModel, tmp_path: Path
):
    callback = recorder(truth=True)
    run = trainer(toy_model("bert"), tmp_path, [callback])
    before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    run.train()
    step, whole = callback.recordings
    assert step.file == tmp_path / "audit" / "step-1.safetensors"
    assert step.client[0] == "train-mode"
    assert step.client[1].startswith("fedavg:optimizer=adamw,lr=5e-05,steps=1")
    assert step.notes == ()
    assert "steps=4,batch_size=2" in whole.client[1]
    assert "from 5e-05 to 1.25e-05" in whole.notes[0]  # the Trainer's rate falls from its first step on
    sent = SharedGradient.load(whole.file)
    assert sent.known.batch_size == 8
    for name, parameter in run.model.named_parameters():
        assert torch.equal(sent.gradients[name], parameter.detach() - before[name])


def test_steps_bear_the_trainers_numbers(toy_model: ToyModel, tmp_path: Path):
    callback = recorder(at=(), every=2, end=False, out=tmp_path / "seen", sends="gradient")
    trainer(toy_model("bert"), tmp_path, [callback], bf16=True).train()
    assert [recording.file.name for recording in callback.recordings] == [
        "step-2.safetensors",
        "step-4.safetensors",
    ]
    assert callback.recordings[0].client == ("train-mode", "autocast")


def test_figures_of_an_audit_are_in_the_log(
    toy_model: ToyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Recording, "audit", lambda recording, time_limit: FIGURES)
    run = trainer(toy_model("bert"), tmp_path)
    callback = recorder(audit=True).attach(run)
    run.train()
    logged = {key: value for entry in run.state.log_history for key, value in entry.items()}
    assert logged["leakage/step-1/found"] == 0.5
    assert logged["leakage/step-1/token_match_rate"] == 0.25
    assert logged["leakage/round/proved_tokens"] == 3
    assert "leakage/step-1/token_recall" not in logged
    assert callback.audits.keys() == {"step-1.safetensors", "round.safetensors"}


def test_an_audit_that_fails_does_not_end_the_training(
    toy_model: ToyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def failing(recording: object, time_limit: str) -> None:
        raise AttackError("It went wrong.")

    monkeypatch.setattr(Recording, "audit", failing)
    run = trainer(toy_model("bert"), tmp_path, [recorder(audit=True, end=False)])
    with pytest.warns(UserWarning, match="was not audited"):
        run.train()
    assert run.state.global_step == 4


def test_a_trainer_without_a_tokenizer_is_told_what_to_give(toy_model: ToyModel, tmp_path: Path):
    run = trainer(toy_model("bert"), tmp_path, [recorder()])
    run.callback_handler.processing_class = None
    with pytest.raises(InputError, match="no tokenizer"):
        run.train()
