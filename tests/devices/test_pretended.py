"""On a device that holds its tensors apart the same tokens and pictures are found as on the CPU.

The device is pretended (`tests.devices.pretended`); `tests/matching/test_cuda.py` is for a real one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from tests.conftest import ToyModel, write_toy
from tests.devices.pretended import DEVICE, OnDevice, pretended_device
from tests.figures.clients import client_of
from textleak import inference
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.clients import CLIENTS, composed
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES
from textleak.events import Recovery
from textleak.models import TextModel, load_model
from textleak.models.loading.images import load_image_model
from textleak.numerics import least_squares
from textleak.private.share import share
from textleak.proof.certificate import certificate_of, certify
from textleak.shared.gradient import SharedGradient

SENTENCE = "the cat sat on the mat"
TOLD = "lengths,labels,batch-size"
GRAB: dict[str, object] = {"rounds": 1, "steps": 2, "starts": 4, "beams": 2, "sweeps": 1}
LAMP: dict[str, object] = {"steps": 2, "starts": 2, "restarts": 1, "moves": 2, "moves_every": 1}
ToyFolder = Callable[[str], Path]


def there(folder: ToyFolder, family: str = "bert", task: str = "classification") -> TextModel:
    """A toy model on the device."""
    return load_model(
        str(folder(family)), weights="random", task=task, device=str(DEVICE), num_labels=3, weights_seed=0
    )


def run(attack: str, shared: SharedGradient, model: object, **options: object) -> Recovery:
    return to_end(begin(ATTACKS.build(attack, options), shared, model, seed=0))


def tokens(recovery: Recovery) -> list[list[int]]:
    return [[position.id for position in sentence.positions] for sentence in recovery.sentences]


def read_back(shared: SharedGradient, folder: Path) -> SharedGradient:
    shared.save(folder / "gradient.safetensors")
    return SharedGradient.load(folder / "gradient.safetensors")


def test_what_a_device_refuses_is_refused() -> None:
    with pretended_device() as crossings:
        here, held = torch.ones(3), torch.ones(3, device=DEVICE)
        assert held.device == DEVICE
        assert isinstance((held + 1)[[0, 1]].to(here.dtype), OnDevice)
        assert torch.equal((held * torch.tensor(2.0))[torch.tensor([0])].cpu(), torch.tensor([2.0]))
        assert here.to(held).device == DEVICE
        with pytest.raises(RuntimeError, match="same device"):
            _ = held + here
        with pytest.raises(RuntimeError, match="same device"):
            here += held[0]
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, device=DEVICE, generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            numpy.asarray(held)
        before = crossings.numbers
        assert float(held.sum()) == 3
        assert crossings.numbers == before + 1


@pytest.mark.parametrize(
    ("attack", "family", "task", "options"),
    [
        ("auto", "bert", "classification", {}),
        ("dlg", "bert", "classification", {"steps": 2, "restarts": 2}),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("span", "gpt2", "causal-lm", {}),
                ("span", "bert", "classification", {}),
                ("match", "bert", "classification", {"budget": 120}),
                ("tag", "gpt2", "classification", {"steps": 2, "restarts": 2}),
                ("cosine", "bert", "masked-lm", {"steps": 2, "restarts": 2}),
                ("lamp", "bert", "classification", LAMP),
                ("grab", "bert", "classification", GRAB),
            )
        ),
    ],
)
def test_the_same_tokens_are_found(
    attack: str,
    family: str,
    task: str,
    options: dict[str, object],
    toy_model: ToyModel,
    toy_folder: ToyFolder,
    tmp_path: Path,
) -> None:
    here = toy_model(family, task=task)
    parts = "all" if attack in ("dlg", "tag", "cosine", "lamp") else "no-embeddings"
    sent, _ = share(here, [SENTENCE], share=parts, know=TOLD, seed=1)
    shared = read_back(sent, tmp_path)
    expected = run(attack, shared, here, **options)
    with pretended_device():
        model = there(toy_folder, family, task)
        found = run(attack, shared, model, **options)
        verified = certify(view_of(shared, model), found.sentences).verified
    assert tokens(found) == tokens(expected)
    assert verified == certify(view_of(shared, here), expected.sentences).verified
    if attack in ("auto", "span"):
        assert verified


@pytest.mark.parametrize("spec", ["one-step", pytest.param("fedavg:steps=2", marks=pytest.mark.slow)])
def test_what_the_device_s_client_shares_is_read_there(
    spec: str, toy_folder: ToyFolder, tmp_path: Path
) -> None:
    name, _, options = spec.partition(":")
    client = composed([CLIENTS.build(name, {"steps": 2} if options else {})])
    with pretended_device():
        model = there(toy_folder)
        held, secret = share(model, [SENTENCE], client=client, know=TOLD, seed=1)
        on_disk = read_back(held, tmp_path)
        assert {gradient.device for gradient in on_disk.gradients.values()} == {torch.device("cpu")}
        for shared in (held, on_disk):
            recovery = run("auto", shared, model)
            assert tokens(recovery) == [list(ids) for ids in secret.ids]


@pytest.mark.parametrize(
    ("spec", "family", "task"),
    [
        ("train-mode", "bert", "classification"),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("fedavg:optimizer=adamw,lr=5e-5,steps=1", "bert", "classification"),
                ("fedavg:lr=0.01,steps=3", "bert", "classification"),
                ("loss:smoothing=0.1", "bert", "classification"),
                ("one-step", "bert", "token-classification"),
                ("loss:padding=left", "gpt2", "causal-lm"),
            )
        ),
    ],
)
def test_what_is_read_of_other_clients_and_heads_is_the_same_there(
    spec: str, family: str, task: str, tmp_path: Path
) -> None:
    client = client_of(spec)
    wide: dict[str, object] = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 128}
    folder = str(write_toy(family, tmp_path, **(wide if family == "bert" else {"n_embd": 96, "n_head": 4})))
    here = load_model(folder, weights="random", task=task, device="cpu", weights_seed=0)
    sent, secret = share(
        here, [SENTENCE], client=client, share="no-embeddings", know="lengths,batch-size", seed=1
    )
    shared = read_back(sent, tmp_path)
    expected = run("auto", shared, here)
    with pretended_device():
        model = load_model(folder, weights="random", task=task, device=str(DEVICE), weights_seed=0)
        found = run("auto", shared, model)
        certificate = certificate_of(found, view_of(shared, model))
    assert tokens(found) == tokens(expected) == [list(secret.ids[0])]
    assert found.stop is expected.stop
    assert found.stop.settled
    assert certificate.verified == certificate_of(expected, view_of(shared, here)).verified


@pytest.mark.parametrize(
    "spec",
    [
        "train-mode+fedavg:optimizer=adamw,lr=5e-5,steps=2",
        pytest.param("lora:rank=4", marks=pytest.mark.slow),
        pytest.param("fedavg:lr=0.01,steps=4", marks=pytest.mark.slow),
    ],
)
def test_an_update_tells_the_same_there(spec: str, tmp_path: Path) -> None:
    wide: dict[str, object] = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 128}
    folder = str(write_toy("bert", tmp_path, **wide))
    here = load_model(folder, weights="random", device="cpu", weights_seed=0)
    sent, _ = share(here, [SENTENCE], client=client_of(spec), seed=1)
    kind: inference.Kind = "update" if "fedavg" in spec else "gradient"
    expected = inference.told(dict(sent.gradients), here, kind=kind)
    with pretended_device():
        model = load_model(folder, weights="random", device=str(DEVICE), weights_seed=0)
        for place in ("cpu", DEVICE):
            moved = {name: gradient.to(place) for name, gradient in sent.gradients.items()}
            assert inference.told(moved, model, kind=kind) == expected


@pytest.mark.slow
def test_adapters_are_read_there_as_on_the_cpu(
    toy_model: ToyModel, toy_folder: ToyFolder, tmp_path: Path
) -> None:
    pytest.importorskip("peft")
    client = composed([CLIENTS.build("lora", {"rank": 8, "at": 1})])
    sent, secret = share(toy_model(), [SENTENCE], client=client, know=TOLD, seed=1)
    expected = run("auto", read_back(sent, tmp_path), toy_model(), time_limit=20.0)
    with pretended_device():
        model = there(toy_folder)
        held, _ = share(model, [SENTENCE], client=client, know=TOLD, seed=1)
        found = run("auto", held, model, time_limit=60.0)
    assert tokens(found) == tokens(expected) == [list(secret.ids[0])]
    assert found.stop is expected.stop


def test_dropout_on_a_device_follows_the_client_s_own_stream(toy_folder: ToyFolder) -> None:
    client = composed([CLIENTS.build("train-mode", {})])
    with pretended_device():
        model = there(toy_folder)
        state = torch.cuda.get_rng_state(DEVICE).clone()
        (one, _), (same, _), (other, _) = (
            share(model, [SENTENCE], client=client, seed=seed) for seed in (1, 1, 2)
        )
        assert torch.equal(torch.cuda.get_rng_state(DEVICE), state)
        alike = [torch.equal(one.gradients[name], same.gradients[name]) for name in one.gradients]
        unlike = [not torch.equal(one.gradients[name], other.gradients[name]) for name in one.gradients]
    assert all(alike)
    assert any(unlike)


@pytest.mark.parametrize("name", sorted(DEFENSES))
def test_every_defense_works_where_the_gradient_is(name: str, toy_folder: ToyFolder) -> None:
    needed = {
        "gaussian": {"sigma": 1e-3},
        "laplace": {"scale": 1e-3},
        "clip": {"max_norm": 1.0},
        "dpsgd": {"noise_multiplier": 1e-3},
        "prune": {"ratio": 0.5},
        "topk": {"ratio": 0.5},
        "freeze": {"parameters": "embeddings"},
    }
    with pretended_device():
        shared, _ = share(
            there(toy_folder), [SENTENCE], defenses=[DEFENSES.build(name, needed.get(name, {}))]
        )
        assert {gradient.device for gradient in shared.gradients.values()} == {DEVICE}


@pytest.mark.parametrize("attack", ["dlg", pytest.param("cosine", marks=pytest.mark.slow)])
def test_the_same_picture_is_found(attack: str, tmp_path: Path) -> None:
    options: dict[str, object] = {"steps": 3, "restarts": 2}
    here = load_image_model("lenet", size=8, num_labels=5, device="cpu", weights="random")
    picture_1CHW = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sent, _ = share(here, picture_1CHW, [2], know="labels,batch-size")
    shared = read_back(sent, tmp_path)
    expected = run(attack, shared, here, **options)
    with pretended_device():
        model = load_image_model("lenet", size=8, num_labels=5, device=str(DEVICE), weights="random")
        found = run(attack, shared, model, **options)
    numpy.testing.assert_allclose(found.image, expected.image, atol=1e-3)
    assert found.labels == expected.labels


def test_columns_that_follow_from_one_another_have_a_least_answer_on_a_device_too() -> None:
    columns_MN = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    wanted_M1 = torch.tensor([[2.0], [2.0], [0.0]], dtype=torch.float64)
    with pretended_device():
        found = least_squares(columns_MN.to(DEVICE), wanted_M1.to(DEVICE))
        assert found.device == DEVICE
        numpy.testing.assert_allclose(found.cpu(), [[1.0], [1.0]])
