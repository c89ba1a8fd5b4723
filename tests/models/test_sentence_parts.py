"""What a proof's pass keeps of each sentence adds up to the batch's gradient, whatever its labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.conftest import ToyModel
from textleak.clients.view import View, view_of
from textleak.events import Sentence
from textleak.exact.alone import each_alone
from textleak.models.decoding import to_sentence
from textleak.models.gradient import formed_gradient
from textleak.models.guesses import examples_of
from textleak.models.sentence_parts import Known, moved_by
from textleak.models.sentence_parts import keep as keep_parts
from textleak.private.share import share
from textleak.proof.certificate import certify
from textleak.proof.texts import Text

THREE = ("the cat sat on the mat", "a dog ran home.", "he sat")
ENCODERS = ["bert", "distilbert", "roberta", "albert", "electra"]


def viewed(
    toy_model: ToyModel, family: str, labels: tuple[int, ...], dtype: str = "float64"
) -> tuple[View, list[tuple[int, ...]]]:
    """A batch's view, and its rows."""
    model = toy_model(family, task="classification", num_labels=3, dtype=dtype)
    shared, secret = share(model, THREE, labels)
    return view_of(shared, model), [tuple(ids) for ids in secret.ids]


def keep(view: View, rows: list[tuple[int, ...]]) -> None:
    """Run sentences, all in one pass, and keep what they add to the gradient."""
    for alone in each_alone(view.text_model, rows, [], names=view.kept_apart):
        assert alone.parts is not None
        view.known[alone.row] = alone.parts


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("labels", [(2, 0, 1), (1, 1, 0)])
def test_kept_parts_of_sentences_add_up_to_the_gradient_that_autograd_forms(
    toy_model: ToyModel, family: str, labels: tuple[int, ...]
) -> None:
    view, rows = viewed(toy_model, family, labels)
    batch = examples_of(view.text_model, rows, labels)
    formed = formed_gradient(view.text_model, batch, list(view.shared.gradients))
    keep(view, rows)
    own = view.own(batch)
    assert set(own) == set(formed)
    whole = torch.cat([one.flatten() for one in formed.values()]).norm()
    for name, gradient in formed.items():
        assert float((own[name] - gradient).norm()) <= 1e-13 * float(whole)


def test_sentences_that_were_not_kept_are_run(toy_model: ToyModel) -> None:
    view, rows = viewed(toy_model, "bert", (2, 0, 1))
    batch = examples_of(view.text_model, rows, (2, 0, 1))
    plainly = dict(view.own(batch))
    keep(view, rows[1:])
    assert all(
        torch.allclose(view.own(batch)[name], plainly[name], rtol=1e-9, atol=1e-15) for name in plainly
    )


def test_the_last_label_of_a_sentence_that_is_unlikely_to_have_it_is_run(toy_model: ToyModel) -> None:
    view, rows = viewed(toy_model, "bert", (2, 0, 1))
    keep(view, rows[:1])
    parts = view.known[rows[0]]
    assert parts.shares(2) is not None
    unlikely = dataclasses.replace(parts, chances=(0.6, 0.35, 0.05))
    assert unlikely.shares(2) is None
    assert unlikely.shares(1) == [0.0, 1.0]
    shapes = {name: parameter.shape for name, parameter in view.text_model.parameters.items()}
    assert moved_by(unlikely, 0, 2, shapes, most=4) is None


def test_no_more_numbers_are_kept_than_the_model_has_weights(toy_model: ToyModel) -> None:
    view, rows = viewed(toy_model, "bert", (2, 0, 1))
    keep(view, rows[:1])
    (parts,) = view.known.values()
    weights = sum(p.numel() for p in view.text_model.network.parameters())
    most = weights // parts.numbers
    known: Known = {}
    keep_parts(known, view.text_model, {(row,): parts for row in range(most + 2)})
    assert 0 < len(known) == most


def test_an_answer_that_kept_parts_speak_against_is_run_before_it_is_denied(toy_model: ToyModel) -> None:
    view, rows = viewed(toy_model, "bert", (2, 0, 1), dtype="float32")
    keep(view.double(), rows)
    known = view.double().known
    known[rows[0]], known[rows[1]] = known[rows[1]], known[rows[0]]
    sentences: tuple[Sentence, ...] = tuple(
        to_sentence(view.text_model, row, label=label) for row, label in zip(rows, (2, 0, 1), strict=True)
    )
    assert Text(sentences).complete(view.model)
    assert certify(view, sentences).verified
    wrong = (dataclasses.replace(sentences[0], label=1), *sentences[1:])
    keep(view.double(), rows)
    assert certify(view, wrong).verified is False
