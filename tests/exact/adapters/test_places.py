"""The order of one sentence's tokens, from the parts that tokens and positions have in the measurements."""

from __future__ import annotations

import dataclasses

import torch

from textleak.exact.adapters.bag import Bag
from textleak.exact.adapters.places import placed, standing

SENTENCE = (30, 12, 7, 12, 45, 7, 12, 9, 31)  # tokens that stand once, twice and three times


def bag(*sentences: tuple[int, ...], measured: int = 8) -> Bag:
    """What the tokens and positions of sentences have in as many measurements."""
    generator = torch.Generator().manual_seed(2)
    tokens = tuple(sorted({token for row in sentences for token in row}))
    longest = max(map(len, sentences))
    parts_KM = torch.zeros(len(tokens), measured, dtype=torch.float64)
    places_TM = torch.zeros(
        longest + 3, measured, dtype=torch.float64
    )  # positions that nothing stands at, too
    for row in sentences:
        for t, token in enumerate(row):
            part_M = torch.randn(measured, generator=generator, dtype=torch.float64)
            parts_KM[tokens.index(token)] += part_M
            places_TM[t] += part_M
    places_TM[0] = 0  # the first position's row is in the tokens' own
    return Bag(
        tokens=tokens, parts_NM=parts_KM, places_TM=places_TM, complete=True, reading_IN=torch.empty(0, 0)
    )


def test_tokens_stand_where_positions_have_their_parts() -> None:
    assert placed(bag(SENTENCE)) == SENTENCE


def test_several_sentences_arent_taken_for_one() -> None:
    assert placed(bag(SENTENCE, (30, 8, 45, 31))) is None


def test_repeated_tokens_at_more_places_than_measurements_stay_open() -> None:
    assert placed(bag(SENTENCE, measured=4)) is None


def test_without_positions_nothing_is_placed() -> None:
    whole = bag(SENTENCE)
    none = dataclasses.replace(whole, places_TM=whole.places_TM[:0])
    assert placed(none) is None


def test_of_several_sentences_tokens_that_stand_at_one_position_alone_are_told() -> None:
    told = standing(bag((30, 12, 7, 9, 31), (30, 8, 7, 31), (30, 45, 7, 13, 31)), 3)
    assert told == ((30,), (8, 12, 45), (7,), None, None)  # 31 ends sentences at two positions


def test_no_more_tokens_stand_at_a_position_than_there_are_sentences() -> None:
    assert standing(bag((30, 12, 31), (30, 8, 31)), 1)[1] is None
