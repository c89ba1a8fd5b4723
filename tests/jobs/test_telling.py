"""What an audit makes of the answers of an update."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import ToyModel
from textleak import inference
from textleak.inference import Findings
from textleak.inference.base import Told
from textleak.jobs.telling import telling_of


@pytest.mark.parametrize(("steps", "taken_for"), [(3, 3), (1, 1), ("more than 1", 1), (None, 1)])
def test_steps_that_are_not_told_in_full_are_taken_for_as_many_as_show(
    steps: object, taken_for: int, toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch
):
    model = toy_model("bert")
    answers: dict[str, Any] = {"optimizer": "adamw", "learning rate": 2e-4, "steps": steps}
    told = tuple(Told(what=what, value=value, evidence="") for what, value in answers.items())
    monkeypatch.setattr(inference, "told", lambda *_, **__: Findings(told=told, client=None))

    telling = telling_of(dict(model.parameters), model, kind="update")

    assert telling.nearest_steps == f"fedavg:optimizer=adamw,lr=0.0002,steps={taken_for}"
