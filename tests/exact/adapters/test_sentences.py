"""Sentences come back from adapters' gradients of low rank; what doesn't is said, and nothing is vouched for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import textleak
from tests.conftest import ToyModel
from tests.exact.adapters.conftest import Seen
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.clients.view import View
from textleak.events import Recovery, Stop
from textleak.exact.adapters.measured import measures
from textleak.models import TextModel
from textleak.models.decoding import to_sentence
from textleak.proof.certificate import certify

TWO = ("a dog ran home at night again", "he read the letter of the doctor")


def attacked(view: View, model: TextModel, attack: str = "span") -> Recovery:
    return to_end(begin(ATTACKS.build(attack, {}), view.shared, model))


def rows(recovery: Recovery) -> list[tuple[int, ...]]:
    return sorted(tuple(p.id for p in sentence.positions) for sentence in recovery.sentences)


@pytest.mark.parametrize(
    ("family", "attack", "sentences", "know"),
    [
        ("llama", "auto", TWO[:1], None),
        ("qwen2", "span", TWO, None),
        ("llama", "span", TWO, "nothing"),
    ],
)
def test_a_batch_comes_back_whole_and_proved(
    family: str, attack: str, sentences: tuple[str, ...], know: str | None, wide_model: ToyModel, seen: Seen
) -> None:
    model = wide_model(family)
    view = seen(model, sentences, know=know)
    assert measures(view)
    recovery = attacked(view, model, attack)
    assert rows(recovery) == sorted(model.encode(sentences).sentences)
    assert recovery.stop is Stop.VERIFIED


def test_an_encoders_sentence_comes_back_with_its_class(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model("bert", task="classification")
    sentence = "the cat sat at the house and the dog ran out of it"
    recovery = attacked(seen(model, [sentence]), model)
    assert rows(recovery) == list(model.encode([sentence]).sentences)
    assert recovery.stop is Stop.VERIFIED


def test_several_sentences_of_an_encoder_come_back_with_their_classes(
    wide_model: ToyModel, seen: Seen
) -> None:
    model = wide_model("bert", task="classification")
    recovery = attacked(seen(model, TWO), model)
    assert rows(recovery) == sorted(model.encode(TWO).sentences)
    assert recovery.stop is Stop.VERIFIED


@pytest.mark.parametrize(("task", "know"), [("classification", "nothing"), ("masked-lm", None)])
def test_of_several_sentences_whose_gradients_arent_told_apart_the_tokens_are_listed(
    task: str, know: str | None, wide_model: ToyModel, seen: Seen
) -> None:
    model = wide_model("bert", task=task)
    recovery = attacked(seen(model, TWO, know=know), model)
    assert recovery.stop is not Stop.VERIFIED
    assert "in which order they stand was not" in " ".join(recovery.notes)


def test_an_answer_with_a_wrong_token_or_order_isnt_vouched_for(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model()
    view = seen(model, TWO)
    one, two = model.encode(TWO).sentences
    wrong = [((*one[:2], one[2] + 1, *one[3:]), two), ((one[0], one[2], one[1], *one[3:]), two), (one, one)]
    for answer in wrong:
        assert not certify(view, tuple(to_sentence(model, row) for row in answer)).verified
    assert certify(view, tuple(to_sentence(model, row) for row in (one, two))).verified


def test_the_first_round_is_no_sign_of_safety(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model()
    recovery = attacked(seen(model, TWO, at=0), model)
    assert not recovery.sentences or all(p.id < 0 for s in recovery.sentences for p in s.positions)
    assert "exactly 0" in " ".join(recovery.notes)
    assert "nothing about safety" in " ".join(recovery.notes)


def test_of_another_gradient_nothing_is_told(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model()
    view = seen(model, TWO)
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: torch.randn(g.shape, generator=generator) * g.std() for name, g in view.shared.gradients.items()
    }
    recovery = attacked(
        dataclasses.replace(view, shared=dataclasses.replace(view.shared, gradients=noise)), model
    )
    assert recovery.stop is not Stop.VERIFIED
    assert all(p.id < 0 for sentence in recovery.sentences for p in sentence.positions)
    assert "not found" in " ".join(recovery.notes)


def test_gradients_as_wide_as_their_inputs_are_left_to_spans(wide_model: ToyModel, seen: Seen) -> None:
    assert not measures(seen(wide_model(), TWO, rank=64))


@pytest.mark.slow
@pytest.mark.pretrained
def test_a_sentence_comes_back_from_smollm2s_adapters(seen: Seen) -> None:
    model = textleak.load_model("smollm2", weights="pretrained", task="causal-lm")
    view = seen(model, ["The committee knows whose efforts to achieve peace the world should honor."], rank=8)
    recovery = attacked(view, model)
    assert rows(recovery) == sorted(
        model.encode(["The committee knows whose efforts to achieve peace the world should honor."]).sentences
    )
    assert recovery.stop is Stop.VERIFIED


SENTENCE = "the cat sat at the house and the dog ran out of it"


def test_what_the_network_reads_comes_back_where_labels_dont(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model("bert", task="masked-lm")
    recovery = attacked(seen(model, [SENTENCE], rank=8), model)
    (found,) = rows(recovery)
    (true,) = model.encode([SENTENCE]).sentences
    assert len(found) == len(true)
    assert all(token in (own, -1) for token, own in zip(found, true, strict=True))
    assert sum(token >= 0 for token in found) > len(true) / 2
    assert recovery.stop is not Stop.VERIFIED


def test_a_class_that_no_fit_told_is_solved_for_with_the_text(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model("llama", task="classification")
    view = seen(model, [SENTENCE], rank=8)
    recovery = attacked(view, model)
    assert rows(recovery) == [*model.encode([SENTENCE]).sentences]
    assert all(isinstance(sentence.label, int) for sentence in recovery.sentences)
    assert not any("soft" in note for note in recovery.notes)
    assert recovery.stop is Stop.VERIFIED
