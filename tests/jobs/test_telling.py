"""What an audit makes of the answers of an update."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.conftest import ToyModel
from textleak import inference
from textleak.inference import Findings
from textleak.inference.base import Told
from textleak.inference.rate import TIMES_STEPS
from textleak.jobs.files import drawn_here
from textleak.jobs.found.known import with_shown
from textleak.jobs.telling import Telling, telling_of
from textleak.shared.known import SideInformation

ADAMW: dict[str, Any] = {"optimizer": "adamw", "learning rate": 2e-4}
TOGETHER: dict[str, Any] = {"learning rate": {TIMES_STEPS: 6e-4}}


@pytest.mark.parametrize(
    ("answers", "taken_for"),
    [
        ({**ADAMW, "steps": 3}, "fedavg:optimizer=adamw,lr=0.0002,steps=3"),
        ({**ADAMW, "steps": 1}, "fedavg:optimizer=adamw,lr=0.0002,steps=1"),
        ({**ADAMW, "steps": "more than 1"}, "fedavg:optimizer=adamw,lr=0.0002,steps=1"),
        ({**ADAMW, "steps": None}, "fedavg:optimizer=adamw,lr=0.0002,steps=1"),
        (
            {**ADAMW, "steps": 3, "weight decay": 0.01},
            "fedavg:optimizer=adamw,lr=0.0002,steps=3,weight_decay=0.01",
        ),
        ({**ADAMW, **TOGETHER, "steps": "more than 1"}, "fedavg:optimizer=adamw,lr=0.0003,steps=2"),
        ({**ADAMW, **TOGETHER, "steps": None}, "fedavg:optimizer=adamw,lr=0.0006,steps=1"),
        (
            {"optimizer": "sgd", "steps": "more than 1", "dropout": 0.1},
            "fedavg:optimizer=sgd,lr=0.01,steps=2",
        ),
        ({"optimizer": "sgd", "steps": "more than 1", "dropout": 0.0}, None),
        ({"optimizer": "sgd", "steps": 1, "dropout": 0.1}, None),
    ],
)
def test_steps_that_are_not_told_in_full_are_taken_for_what_shows(
    answers: dict[str, Any], taken_for: str | None, toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch
):
    model = toy_model("bert")
    told = tuple(Told(what=what, value=value, evidence="") for what, value in answers.items())
    monkeypatch.setattr(inference, "told", lambda *_, **__: Findings(told=told, client=None))

    telling = telling_of(dict(model.parameters), model, kind="update")

    assert telling.nearest_steps == taken_for


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (SideInformation(), SideInformation(batch_size=1, lengths=(8,))),
        (SideInformation(batch_size=1), SideInformation(batch_size=1, lengths=(8,))),
        (SideInformation(labels=(0,)), SideInformation(batch_size=1, lengths=(8,), labels=(0,))),
        (SideInformation(batch_size=2), SideInformation(batch_size=2)),  # two equal sentences show as one
        (SideInformation(labels=(0, 1)), SideInformation(labels=(0, 1))),
    ],
)
def test_a_file_s_own_word_is_kept_and_what_the_update_tells_is_added(
    said: SideInformation, known: SideInformation
):
    telling = Telling(kind="update", moved=True, told=(), client=None, sentences=1, tokens=8)

    assert with_shown(said, telling) == known


@pytest.mark.parametrize(
    ("source", "doubtful"),
    [("package minilm; classifier.weight, classifier.bias random, seed 3", True), ("folder tuned", False)],
)
def test_a_head_that_was_drawn_here_is_said_to_be_no_client_s(
    toy_model: ToyModel, source: str, doubtful: bool
) -> None:
    model = dataclasses.replace(toy_model("bert"), weights="pretrained", source=source)

    assert any("classifier.bias" in doubt and "--model" in doubt for doubt in drawn_here(model)) == doubtful
