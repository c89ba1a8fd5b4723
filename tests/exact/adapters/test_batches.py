"""More of a true sentence lies in what adapters measure than of others, and each comes off the batch by itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.conftest import ToyModel
from tests.exact.adapters.conftest import Seen
from tests.exact.adapters.test_bag import bag_of
from textleak.clients.view import View
from textleak.exact.adapters.bag import Bag
from textleak.exact.adapters.batches import encoder_batch
from textleak.exact.adapters.measured import Measured, first_layers, later_measured
from textleak.exact.adapters.moves import Moves
from textleak.exact.adapters.within import Within
from textleak.exact.found import Found
from textleak.matching.discrete import Row
from textleak.models.guesses import examples_of

THREE = ("a dog ran home at night", "he read the letter again", "she told nobody at home")


@pytest.fixture(scope="module")
def view(wide_model: ToyModel, seen: Seen) -> View:
    return seen(wide_model("bert", task="classification"), THREE)


@pytest.fixture(scope="module")
def true(view: View) -> list[Row]:
    return [tuple(row) for row in view.text_model.encode(THREE).sentences]


@pytest.fixture(scope="module")
def moves(view: View) -> Moves:
    bag = whole_bag(view)
    return Moves(view.text_model, bag, len(THREE), torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def within(view: View, moves: Moves) -> Within:
    return scored(view, [moves.any_length() for _ in range(100)])


def scored(view: View, usual: list[Row]) -> Within:
    return Within(view.text_model, later_measured(view.text_model, view.shared)[:2], usual)


def whole_bag(view: View) -> Bag:
    bag = bag_of(view, Measured.of(view.shared, first_layers(view.text_model, view.shared)))
    assert bag is not None
    return bag


def told(view: View, bag: Bag, size: int) -> Found:
    """All that `encoder_batch` says at the end."""
    steps = encoder_batch(view, bag, size)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Found = end.value
            return found


def test_more_of_a_true_sentence_lies_within_than_with_any_other_token(
    within: Within, moves: Moves, true: list[Row]
) -> None:
    for row in true:
        right = within.scores([row])[0]
        others = [other for t in moves.positions(row) for other in moves.tokens(row, t)]
        assert max(within.scores(others)) < right


def test_a_sentence_scores_alone_as_among_longer_ones(view: View, moves: Moves, true: list[Row]) -> None:
    usual = [moves.drawn(moves.ends[-1]) for _ in range(20)]
    alone, among = (scored(view, usual).scores(rows)[-1] for rows in (true[-1:], true))
    assert alone == pytest.approx(among, rel=1e-4)


def test_what_a_sentence_may_change_to_reaches_every_true_one(moves: Moves, true: list[Row]) -> None:
    for row in true:
        shorter = (*row[:2], *row[3:])
        assert row in {*moves.fuller(shorter)}
        assert row in {*moves.lengths((*row[:-2], *row[-1:]))}
        exchanged = (row[0], row[2], row[1], *row[3:])
        assert row in {*moves.orders(exchanged)}


def test_sentences_that_were_drawn_end_where_the_longest_can(moves: Moves, true: list[Row]) -> None:
    assert len(moves.drawn(moves.ends[-1])) == max(map(len, true))
    assert {len(row) - 1 for row in true} <= {*moves.ends}


def test_a_sentence_taken_off_takes_the_tokens_that_it_alone_has(view: View, true: list[Row]) -> None:
    model, layers = view.text_model, first_layers(view.text_model, view.shared)
    bag = whole_bag(view)
    labels = [view.own(examples_of(model, true[:1], (label,))) for label in range(model.classes)]
    bags = [
        bag.without(torch.cat([own[layer.weight_name] for layer in layers]) / len(true)) for own in labels
    ]
    assert all(len(one.places_TM) and not one.places_TM[max(map(len, true)) :].any() for one in bags)
    left = [one.tokens for one in bags]
    others = {token for row in true[1:] for token in row}
    assert sorted(map(len, left))[1:] == [len(bag.tokens)] * (
        model.classes - 1
    )  # of another class it takes none
    assert set(min(left, key=len)) == others


def test_every_sentence_of_a_batch_comes_back(view: View, true: list[Row]) -> None:
    found = told(view, whole_bag(view), len(THREE))
    assert sorted(found.rows) == sorted(true)
    assert found.complete


def test_a_sentence_that_stands_twice_comes_back_twice(view: View, seen: Seen) -> None:
    model = view.text_model
    twice = (THREE[0], THREE[1], THREE[0])
    sent = seen(model, twice)
    rows = [tuple(row) for row in model.encode(twice).sentences]
    labelled = dataclasses.replace(sent.shared.known, labels=(0, 0, 0))
    shared = dataclasses.replace(
        sent.shared,
        known=labelled,
        gradients=sent.own(examples_of(model, rows, (0, 0, 0))),
    )
    sent = dataclasses.replace(sent, shared=shared)
    bag = whole_bag(sent)
    found = told(sent, bag, 3)
    assert sorted(found.rows) == sorted(rows)
    assert found.complete
