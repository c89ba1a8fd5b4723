"""A GPU finds what the CPU finds: the same tokens from the same gradient and seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import ToyModel
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.cli.bench import measure, text_case
from textleak.clients.view import view_of
from textleak.events import Recovery
from textleak.models import TextModel, load_model
from textleak.private.share import share
from textleak.proof.certificate import certify
from textleak.shared.gradient import SharedGradient

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and there is none here"),
]

DEVICE = "cuda"
SENTENCE = "the cat sat on the mat"
QUICK: dict[str, dict[str, object]] = {
    "match": {"budget": 600},
    "dlg": {"steps": 4, "restarts": 2},
    "idlg": {"steps": 4, "restarts": 2},
    "tag": {"steps": 4, "restarts": 2},
    "cosine": {"steps": 4, "restarts": 2},
}

OnGpu = Callable[[str, str], TextModel]


@pytest.fixture
def on_gpu(toy_folder: Callable[[str], Path]) -> OnGpu:
    """The toy model of a family on the GPU."""

    def load(family: str, task: str) -> TextModel:
        return load_model(
            str(toy_folder(family)), weights="random", task=task, device=DEVICE, num_labels=3, weights_seed=0
        )

    return load


def read_back(shared: SharedGradient, folder: Path) -> SharedGradient:
    shared.save(folder / "gradient.safetensors")
    return SharedGradient.load(folder / "gradient.safetensors")


def run(attack: str, shared: SharedGradient, model: TextModel, **options: object) -> Recovery:
    steps = begin(ATTACKS.build(attack, options), shared, model, seed=0)
    return to_end(steps)


def tokens(recovery: Recovery) -> list[list[int]]:
    return [[position.id for position in sentence.positions] for sentence in recovery.sentences]


@pytest.mark.parametrize(
    ("family", "task"),
    [
        ("bert", "classification"),
        ("albert", "classification"),
        ("gpt2", "classification"),
        ("gpt2", "causal-lm"),
        ("llama", "causal-lm"),
        ("bert", "masked-lm"),
    ],
)
def test_match_finds_the_same_tokens_on_a_gpu(
    family: str, task: str, toy_model: ToyModel, on_gpu: OnGpu, tmp_path: Path
) -> None:
    here, there = toy_model(family, task=task), on_gpu(family, task)
    shared, _ = share(here, [SENTENCE], seed=1)
    shared = read_back(shared, tmp_path)
    found, expected = (
        run("match", shared, there, **QUICK["match"]),
        run("match", shared, here, **QUICK["match"]),
    )
    assert tokens(found) == tokens(expected)
    assert (
        certify(view_of(shared, there), found.sentences).verified
        == certify(view_of(shared, here), found.sentences).verified
    )


@pytest.mark.parametrize("attack", sorted(QUICK))
@pytest.mark.parametrize("source", ["disk", "memory"])
def test_every_attack_runs_on_a_gpu(attack: str, source: str, on_gpu: OnGpu, tmp_path: Path) -> None:
    model = on_gpu("bert", "classification")
    shared, _ = share(model, [SENTENCE], seed=1)
    recovery = run(
        attack, read_back(shared, tmp_path) if source == "disk" else shared, model, **QUICK[attack]
    )
    assert len(recovery.sentences) == 1
    assert recovery.final_loss is not None
    assert math.isfinite(recovery.final_loss)


def test_the_client_shares_the_same_gradient_on_a_gpu(toy_model: ToyModel, on_gpu: OnGpu) -> None:
    mine, secret = share(toy_model("bert", task="masked-lm"), [SENTENCE, "a dog ran"], seed=3)
    other, other_secret = share(on_gpu("bert", "masked-lm"), [SENTENCE, "a dog ran"], seed=3)
    assert other_secret == secret
    assert other.model == mine.model
    for name, gradient in mine.gradients.items():
        torch.testing.assert_close(other.gradients[name].cpu(), gradient, rtol=1e-4, atol=1e-6)


def test_factored_and_formed_gradients_agree_on_a_gpu(toy_folder: Callable[[str], Path]) -> None:
    model = load_model(str(toy_folder("bert")), weights="random", device=DEVICE, dtype="float64")
    row = measure(
        text_case(model, tokens=6, candidates=3, seed=0), tokens=6, objective="squared-l2", repeats=1
    )
    assert row["max_relative_difference"] <= 1e-5
