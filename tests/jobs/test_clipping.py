"""The norm that a text's gradient was clipped to before a step of Adam's, as its smallest entries' moves tell."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import pytest

import textleak
from textleak.clients.view import view_of
from textleak.events import Recovery, Stop
from textleak.exact.second_parts import view_as_seen
from textleak.jobs.clipping import may_be_clipped, with_clipping
from textleak.models.decoding import to_sentence
from textleak.models.text import TextModel
from textleak.shared.gradient import SharedGradient

STEP = "fedavg:optimizer=adamw,lr=1e-4,steps=1,weight_decay=0.01"


PAIRS = ("the cat sat [SEP] on the mat", "we ran")


@functools.cache
def _tiny() -> TextModel:
    return textleak.load_model("bert-tiny", weights="random")


def _sent(
    client: str, share: str = "all", texts: Sequence[str] = ("the cat sat on the mat", "we ran")
) -> tuple[TextModel, SharedGradient, Recovery]:
    """An update of two sentences as a server takes it that doesn't know of clipping, and the right texts, unproved."""
    model = _tiny()
    shared, secret = textleak.share(model, list(texts), labels=[1, 0], client=client.split("+"), share=share)
    kinds = tuple(
        (name, {**options, "max_grad_norm": None} if name == "fedavg" else options)
        for name, options in shared.client.kinds
    )
    assumed = dataclasses.replace(shared, client=dataclasses.replace(shared.client, kinds=kinds))
    assert secret.labels is not None
    texts = tuple(
        to_sentence(model, ids, label=label) for ids, label in zip(secret.ids, secret.labels, strict=True)
    )
    return model, assumed, Recovery(sentences=texts, stop=Stop.CONVERGED, final_loss=None)


def test_a_text_whose_gradient_was_clipped_before_adams_step_is_proved_at_the_norm_that_fits() -> None:
    model, shared, recovery = _sent(f"{STEP},max_grad_norm=0.005")

    found, norm = with_clipping(recovery, shared, model, view_of(shared, model))

    assert found.stop is Stop.VERIFIED
    assert norm == pytest.approx(0.005, rel=1e-9)


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
def test_a_text_of_two_parts_is_proved_at_the_norm_that_fits_as_well(*, told: bool) -> None:
    model, shared, recovery = _sent(f"pairs+{STEP},max_grad_norm=0.005", texts=PAIRS)
    if not told:
        kinds = tuple(kind for kind in shared.client.kinds if kind[0] != "pairs")
        shared = dataclasses.replace(shared, client=dataclasses.replace(shared.client, kinds=kinds))

    found, norm = with_clipping(recovery, shared, model, view_as_seen(shared, model))

    assert found.stop is Stop.VERIFIED
    assert norm == pytest.approx(0.005, rel=1e-9)


def test_a_wrong_text_is_not_proved_by_any_norm() -> None:
    model, shared, recovery = _sent(f"{STEP},max_grad_norm=0.005")
    first, second = recovery.sentences
    wrong = to_sentence(model, tuple(reversed([p.id for p in first.positions])), label=1)
    recovery = dataclasses.replace(recovery, sentences=(wrong, second))

    assert with_clipping(recovery, shared, model, view_of(shared, model)) == (recovery, None)


@pytest.mark.parametrize(
    ("client", "share"),
    [
        (STEP, "all"),  # nothing was clipped
        (f"{STEP},max_grad_norm=0.005", "no-embeddings"),  # the norm is of more than was shared
    ],
)
def test_nothing_is_fitted_where_no_norm_shows(client: str, share: str) -> None:
    model, shared, recovery = _sent(client, share)

    assert may_be_clipped(recovery, shared, model)
    assert with_clipping(recovery, shared, model, view_of(shared, model)) == (recovery, None)


@pytest.mark.parametrize(
    "client", ["fedavg:optimizer=sgd,lr=0.01,steps=1", "fedavg:optimizer=adamw,lr=1e-4,steps=2"]
)
def test_only_one_step_of_adams_tells_what_was_clipped(client: str) -> None:
    model, shared, recovery = _sent(client)

    assert not may_be_clipped(recovery, shared, model)


def test_an_answer_that_is_proved_or_has_an_open_place_is_left_as_it_is() -> None:
    model, shared, recovery = _sent(STEP)
    proved = dataclasses.replace(recovery, stop=Stop.VERIFIED)
    first, second = recovery.sentences
    cut = to_sentence(model, (*[p.id for p in first.positions][:-1], -1), label=1)

    assert not may_be_clipped(proved, shared, model)
    assert not may_be_clipped(dataclasses.replace(recovery, sentences=(cut, second)), shared, model)
