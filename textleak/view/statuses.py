"""Whether a token that an attack shows is right: each position of a sentence beside the truth."""

from __future__ import annotations

from textleak.events import Position, Sentence
from textleak.scoring import metrics, output_ids

RIGHT, ELSEWHERE, WRONG, UNKNOWN, SPECIAL, OPEN = "right", "elsewhere", "wrong", "unknown", "special", "open"


def statuses_of(sentence: Sentence, truth: Sentence | None) -> list[str]:
    """For each position whether its token is right, elsewhere, wrong, open, special or unknown.

    "elsewhere": in the true sentence, but not here. "unknown": there is no truth to compare with.
    """
    true = {} if truth is None else {one.position: one for one in truth.positions}
    ids = {one.id for one in true.values() if not one.special}
    return [_status(position, truth, true.get(position.position), ids) for position in sentence.positions]


def _status(position: Position, truth: Sentence | None, true: Position | None, ids: set[int]) -> str:
    if truth is None:
        return SPECIAL if position.special else OPEN if position.id < 0 else UNKNOWN
    if position.special and (true is None or true.special):
        return SPECIAL
    if position.id < 0:
        return OPEN
    if true is not None and true.special and true.id == position.id:
        return SPECIAL  # an unknown token, which holds no text
    if true is not None and true.id == position.id:
        return RIGHT
    return ELSEWHERE if position.id in ids else WRONG


def right_of(sentence: Sentence, truth: Sentence) -> tuple[int, int]:
    """How many of the true sentence's tokens stand where they belong, and how many it has."""
    special = {position.id for position in truth.positions if position.special}
    reference = output_ids(truth)
    return (
        metrics.matches(reference, output_ids(sentence), special),
        len(metrics.counted(reference, special)),
    )


def surplus_of(sentence: Sentence, truth: Sentence) -> int:
    """How many tokens stand where the true sentence has none."""
    places = {position.position for position in truth.positions if not position.special}
    tokens = (one for one in sentence.positions if not one.special and one.id >= 0)
    return sum(one.position not in places for one in tokens)
