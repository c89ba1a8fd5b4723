"""The last tokens, which are labels alone, from what all other predictions leave of the gradient."""

from __future__ import annotations

import pytest

from tests.conftest import ToyModel
from tests.exact.adapters.conftest import Seen
from textleak.clients.view import Clock
from textleak.exact.adapters import endings
from textleak.exact.adapters.endings import read_endings

THREE = ("a dog ran home at night", "he read the letter again", "she told nobody")


def test_last_tokens_are_read(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model()
    view, rows = seen(model, THREE), model.encode(THREE).sentences
    *_, (ends, off) = read_endings(view.model, view.shared.gradients, [row[:-1] for row in rows], Clock())
    assert ends == [row[-1] for row in rows]
    assert off < 1e-4


def test_wrong_beginnings_leave_most_of_the_gradient(wide_model: ToyModel, seen: Seen) -> None:
    model = wide_model()
    view, rows = seen(model, THREE), [row[:-1] for row in model.encode(THREE).sentences]
    swapped = [(row[1], row[0], *row[2:]) for row in rows]
    *_, (_, off) = read_endings(view.model, view.shared.gradients, swapped, Clock())
    assert off > 1e-2


def test_last_tokens_that_do_not_show_together_are_read_one_after_the_other(
    wide_model: ToyModel, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wide_model()
    view, rows = seen(model, THREE), model.encode(THREE).sentences
    monkeypatch.setattr(endings, "_STEPS", 0)  # all together
    looks = list(read_endings(view.model, view.shared.gradients, [row[:-1] for row in rows], Clock()))
    ends, off = looks[-1]
    assert ends == [row[-1] for row in rows]
    assert off < 1e-4 < looks[0][1]
