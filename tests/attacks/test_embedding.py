"""What the embeddings' gradients give away: tokens, order at B = 1, places in larger batches; never a guess."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

from tests.conftest import EVERY_TASK, ToyModel
from textleak import recover
from textleak.attacks.embedding import found_in
from textleak.clients import CLIENTS, composed
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES
from textleak.errors import InputError
from textleak.events import Recovery, Stop
from textleak.exact.found import OPEN, Found
from textleak.exact.lookups import SLACK
from textleak.exact.rows import EmbeddingRows, read_rows
from textleak.models import TextModel
from textleak.models.probes.sums import embedding_sum
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

ONE = "the cat saw a cat"
SEVERAL = ("the cat sat.", "a dog ran home.", "she saw the house.", "it was on time.")
# Sums of embeddings that are normalized at once, with an epsilon that doesn't count.
NORMALIZED = ("bert", "distilbert", "roberta", "albert", "electra")
ROTARY = ("llama", "qwen2")


def tokens(recovery: Recovery) -> list[list[int]]:
    return [[position.id for position in sentence.positions] for sentence in recovery.sentences]


def places(secret: Secret, *, causal: bool = False) -> list[set[int]]:
    """The tokens that the network read at each position; a causal model's last one it doesn't."""
    found: list[set[int]] = []
    for ids in secret.ids:
        for t, token in enumerate(ids[:-1] if causal else ids):
            found += [set()] if t == len(found) else []
            found[t].add(token)
    return found


def read(model: TextModel, *sentences: str, **options: object) -> tuple[EmbeddingRows, Secret]:
    shared, secret = share(model, sentences, **{"seed": 1, "know": "nothing", **options})
    seen = read_rows(view_of(shared, model))
    assert seen is not None
    return seen, secret


def read_off(model: TextModel, shared: SharedGradient) -> Found | None:
    seen = read_rows(view_of(shared, model))
    return None if seen is None else found_in(view_of(shared, model), seen)


# One sentence


@pytest.mark.parametrize(("family", "task"), [(f, t) for f, t in EVERY_TASK if f not in ROTARY])
def test_a_sentence_is_read_off_and_certified_without_being_told_anything(
    family: str, task: str, toy_model: ToyModel
) -> None:
    model = toy_model(family, task=task)
    shared, secret = share(model, [ONE], seed=1, know="nothing")
    recovery = recover(shared, model, "embedding")
    assert tokens(recovery) == [list(ids) for ids in secret.ids]
    assert recovery.stop is Stop.VERIFIED
    assert recovery.channel == "embedding"
    assert all(p.confidence == 1 for p in recovery.sentences[0].positions)
    if secret.labels:
        assert recovery.sentences[0].label == secret.labels[0]
    if task == "masked-lm":
        assert any(p.masked for p in recovery.sentences[0].positions)


@pytest.mark.parametrize("rate", [1e-1, 1e-3])
def test_rows_that_a_step_of_sgd_rounded_are_equal_up_to_that(rate: float, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    client = composed([CLIENTS.build("fedavg", {"lr": rate, "steps": 1})])
    shared, secret = share(model, [ONE], seed=1, know="batch-size", client=client)
    unit = torch.finfo(torch.float32).eps / 2
    places = embedding_sum(model)
    word, position = (
        shared.gradients[name] for name in ("bert.embeddings.word_embeddings.weight", places.position_name)
    )
    ids = secret.ids[0]
    apart = max(
        float((word[token] - position[t]).norm() / (word[token].norm() * unit))
        for t, token in enumerate(ids)
        if ids.count(token) == 1
    )
    assert apart > SLACK  # what computing them leaves would not explain it

    recovery = recover(shared, model, "embedding")

    assert tokens(recovery) == [list(ids)]
    assert recovery.stop is Stop.VERIFIED


@pytest.mark.parametrize("family", ["bert", "distilbert"])
@pytest.mark.parametrize("rate", [1e-3, 1e-5, 1e-6, 3e-7, 1e-7, 3e-8])
def test_no_token_is_placed_wrongly_where_a_step_hides_some(
    rate: float, family: str, toy_model: ToyModel
) -> None:
    model = toy_model(family, task="classification")
    client = composed([CLIENTS.build("fedavg", {"lr": rate, "steps": 1})])
    for seed, batch in itertools.product(range(4), ([ONE], SEVERAL[:2])):
        shared, secret = share(model, batch, seed=seed, know="batch-size", client=client)
        seen = read_rows(view_of(shared, model))
        if seen is not None:
            for t, here in enumerate(seen.places):
                assert set(here) <= {ids[t] for ids in secret.ids if t < len(ids)}, seed


@pytest.mark.parametrize("family", ROTARY)
def test_without_position_embeddings_there_is_a_bag_and_no_order(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task="classification")
    shared, secret = share(model, ["he ran"], seed=1)
    seen = read_rows(view_of(shared, model))
    assert seen is not None
    assert seen.bag == Counter(secret.ids[0])
    recovery = recover(shared, model, "embedding")
    assert tokens(recovery) == [[OPEN] * len(secret.ids[0])]
    assert {c.id for p in recovery.sentences[0].positions for c in p.candidates} == set(secret.ids[0])
    assert recovery.notes


@pytest.mark.parametrize("family", ROTARY)
def test_the_bag_shows_beside_a_tied_head(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task="causal-lm")
    shared, secret = share(model, ["the cat"], seed=1)
    assert model.network.get_output_embeddings().weight is model.word_embedding.weight
    seen = read_rows(view_of(shared, model))
    assert seen is not None
    assert set(seen.bag) == set(secret.ids[0][:-1])  # the last token is a label only


@pytest.mark.parametrize("family", NORMALIZED)
def test_the_words_rows_alone_give_the_order_where_sums_are_normalized(
    family: str, toy_model: ToyModel
) -> None:
    model = toy_model(family, task="classification")
    shared, secret = share(model, ["the dog ran on"], (2,), share="word_embeddings", know="nothing")
    recovery = recover(shared, model, "embedding")
    assert tokens(recovery) == [list(ids) for ids in secret.ids]
    assert recovery.stop is Stop.VERIFIED
    assert recovery.sentences[0].label == 2  # its head wasn't shared: the certificate tells


def test_the_positions_rows_alone_give_the_sentence_where_sums_are_normalized(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(model, [ONE], (2,), share="position_embeddings")
    recovery = recover(shared, model, "embedding")
    assert tokens(recovery) == [list(ids) for ids in secret.ids]
    assert recovery.stop is Stop.VERIFIED


def test_positions_alone_give_the_length_elsewhere(toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="causal-lm")
    shared, secret = share(model, [ONE], share="wpe", know="batch-size")
    recovery = recover(shared, model, "embedding")
    assert tokens(recovery) == [[OPEN] * len(secret.ids[0])]


def test_a_last_token_that_nothing_tells_stays_open(toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="causal-lm")
    shared, secret = share(model, [ONE], share="wte|wpe", know="nothing")
    recovery = recover(shared, model, "embedding")
    (ids,) = tokens(recovery)
    assert ids == [*secret.ids[0][:-1], OPEN]
    assert recovery.stop is Stop.READ
    assert "last norm" in " ".join(recovery.notes)


# Several sentences


@pytest.mark.parametrize(("family", "task"), [(f, t) for f, t in EVERY_TASK if t != "masked-lm"])
def test_in_a_batch_nothing_wrong_is_said(family: str, task: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task=task)
    seen, secret = read(model, *SEVERAL)
    truth = places(secret, causal=task == "causal-lm")
    assert set(seen.bag) <= set().union(*truth)
    counts = Counter(token for ids in secret.ids for token in ids)
    assert task == "causal-lm" or all(n is None or n == counts[token] for token, n in seen.bag.items())
    for t, here in enumerate(seen.places):
        assert set(here) <= truth[t]
        assert not seen.closed[t] or set(here) == truth[t]


@pytest.mark.parametrize("family", NORMALIZED)
def test_tokens_at_one_position_find_it_in_a_batch_of_any_size(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task="classification")
    seen, secret = read(model, *SEVERAL)
    truth = places(secret)
    where = Counter(token for here in truth for token in here)
    found = {token for here in seen.places for token in here}
    single = {token for token, count in where.items() if count == 1}
    assert len(single & found) >= 0.75 * len(single)  # in 16 dimensions rounding hides some
    assert seen.closed[0]
    assert seen.places[0] == model.prefix_ids


def test_known_lengths_tell_how_often_tokens_occur(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    seen, secret = read(model, "the cat sat.", "a dog ran home", know="lengths,batch-size")
    counts = Counter(token for ids in secret.ids for token in ids)
    assert seen.bag == counts


def test_what_a_batch_leaves_open_is_open_with_the_tokens_that_could_stand_there(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(model, SEVERAL, seed=1, know="lengths,batch-size")
    recovery = recover(shared, model, "embedding")
    assert [len(s.positions) for s in recovery.sentences] == [len(ids) for ids in secret.ids]
    truth = places(secret)
    for sentence, ids in zip(recovery.sentences, secret.ids, strict=True):
        for position, token in zip(sentence.positions, ids, strict=True):
            assert position.id in (OPEN, token)
            if position.id == OPEN:
                assert token in {c.id for c in position.candidates}
            assert {c.id for c in position.candidates} <= set().union(*truth)
    found = read_off(model, shared)
    assert found is not None
    assert not found.complete
    assert all(truth[t] <= set(found.sets[t]) for t in range(len(truth)))


def test_the_longest_sentence_shows_without_being_told(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, secret = share(model, SEVERAL, seed=1, know="batch-size")
    found = read_off(model, shared)
    assert found is not None
    assert len(found.rows) == len(SEVERAL)
    assert max(map(len, found.rows)) == max(map(len, secret.ids))


# What becomes of the sum of embeddings


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "opt", "albert", "llama"])
def test_the_network_says_which_row_stands_for_which_position(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task="classification")
    found = embedding_sum(model)
    shared, secret = share(model, [ONE])
    if found.position_name is None:
        assert family in ROTARY
        return
    rows = shared.gradients[found.position_name].any(1).nonzero().flatten().tolist()
    assert rows == list(found.rows[: len(secret.ids[0])])


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_gradients_are_at_right_angles_to_sums_that_are_normalized_at_once(
    family: str, task: str, toy_model: ToyModel
) -> None:
    assert embedding_sum(toy_model(family, task=task)).across == (family in NORMALIZED)


# Noise, defenses, and what can't be read


def test_rows_that_stand_out_of_noise_are_read(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    noise = DEFENSES.build("gaussian", {"sigma": 1e-6})
    shared, secret = share(model, ["the cat sat on a mat"], seed=1, defenses=[noise])
    recovery = recover(shared, model, "embedding")
    assert tokens(recovery) == [list(ids) for ids in secret.ids]
    assert recovery.stop is Stop.READ
    assert "noise" in " ".join(recovery.notes)
    assert all(p.confidence < 1 for p in recovery.sentences[0].positions if not p.special)


def test_noise_above_every_row_leaves_nothing(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    noise = DEFENSES.build("gaussian", {"sigma": 10.0})
    shared, _ = share(model, [ONE], seed=1, defenses=[noise])
    recovery = recover(shared, model, "embedding")
    shown = [p for s in recovery.sentences for p in s.positions if not p.special]
    assert all(p.id == OPEN for p in shown)
    assert recovery.stop is Stop.READ


@pytest.mark.parametrize("attack", ["embedding", "auto"])
@pytest.mark.parametrize("share_", ["word_embeddings", "position_embeddings"])
def test_where_nothing_shows_no_sentence_is_made_up(attack: str, share_: str, toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    noise = DEFENSES.build("gaussian", {"sigma": 10.0})
    shared, _ = share(model, [ONE], seed=1, defenses=[noise], share=share_, know="nothing")
    recovery = recover(shared, model, attack)
    assert recovery.sentences == ()
    assert not any("has 0 tokens" in note for note in recovery.notes)


def test_a_share_without_embeddings_is_refused_with_what_would_do(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, [ONE], share="no-embeddings")
    assert read_off(model, shared) is None
    with pytest.raises(InputError, match="embedding") as told:
        recover(shared, model, "embedding")
    assert "word_embeddings" in str(told.value)


def test_a_gradient_in_half_precision_says_nothing_wrong(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification", dtype="bfloat16")
    seen, secret = read(model, *SEVERAL)
    truth = places(secret)
    assert all(set(here) <= truth[t] for t, here in enumerate(seen.places) if seen.closed[t])


def test_the_seed_of_the_attack_does_not_matter(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, [ONE], seed=1)
    state = torch.random.get_rng_state()
    assert recover(shared, model, "embedding", seed=1) == recover(shared, model, "embedding", seed=2)
    assert torch.equal(torch.random.get_rng_state(), state)
