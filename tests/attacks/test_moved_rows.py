"""Rows of a trained word embedding that moved: which step each token stood in, and what its sentence was."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from tests.conftest import write_toy
from textleak import recover, scoring
from textleak.attacks import replay
from textleak.attacks.replaying import MOVED_ROWS
from textleak.attacks.replaying.by_rows import ByRows
from textleak.attacks.replaying.moved import MovedRows, moved_rows
from textleak.clients import CLIENTS, Client, composed
from textleak.clients.view import Clock, View, view_of
from textleak.errors import InputError
from textleak.events import Progress, Recovery, Stop
from textleak.models import TextModel, load_model
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

TEXTS = (
    "he told a secret plan",
    "john saw the red car",
    "mary wrote her first letter",
    "the old dog fell over",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    """A toy BERT whose rows are wide enough to tell its tokens apart."""
    wide: dict[str, object] = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 128}
    wide |= {
        "hidden_dropout_prob": 0.02,
        "attention_probs_dropout_prob": 0.02,
    }  # its weights are not those of training
    folder = write_toy("bert", tmp_path_factory.mktemp("moved"), **wide)
    return load_model(str(folder), weights="random", task="classification", num_labels=2)


def trainer(**options: object) -> Client:
    usual = {"optimizer": "adamw", "lr": 5e-5, "steps": 2, "batch_size": 2, "max_grad_norm": 1.0}
    return composed([CLIENTS.build("train-mode", {}), CLIENTS.build("fedavg", {**usual, **options})])


def shared_by(who: Client, model: TextModel, share_of: str = "all") -> tuple[SharedGradient, Secret]:
    return share(model, TEXTS, client=who, share=share_of, seed=1)


def content(model: TextModel, secret: Secret, sentences: slice) -> set[int]:
    return {token for ids in secret.ids[sentences] for token in ids if token not in model.special_ids}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_tokens_of_one_step_moved_by_one_size_and_are_told_from_those_of_others(
    decay: float, model: TextModel
) -> None:
    shared, secret = shared_by(trainer(weight_decay=decay), model)
    found = moved_rows(view_of(shared, model))
    assert isinstance(found, MovedRows)
    first, second = content(model, secret, slice(2)), content(model, secret, slice(2, 4))
    assert [set(step) for step in found.steps] == [first - second, second - first]
    assert set(found.several) == first & second
    assert found.places_PE is not None
    assert len(found.places_PE) == max(map(len, secret.ids))


def test_where_all_sentences_are_in_every_step_their_tokens_are_one_group(model: TextModel) -> None:
    shared, secret = shared_by(trainer(batch_size=None), model)
    found = moved_rows(view_of(shared, model))
    assert isinstance(found, MovedRows)
    assert [set(step) for step in found.steps] == [content(model, secret, slice(4))]


def test_true_sentences_agree_with_the_rows_more_than_others_of_the_same_tokens(model: TextModel) -> None:
    shared, secret = shared_by(trainer(), model)
    view = view_of(shared, model)
    found = moved_rows(view)
    assert isinstance(found, MovedRows)
    by_rows = ByRows(model, found, Clock(), longest=max(map(len, secret.ids)))
    own, true = found.steps[0], secret.ids[:2]
    assert [by_rows.label(row, own) for row in true] == list(secret.labels[:2])
    draws = random.Random(0)
    for _ in range(10):
        inner = [token for row in true for token in row[1:-1]]
        draws.shuffle(inner)
        halves = (inner[:5], inner[5:])
        other = tuple((row[0], *half, row[-1]) for row, half in zip(true, halves, strict=True))
        assert by_rows.worth(true, own) > by_rows.worth(other, own)


def test_a_place_is_as_clear_as_the_best_change_that_puts_another_token_there_is_worse(
    model: TextModel,
) -> None:
    shared, secret = shared_by(trainer(), model)
    found = moved_rows(view_of(shared, model))
    assert isinstance(found, MovedRows)
    by_rows = ByRows(model, found, Clock(), longest=max(map(len, secret.ids)))
    own, true = found.steps[0], secret.ids[:2]
    assert {apart for row in by_rows.clearness(true, own) for apart in row} == {0.0}  # nothing was tried yet
    first, second = true
    exchanged = ((first[0], first[2], first[1], *first[3:]), second)
    for other in by_rows._changes(true, own, (*found.several, *own)):
        by_rows.worth(other, own)
    clear = by_rows.clearness(true, own)
    # More than 0, as the same sentences in another order are no other answer.
    assert 0 < clear[0][1] <= by_rows.worth(true, own) - by_rows.worth(exchanged, own)
    put = [
        by_rows.worth(other, own)
        for other in by_rows._changes(true, own, (*found.several, *own))
        if sorted(other) != sorted(true) and other[0][1] != first[1]
    ]
    assert clear[0][1] == by_rows.worth(true, own) - max(put)
    assert clear[0][0] == math.inf  # what the tokenizer adds
    assert {apart for row in by_rows.clearness(exchanged, own) for apart in row} == {0.0}


def test_a_trainers_whole_run_is_read_by_its_rows_and_called_likely(model: TextModel, tmp_path: Path) -> None:
    shared, secret = shared_by(trainer(), model)
    shared.save(tmp_path / "update.safetensors")
    answer = recover(SharedGradient.load(tmp_path / "update.safetensors"), model, "auto")
    scores = scoring.score(answer, secret, model)
    assert scores.token_recall > 0.7
    assert scores.token_match_rate > 0.4  # an order by chance: 0.2
    assert answer.channel == MOVED_ROWS
    assert (answer.proof, answer.proved_tokens) == (None, 0)
    assert any("likely, not proved" in note for note in answer.notes)


@pytest.mark.parametrize("found_before", [True, False])
def test_without_dropout_what_the_rows_tell_is_proved_where_spans_tell_nothing(
    found_before: bool, model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = CLIENTS.build("fedavg", {"optimizer": "adamw", "lr": 5e-5, "steps": 1})
    shared, secret = share(model, TEXTS[:1], client=who, seed=1, know="batch-size")
    before = Recovery(sentences=(), stop=Stop.CONVERGED, final_loss=None)

    def spans(_view: View) -> Generator[Progress, None, Recovery]:
        yield Progress(phase="grouping", step=1)
        if not found_before:
            raise InputError("No span shows a sentence.")
        return before

    monkeypatch.setattr(replay, "_batch", spans)
    answer = recover(shared, model, "replay")
    assert [tuple(p.id for p in s.positions) for s in answer.sentences] == list(secret.ids)
    assert answer.stop is Stop.VERIFIED
    assert not any("not proved" in note for note in answer.notes)

    half = dataclasses.replace(shared, gradients={name: t / 2 for name, t in shared.gradients.items()})
    answer = recover(half, model, "replay")  # no text's
    assert answer.stop is Stop.CONVERGED
    assert bool(answer.sentences) is not found_before


def test_what_spans_refuse_and_no_row_tells_is_refused(
    model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spans(_view: View) -> Generator[Progress, None, Recovery]:
        yield Progress(phase="grouping", step=1)
        raise InputError("No span shows a sentence.")

    monkeypatch.setattr(replay, "_batch", spans)
    who = CLIENTS.build("fedavg", {"optimizer": "adamw", "lr": 5e-5, "steps": 1})
    shared, _ = share(model, TEXTS[:1], client=who, share="no-embeddings", seed=1, know="batch-size")
    with pytest.raises(InputError, match="No span shows"):
        recover(shared, model, "replay")


def test_rows_of_another_model_give_no_sentence(model: TextModel) -> None:
    shared, _ = shared_by(trainer(), model)
    table = next(n for n, p in model.parameters.items() if p is model.word_embedding.weight)
    rows = shared.gradients[table].any(1)
    signs = torch.randn(shared.gradients[table].shape, generator=torch.Generator().manual_seed(0)).sign()
    shared.gradients[table][rows] = (shared.gradients[table].abs() * signs)[rows]
    answer = recover(shared, model, "replay")
    assert all(p.id < 0 for s in answer.sentences for p in s.positions)


def test_without_the_word_embedding_the_error_says_so(model: TextModel) -> None:
    shared, _ = shared_by(trainer(), model, "no-embeddings")
    with pytest.raises(InputError, match="word embedding wasn't shared"):
        recover(shared, model, "replay")
