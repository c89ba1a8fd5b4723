"""A text comes back from what LoRA's B reads, while its tokens don't fill that; where they do, it is said."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import textleak
from tests.conftest import ToyModel
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.clients import CLIENTS, composed
from textleak.clients.view import view_of
from textleak.events import Recovery, Stop
from textleak.exact.adapters.measured import FIRST_ROUND, first_layers
from textleak.exact.adapters.narrow import narrow_spans, reads_narrow
from textleak.exact.adaptive.spans import bounded_span
from textleak.models import TextModel
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

SENTENCE = "a dog ran home at night again"
ADAMW: dict[str, Any] = {"optimizer": "adamw", "lr": 2e-4, "steps": 1}
SGD: dict[str, Any] = {"optimizer": "sgd", "lr": 1e-2, "steps": 1}


def sent(
    model: TextModel, *sentences: str, rank: int = 16, at: int = 0, dropout: float = 0.0, **step: Any
) -> SharedGradient:
    kinds = [CLIENTS.build("train-mode", {})] if dropout else []
    kinds += [CLIENTS.build("lora", {"rank": rank, "at": at, "dropout": dropout})]
    kinds += [CLIENTS.build("fedavg", step)] if step else []
    return share(model, sentences, client=composed(kinds), seed=1)[0]


def attacked(shared: SharedGradient, model: TextModel) -> Recovery:
    return to_end(begin(ATTACKS.build("span", {}), shared, model))


def rows(recovery: Recovery) -> list[tuple[int, ...]]:
    return [tuple(p.id for p in sentence.positions) for sentence in recovery.sentences]


@pytest.mark.parametrize("step", [{}, ADAMW, SGD], ids=("gradient", "adamw", "sgd"))
def test_the_first_rounds_text_comes_back_and_is_proved(step: dict[str, Any], wide_model: ToyModel) -> None:
    model = wide_model()
    recovery = attacked(sent(model, SENTENCE, **step), model)
    assert rows(recovery) == list(model.encode([SENTENCE]).sentences)
    assert recovery.stop is Stop.VERIFIED


def test_a_fresh_step_of_adamw_in_a_later_round_gives_it_away_too(wide_model: ToyModel) -> None:
    model = wide_model()
    recovery = attacked(sent(model, SENTENCE, at=3, **ADAMW), model)
    assert rows(recovery) == list(model.encode([SENTENCE]).sentences)
    assert recovery.stop is Stop.VERIFIED


def test_the_same_word_twice_comes_back_twice(wide_model: ToyModel) -> None:
    model = wide_model()
    sentence = "the dog and the dog"
    recovery = attacked(sent(model, sentence, **ADAMW), model)
    assert rows(recovery) == list(model.encode([sentence]).sentences)


def test_more_tokens_than_numbers_hide_the_text_and_that_is_said(wide_model: ToyModel) -> None:
    model = wide_model()
    recovery = attacked(sent(model, SENTENCE, rank=2, **ADAMW), model)
    assert all(p.id < 0 for sentence in recovery.sentences for p in sentence.positions)
    assert recovery.stop is not Stop.VERIFIED
    assert "fill" in " ".join(recovery.notes)


def test_an_encoders_first_round_comes_back_through_what_b_reads(wide_model: ToyModel) -> None:
    model = wide_model("bert", task="classification")
    recovery = attacked(sent(model, SENTENCE, rank=32, **ADAMW), model)
    (row,) = model.encode([SENTENCE]).sentences
    proved = [p for sentence in recovery.sentences for p in sentence.positions if p.proved]
    assert len(proved) >= len(row) // 2
    assert all(row[p.position] == p.id for p in proved)


@pytest.mark.parametrize("rank", [2, 32])
def test_it_is_said_that_it_is_the_first_round(rank: int, wide_model: ToyModel) -> None:
    model = wide_model("bert", task="classification")
    recovery = attacked(sent(model, SENTENCE, SENTENCE, rank=rank, **ADAMW), model)
    assert FIRST_ROUND in recovery.notes


def test_a_step_that_leaves_open_whether_a_gradient_is_0_shows_no_span(wide_model: ToyModel) -> None:
    model = wide_model("bert", task="classification")
    view = view_of(sent(model, SENTENCE, **ADAMW), model)
    every_a = first_layers(view.text_model, view.shared)
    assert every_a
    assert not any(view.shared.gradients[layer.weight_name].any() for layer in every_a)
    assert "may be 0" in str(bounded_span(view, every_a))


def test_it_reads_one_repeatable_text_of_a_decoder(wide_model: ToyModel) -> None:
    decoder, encoder = wide_model(), wide_model("bert", task="classification")

    def reads(model: TextModel, *sentences: str, **options: Any) -> bool:
        return reads_narrow(view_of(sent(model, *sentences, **options), model))

    assert reads(decoder, SENTENCE)
    assert reads(decoder, SENTENCE, **ADAMW)
    assert not reads(decoder, SENTENCE, SENTENCE)
    assert not reads(decoder, SENTENCE, dropout=0.1)
    assert not reads(decoder, SENTENCE, **{**ADAMW, "steps": 3})
    assert not reads(encoder, SENTENCE)


def test_of_noise_nothing_is_told(wide_model: ToyModel) -> None:
    model = wide_model()
    shared = sent(model, SENTENCE, **ADAMW)
    generator = torch.Generator().manual_seed(0)
    noise = {
        name: torch.randn(g.shape, generator=generator).sign() * 2e-4
        for name, g in shared.gradients.items()
        if "lora_B" in name
    }
    recovery = attacked(dataclasses.replace(shared, gradients={**shared.gradients, **noise}), model)
    assert recovery.stop is not Stop.VERIFIED
    assert all(p.id < 0 for sentence in recovery.sentences for p in sentence.positions)


def test_every_later_span_holds_what_the_text_makes_the_layer_read(wide_model: ToyModel) -> None:
    model = wide_model()
    view = view_of(sent(model, SENTENCE, **ADAMW), model)
    narrow = narrow_spans(view)
    assert narrow.clear
    assert narrow.later
    assert all(span.rank < span.size for span in (*narrow.clear, *narrow.later))


@pytest.mark.slow
@pytest.mark.pretrained
def test_a_text_comes_back_from_the_first_step_on_smollm2s_adapters() -> None:
    model = textleak.load_model("smollm2", weights="pretrained", task="causal-lm")
    sentence = "her doctor found nothing wrong."
    recovery = attacked(sent(model, sentence, rank=8, **ADAMW), model)
    assert rows(recovery) == list(model.encode([sentence]).sentences)
    assert recovery.stop is Stop.VERIFIED
