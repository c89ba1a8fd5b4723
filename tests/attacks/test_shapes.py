"""What `match` proposes, and makes of a batch when neither its size nor its sentences' lengths are told."""

from __future__ import annotations

import pytest

import textleak
from tests.conftest import ToyModel
from textleak.attacks.search.shapes import batch_shapes
from textleak.defenses import DEFENSES
from textleak.exact.prefixes import extend_prefixes
from textleak.exact.proposals import Proposals, span_proposals
from textleak.private.share import share

THREE = ("he sat on", "we ran", "a dog")


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_sentences_of_a_causal_model_begin_and_end_where_the_second_block_shows_it(
    family: str, toy_model: ToyModel
) -> None:
    model = toy_model(family, task="causal-lm")
    shared, secret = share(model, THREE, know="nothing", seed=1)
    found = span_proposals(model, shared, longest=None, keep=32)
    assert found is not None
    layers, proposals = found
    prefixes = extend_prefixes(model, shared, layers, proposals, longest=model.max_length - 1)
    assert set(prefixes) == {ids[:-1] for ids in secret.ids}
    lengths = sorted(map(len, secret.ids), reverse=True)
    assert batch_shapes(model, shared, proposals, prefixes) == [
        tuple(lengths[:1]),
        tuple(lengths[:2]),
        tuple(lengths),
    ]


def test_a_causal_batch_of_unknown_size_and_lengths_comes_back(toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="causal-lm")
    shared, secret = share(model, THREE[:2], know="nothing", seed=1)
    recovery = textleak.recover(shared, model, "match", budget=2000)
    assert textleak.score(recovery, secret, model).exact_rate == 1.0


def test_a_first_word_said_twice_is_found_without_positions(toy_model: ToyModel) -> None:
    model = toy_model("llama", task="causal-lm")
    shared, secret = share(model, ["the the cat"], know="nothing", seed=1)
    recovery = textleak.recover(shared, model, "match", budget=2000)
    assert textleak.score(recovery, secret, model).exact_rate == 1.0


def test_a_classifier_without_positions_is_tried_in_the_length_that_the_span_shows(
    toy_model: ToyModel,
) -> None:
    model = toy_model("llama", task="classification")
    shared, secret = share(model, ["he sat"], know="nothing", seed=1)
    found = span_proposals(model, shared, longest=None, keep=32)
    assert found is not None
    assert batch_shapes(model, shared, found[1], [])[0] == (len(secret.ids[0]),)


def test_one_list_for_all_positions_has_every_token_of_the_batch(toy_model: ToyModel) -> None:
    model = toy_model("llama", task="causal-lm")
    shared, secret = share(model, THREE, seed=1)
    found = span_proposals(model, shared, longest=None, keep=2)
    assert found is not None
    _, proposals = found
    assert {token for ids in secret.ids for token in ids[:-1]} <= set(proposals.at(0))


def test_labels_that_are_known_tell_the_batch_size(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ["a cat", "we ran", "a dog"], (0, 1, 2), know="labels", seed=1)
    proposals = Proposals(tokens=((1,),) * 4, inside=(1,) * 4, ordered=True, rank=4, size=model.hidden_size)
    assert {len(shape) for shape in batch_shapes(model, shared, proposals, [])} == {3}


def test_of_many_sentences_the_shapes_that_just_explain_the_span_come_first(toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="classification")
    shared, _ = share(model, ["he"] * 8, know="batch-size", seed=1)
    proposals = Proposals(tokens=((1,),) * 9, inside=(1,) * 9, ordered=True, rank=20, size=64)
    shapes = batch_shapes(model, shared, proposals, [])
    assert all(len(shape) == 8 and shape[0] == 9 and sum(shape) >= 20 for shape in shapes)
    assert sum(shapes[0]) == 20


@pytest.mark.parametrize("chosen", ["word_embeddings", "embeddings"])
def test_rows_of_the_word_embedding_are_enough(chosen: str, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(model, ["the cat sat on"], share=chosen, know="nothing", seed=1)
    recovery = textleak.recover(shared, model, "match", budget=4000)
    assert textleak.score(recovery, secret, model).exact_rate == 1.0


def test_rows_that_a_tied_head_fills_propose_nothing(toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="causal-lm")
    shared, _ = share(model, ["he sat on"], share="wte", seed=1)
    assert span_proposals(model, shared, longest=4, keep=32) is None


@pytest.mark.parametrize(
    ("defense", "options"),
    [("quantize", {"to": "int8"}), ("prune", {"ratio": 0.5}), ("gaussian", {"sigma": 1e-6})],
)
def test_behind_a_defense_the_last_token_tells_how_long_a_sentence_is(
    defense: str, options: dict[str, object], toy_model: ToyModel
) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(
        model, ["the cat sat on the mat"], defenses=[DEFENSES.build(defense, options)], know="nothing", seed=1
    )
    found = span_proposals(model, shared, longest=None, keep=32)
    assert found is not None
    assert batch_shapes(model, shared, found[1], [])[0] == (len(secret.ids[0]),)


def test_a_batch_of_unknown_size_behind_a_defense_is_taken_for_one_sentence_and_says_so(
    toy_model: ToyModel,
) -> None:
    model = toy_model("bert", task="classification")
    rounded = DEFENSES.build("quantize", {"to": "int8"})
    for know, told in (("nothing", False), ("batch-size", True)):
        shared, _ = share(model, ["a cat", "we ran"], defenses=[rounded], know=know, seed=1)
        recovery = textleak.recover(shared, model, "match", budget=200)
        assert (len(recovery.sentences) == 2) is told
        assert any("taken for one" in note for note in recovery.notes) is not told


def test_lengths_that_are_only_ranked_are_combined_the_likeliest_first(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ["a cat", "we ran"], know="batch-size", seed=1)
    proposals = Proposals(
        tokens=((1,),) * 9, inside=(0,) * 9, ordered=True, rank=None, size=64, ends=(7, 5, 9, 3)
    )
    shapes = batch_shapes(model, shared, proposals, [])
    assert shapes[:2] == [(7, 7), (7, 5)]
    assert len(shapes) == len(set(shapes)) == 10
