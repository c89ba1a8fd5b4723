"""Embeddings back to tokens."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import FAMILIES, ToyModel
from textleak.models import decoding
from textleak.models.decoding import fixed_tokens, nearest_tokens, to_sentence, unreachable_tokens

METRICS = ("cosine", "l2")


def table(rows: int = 50, size: int = 8) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("metric", METRICS)
def test_a_tokens_own_embedding_decodes_to_it(metric: decoding.Metric) -> None:
    found = nearest_tokens(table()[[3, 7, 49]], table(), metric=metric)
    assert found.ids_NC.flatten().tolist() == [3, 7, 49]
    best = 1.0 if metric == "cosine" else 0.0
    torch.testing.assert_close(found.similarity_NC, torch.full((3, 1), best), atol=2e-3, rtol=0)


def test_cosine_heeds_no_length_and_l2_does() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 10.0]])
    leaning = torch.tensor([[0.4, 0.5]])
    assert nearest_tokens(leaning, rows).ids_NC.item() == 1
    assert nearest_tokens(leaning, rows, metric="l2").ids_NC.item() == 0


@pytest.mark.parametrize("metric", METRICS)
def test_chunks_find_what_the_whole_table_shows(
    metric: decoding.Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    whole = nearest_tokens(asked, table(), candidates=5, metric=metric)
    monkeypatch.setattr(decoding, "_ROWS", 7)
    parts = nearest_tokens(asked, table(), candidates=5, metric=metric)
    assert torch.equal(whole.ids_NC, parts.ids_NC)
    torch.testing.assert_close(whole.similarity_NC, parts.similarity_NC)
    assert (whole.similarity_NC.diff(dim=1) <= 0).all()
    brute = (
        -torch.cdist(asked, table())
        if metric == "l2"
        else torch.nn.functional.cosine_similarity(asked[:, None], table()[None], dim=-1)
    )
    assert torch.equal(whole.ids_NC, brute.topk(5).indices)


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_excluded_is_never_found(metric: decoding.Metric) -> None:
    found = nearest_tokens(table()[[3]], table(), candidates=49, metric=metric, excluded=frozenset({3}))
    assert 3 not in found.ids_NC.flatten().tolist()
    assert len(set(found.ids_NC.flatten().tolist())) == 49


def test_more_candidates_than_tokens_are_all_tokens() -> None:
    assert nearest_tokens(table()[:2], table(4), candidates=9).ids_NC.shape == (2, 4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sentence", ["the cat sat.", "a"])
def test_fixed_tokens_are_what_the_tokenizer_adds(family: str, sentence: str, toy_model: ToyModel) -> None:
    model = toy_model(family)
    (ids,) = model.encode([sentence]).sentences
    inner = model.tokenizer(sentence, add_special_tokens=False)["input_ids"]
    fixed = fixed_tokens(model, len(ids))
    assert len(fixed) == len(ids) - len(inner)
    assert all(ids[position] == token for position, token in fixed.items())


def test_a_sentence_carries_its_positions_and_its_text(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    (ids,) = model.encode(["the cat sat"]).sentences
    sentence = to_sentence(
        model,
        ids,
        confidence=[0.1, 0.2, 0.3, 0.4, 0.5],
        channels=["", "span", "matching", "", ""],
        candidates=[[], [(ids[2], 0.25)], [], [], []],
        label=1,
        label_posterior=[0.2, 0.8],
    )
    assert sentence.text == "the cat sat"
    assert [p.id for p in sentence.positions] == list(ids)
    assert [p.text for p in sentence.positions] == ["[CLS]", "the", "cat", "sat", "[SEP]"]
    assert [p.special for p in sentence.positions] == [True, False, False, False, True]
    assert [p.confidence for p in sentence.positions] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert [p.channel for p in sentence.positions] == ["", "span", "matching", "", ""]
    (candidate,) = sentence.positions[1].candidates
    assert (candidate.id, candidate.text, candidate.score) == (ids[2], "cat", 0.25)
    assert (sentence.label, sentence.label_posterior) == (1, (0.2, 0.8))


def test_an_open_position_has_no_text(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    (ids,) = model.encode(["the cat sat"]).sentences
    sentence = to_sentence(model, [*ids[:2], -1, *ids[3:]])
    assert sentence.text == "the sat"
    assert (sentence.positions[2].id, sentence.positions[2].text) == (-1, "")


def test_a_special_token_in_a_words_place_is_no_special_position(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    (ids,) = model.encode(["the cat sat"]).sentences
    sentence = to_sentence(model, [*ids[:2], model.mask_id + model.vocab_size, *ids[3:]])
    assert [p.special for p in sentence.positions] == [True, False, False, False, True]
    assert sentence.positions[2].masked
    assert sentence.text == "the sat"


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "roberta"])
def test_tokens_of_a_text_can_be_reached_and_special_ones_can_not(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family)
    barred = unreachable_tokens(model)
    assert model.special_ids <= barred
    for sentence in ("the cat sat on the mat.", "a dog ran home"):
        content = model.tokenizer(sentence, add_special_tokens=False)["input_ids"]
        assert not barred & set(content)


def test_a_table_that_was_changed_is_measured_anew() -> None:
    rows = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    asked = torch.tensor([[1.0, 0.9]])
    assert nearest_tokens(asked, rows).ids_NC.item() == 1
    rows[1] *= torch.tensor([8.0, -1.0])
    found = nearest_tokens(asked, rows, candidates=2)
    assert found.ids_NC.tolist() == [[0, 1]]
    assert found.similarity_NC[0, 1] == pytest.approx((8 - 0.9) / (1.81 * 65) ** 0.5)
