"""A classifier's loss that weighs its sentences, untold: all texts are found, and what it weighs is said."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.conftest import write_toy
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.clients import CLIENTS, composed
from textleak.errors import InputError
from textleak.events import Recovery
from textleak.models import load_model
from textleak.models.losses.classes import smoothing_of, weighed
from textleak.private.share import share
from textleak.shared.known import SideInformation
from textleak.shared.public import ONE_STEP

TEXTS = ("the cat sat", "he ran", "it is snow", "she wrote it")
LABELS = (2, 0, 1, 2)
CHANCES = torch.tensor([[0.3, 0.4, 0.3], [0.2, 0.2, 0.6]], dtype=torch.float64)


def read(tmp_path: Path, deviation: float) -> Recovery:
    """What `span` finds behind weighted classes that nobody told, on weights so far from zero."""
    folder = write_toy("bert", tmp_path, hidden_size=64, initializer_range=deviation)
    model = load_model(str(folder), weights="random", task="classification", num_labels=3, device="cpu")
    client = composed([CLIENTS.build("loss", {"weights": "1/2/5"})])
    shared, _ = share(model, TEXTS, LABELS, client=client, share="no-embeddings")
    return to_end(begin(ATTACKS.build("span", {}), dataclasses.replace(shared, client=ONE_STEP), model))


def test_weights_of_classes_show_in_the_gradient(tmp_path: Path) -> None:
    recovery = read(tmp_path, 0.05)
    assert recovery.stop.settled
    assert {(one.text, one.label) for one in recovery.sentences} == set(zip(TEXTS, LABELS, strict=True))
    assert recovery.notes == (
        "The client weighed its classes, as its gradient shows: 1 for 0, 2 for 1, 5 for 2. Where nobody told the batch "
        "size, it may hold the sentences of a class so many times over instead.",
    )


def test_what_rounding_leaves_of_a_weighed_sentence_hides_no_other(tmp_path: Path) -> None:
    # Gradients are so faint here that each one's part shows to some percent alone, and no whole number mends that.
    assert {one.text for one in read(tmp_path, 0.02).sentences} == set(TEXTS)


@pytest.mark.parametrize("factor", [65536.0, 3.0])
def test_a_gradient_that_was_scaled_says_by_how_much_and_is_not_verified(
    factor: float, tmp_path: Path
) -> None:
    folder = write_toy("bert", tmp_path, hidden_size=64, initializer_range=0.05)
    model = load_model(str(folder), weights="random", task="classification", num_labels=3, device="cpu")
    shared, _ = share(model, TEXTS[:2], LABELS[:2], share="no-embeddings")
    scaled = {name: factor * gradient for name, gradient in shared.gradients.items()}
    view = dataclasses.replace(shared, gradients=scaled)
    recovery = to_end(begin(ATTACKS.build("span", {}), view, model))
    assert {one.text for one in recovery.sentences} == set(TEXTS[:2])
    assert not recovery.stop.settled
    assert f"{factor:.6g} times the answer's own" in " ".join(recovery.notes)


def gradient(classes: tuple[int, ...], parts: tuple[float, ...]) -> torch.Tensor:
    """What a loss leaves at the logits that counts each sentence so much."""
    return torch.tensor(parts)[:, None] * (CHANCES - torch.eye(3, dtype=torch.float64)[[*classes]])


def test_the_weights_are_told_by_what_each_class_leaves() -> None:
    found = weighed(gradient((2, 0), (0.75, 0.25)), CHANCES)
    assert found is not None
    assert found[0] == (2, 0)
    assert found[1] == pytest.approx((1.0, 1.0, 3.0))


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param((0.3, 0.7), id="one class, weighed unlike"),
        pytest.param((0.1, 0.1), id="the loss is scaled"),
    ],
)
def test_what_no_weights_of_classes_leave_has_none(parts: tuple[float, float]) -> None:
    assert weighed(gradient((2, 2), parts), CHANCES) is None


def test_a_label_whose_parts_are_nearly_alike_is_not_smoothed() -> None:
    assert smoothing_of((0.0230, 0.0233, 0.9537)) is None
    assert smoothing_of((0.0333336, 0.0333333, 0.9333331)) == (2, pytest.approx(0.1, abs=1e-5))


def test_a_list_that_names_no_side_information_is_refused() -> None:
    with pytest.raises(InputError, match="names no side information"):
        SideInformation.parse(",,,", batch_size=1)
