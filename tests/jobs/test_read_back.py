"""What a proved text tells of an update."""

from __future__ import annotations

from textleak.events import Position, Sentence
from textleak.inference.rate import TIMES_LEFT
from textleak.jobs.read_back import read_back

OPEN = {"value": None, "evidence": "It doesn't show."}
ASKED = ("optimizer", "learning rate", "clipped norm", "dropout", "tokens", "labels")
TOLD = [{"what": what, **OPEN} for what in ASKED]


def _sentence(*ids: int, label: int) -> Sentence:
    positions = tuple(Position(position=n, id=id_, text=str(id_), proved=True) for n, id_ in enumerate(ids))
    return Sentence(positions=positions, text="", label=label)


BATCH = (_sentence(1, 5, 2, label=0), _sentence(1, 7, 8, 2, label=1))


def _values(proof: str, **fitted: float) -> dict[str, object]:
    return {one["what"]: one["value"] for one in read_back(TOLD, BATCH, proof=proof, **fitted)}


def test_a_text_whose_own_update_is_the_one_that_was_sent_fills_in_what_was_open():
    found = _values("gradient", rate=3e-4)

    assert found == {
        "optimizer": None,
        "learning rate": 3e-4,
        "clipped norm": None,
        "dropout": 0,
        "tokens": 6,
        "labels": [0, 1],
    }


def test_a_norm_that_was_fitted_is_told():
    assert _values("gradient", norm=0.99999)["clipped norm"] == 1.0


def test_a_text_whose_tokens_are_proved_tells_their_number_alone():
    found = _values("span")

    assert found["tokens"] == 7  # behind dropout the first of both sentences are two inputs
    assert found["dropout"] is None
    assert found["labels"] is None


def test_a_fitted_rate_that_is_not_round_may_be_a_clipped_one():
    assert _values("gradient", rate=2.718e-4)["learning rate"] == {TIMES_LEFT: 2.718e-4}


def test_what_the_update_told_stays():
    told = [{"what": "tokens", "value": 5, "evidence": "The rank."}]

    assert read_back(told, BATCH, proof="gradient", rate=None) == told
