"""Beginnings of a batch's sentences, grown from the tokens alone."""

from __future__ import annotations

from tests.conftest import ToyModel
from tests.exact.adapters.conftest import Seen
from textleak.clients.view import Clock, View
from textleak.exact.adapters.growth import Growth
from textleak.exact.adapters.measured import later_measured

THREE = ("a dog ran home at night", "he read the letter again", "she told nobody at home")


def grown(view: View, tokens: tuple[int, ...], *, single: bool) -> Growth:
    measured = later_measured(view.model, view.shared)
    growth = Growth(view.model, measured, tokens, longest=12, single=single)
    for _ in growth.grow(Clock()):
        pass
    return growth


def test_three_sentences_come_back_but_for_their_last_tokens(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model()
    rows = [row[:-1] for row in model.encode(THREE).sentences]
    growth = grown(seen(model, THREE), tuple(sorted({t for row in rows for t in row})), single=False)
    assert growth.complete
    assert sorted(growth.leaves) == sorted(rows)


def test_one_sentence_is_followed_from_its_end(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model("qwen2")
    (row,) = model.encode(THREE[:1]).sentences
    growth = grown(seen(model, THREE[:1]), tuple(sorted(set(row))), single=True)
    assert growth.complete
    assert growth.leaves == [row[:-1]]


def test_without_one_of_the_tokens_nothing_is_complete(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model()
    rows = [row[:-1] for row in model.encode(THREE).sentences]
    tokens = sorted({t for row in rows for t in row} - {rows[0][1]})
    assert not grown(seen(model, THREE), tuple(tokens), single=False).complete


def test_without_time_nothing_is_grown(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model()
    (row,) = model.encode(THREE[:1]).sentences
    view = seen(model, THREE[:1])
    growth = Growth(view.model, later_measured(view.model, view.shared), row[:-1], longest=12, single=True)
    assert not list(growth.grow(Clock.of(0.0)))
    assert not growth.leaves
    assert not growth.complete
