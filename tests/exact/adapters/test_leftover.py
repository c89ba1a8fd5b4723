"""The true sentences leave nothing of what adapters measure; other ones do, and the more so the farther they are."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from tests.conftest import ToyModel
from tests.exact.adapters.conftest import Seen
from tests.exact.adapters.test_bag import bag_of
from textleak.clients.view import View
from textleak.exact.adapters.batches import encoder_batch
from textleak.exact.adapters.leftover import Leftover
from textleak.exact.adapters.measured import Measured, first_layers, later_measured
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
def leftover(view: View) -> Leftover:
    first = Measured.of(view.shared, first_layers(view.text_model, view.shared))
    return Leftover(view.text_model, [first, *later_measured(view.text_model, view.shared)[:2]])


def exchanged(rows: list[Row], position: int) -> list[Row]:
    """The first two sentences with each other's token at one position."""
    one, other = (list(row) for row in rows[:2])
    one[position], other[position] = other[position], one[position]
    return [tuple(one), tuple(other), *rows[2:]]


def test_the_true_sentences_leave_nothing(leftover: Leftover, true: list[Row]) -> None:
    assert float(leftover.left(leftover.beside(()), [true]).max()) < 1e-4


def test_exchanged_tokens_leave_something_of_later_layers_alone(leftover: Leftover, true: list[Row]) -> None:
    once = exchanged(true, 2)
    twice = exchanged(once, 3)
    left_CL = leftover.left(leftover.beside(()), [once, twice])
    assert float(left_CL[:, 0].max()) < 1e-4  # the first layers see the same tokens at the same positions
    assert float(left_CL[:, 1:].min()) > 1e-3
    assert bool((left_CL[1, 1:] > left_CL[0, 1:]).all())


def test_what_stays_beside_makes_no_difference(leftover: Leftover, true: list[Row]) -> None:
    wrong = exchanged(true, 2)
    together = leftover.scores(leftover.beside(()), [wrong])
    apart = leftover.scores(leftover.beside(wrong[2:]), [wrong[:2]])
    assert math.isclose(float(together), float(apart), rel_tol=1e-4)


def test_a_sentence_taken_off_takes_the_tokens_that_it_alone_has(view: View, true: list[Row]) -> None:
    model, layers = view.text_model, first_layers(view.text_model, view.shared)
    bag = bag_of(view, Measured.of(view.shared, layers))
    assert bag is not None
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
    bag = bag_of(sent, Measured.of(shared, first_layers(model, shared)))
    assert bag is not None
    steps = encoder_batch(sent, bag, 3)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found = end.value
            break
    assert sorted(found.rows) == sorted(rows)
    assert found.complete
