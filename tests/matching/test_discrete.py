"""The discrete search: what may follow a guess, and that the search finds a planted answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from textleak.matching.discrete import (
    PORTION,
    BeamSearch,
    Expansion,
    Guess,
    Scores,
    best_of,
    class_changes,
    exchanges,
    insertions,
    reorderings,
    substitutions,
)

GUESS = Guess(((0, 1, 2, 3, 9), (0, 4, 5, 9)), (0, 1))


def test_substitutions_change_one_place_and_never_to_what_stands_there() -> None:
    found = substitutions(GUESS, 0, 2, [1, 2, 7])
    assert [guess.rows[0] for guess in found] == [(0, 1, 1, 3, 9), (0, 1, 7, 3, 9)]
    assert all(guess.rows[1] == GUESS.rows[1] and guess.classes == GUESS.classes for guess in found)


def test_reorderings_of_three_inner_symbols_are_their_other_permutations() -> None:
    found = {guess.rows[0] for guess in reorderings(GUESS, 0, head=1, tail=1)}
    assert found == {(0, *order, 9) for order in itertools.permutations((1, 2, 3))} - {GUESS.rows[0]}


def test_reorderings_keep_the_ends_and_the_symbols() -> None:
    guess = Guess(((7, 1, 2, 3, 4, 5, 8),))
    for after in reorderings(guess, 0, head=1, tail=1):
        assert after.rows[0][0] == 7
        assert after.rows[0][-1] == 8
        assert sorted(after.rows[0]) == sorted(guess.rows[0])
        assert after != guess


def test_an_insertion_moves_what_lies_between_by_one() -> None:
    found = {guess.rows[0] for guess in insertions(GUESS, 0, 6, head=1, tail=1)}
    assert (0, 6, 1, 2, 9) in found  # put in first, last dropped
    assert (0, 2, 3, 6, 9) in found  # put in last, first dropped
    assert all(len(row) == 5 and row.count(6) == 1 for row in found)


def test_exchanges_keep_the_batch_together() -> None:
    for after in exchanges(GUESS, 0, 1, head=1, tail=1):
        assert sorted(itertools.chain(*after.rows)) == sorted(itertools.chain(*GUESS.rows))
    assert Guess(((0, 4, 2, 3, 9), (0, 1, 5, 9)), (0, 1)) in exchanges(GUESS, 0, 1, head=1, tail=1)


@pytest.mark.parametrize("tail", [0, 1, 2])
def test_nothing_can_follow_a_sentence_of_fixed_symbols_alone(tail: int) -> None:
    guess = Guess(((7, 8), (7, 1, 8)))
    assert reorderings(guess, 0, head=2 - tail, tail=tail) == []
    assert insertions(guess, 0, 6, head=2 - tail, tail=tail) == []
    assert exchanges(guess, 0, 1, head=2 - tail, tail=tail) == []


def test_class_changes_leave_the_symbols() -> None:
    assert [guess.classes for guess in class_changes(GUESS, 1, range(3))] == [(0, 0), (0, 2)]


def test_no_guess_is_scored_twice() -> None:
    asked: list[Guess] = []

    def score(guesses: Sequence[Guess]) -> list[float]:
        asked.extend(guesses)
        return [0.0] * len(guesses)

    scores = Scores(score)
    scores([GUESS, GUESS])
    scores([GUESS, GUESS.with_class(0, 2)])
    assert len(asked) == len(set(asked)) == scores.evaluations == 2


def test_a_score_that_is_not_a_number_is_never_best_and_still_a_guess_s() -> None:
    other, nan = GUESS.with_class(0, 2), float("nan")
    assert best_of({GUESS: nan, other: 1.0}, 1) == [(other, 1.0)]
    assert best_of({GUESS: nan, other: 1.0}, 2) == [(other, 1.0), (GUESS, float("inf"))]


def test_a_beam_of_guesses_that_nothing_can_be_said_of_is_not_empty() -> None:
    def expand(guess: Guess) -> Expansion:
        yield [guess.with_class(0, 2)]

    scores = Scores(lambda guesses: [float("nan")] * len(guesses))
    steps = list(BeamSearch(beam=2, expansions=2).run(scores, [GUESS], expand))
    assert steps
    assert all(step.beam and not step.solved for step in steps)


@pytest.mark.parametrize("beam", [1, 3])
def test_a_search_finds_a_planted_sequence_and_stops_there(beam: int) -> None:
    truth = (3, 1, 4, 1, 5)

    def score(guesses: Sequence[Guess]) -> list[float]:
        return [float(sum(a != b for a, b in zip(g.rows[0], truth, strict=True))) for g in guesses]

    def expand(guess: Guess) -> Expansion:
        best = guess
        for position in range(len(truth)):
            best = yield substitutions(best, 0, position, range(10))
        return best

    steps = list(BeamSearch(beam=beam, solved_at=0.0).run(Scores(score), [Guess(((0,) * 5,))], expand))
    assert steps[-1].solved
    assert steps[-1].beam[0] == (Guess((truth,)), 0.0)
    assert [step.solved for step in steps].count(True) == 1
    assert len(steps[-1].beam) <= beam


def test_a_search_without_improvement_ends_when_the_beam_is_expanded() -> None:
    def expand(guess: Guess) -> Expansion:
        best = yield [guess.with_symbol(0, 0, 1)]
        return best

    steps = list(BeamSearch(beam=2).run(Scores(lambda g: [1.0] * len(g)), [Guess(((0, 0),))], expand))
    assert not steps[-1].solved
    assert steps[-1].expanded == 2


def test_a_search_can_be_left_within_a_long_batch() -> None:
    def expand(guess: Guess) -> Expansion:
        best = yield substitutions(guess, 0, 0, range(3 * PORTION + 1))
        return best

    scores = Scores(lambda guesses: [float(10**6 - guess.rows[0][0]) for guess in guesses])
    seen = []
    for step in BeamSearch(beam=1, expansions=1).run(scores, [Guess(((0, 0),))], expand):
        seen.append((scores.evaluations, step.beam[0][0].rows[0][0]))
    assert seen[:4] == [(1, 0), *((1 + n * PORTION, n * PORTION) for n in (1, 2, 3))]


def test_a_search_can_be_left_among_what_it_starts_from_in_smaller_parts_the_longer_these_are() -> None:
    def expand(guess: Guess) -> Expansion:
        return (yield [guess])

    scores = Scores(lambda guesses: [float(-guess.rows[0][0]) for guess in guesses])
    starts = [Guess(((n, *range(2**9 - 1)),)) for n in range(40)]
    seen = [
        (step.begun, scores.evaluations, step.beam[0][1])
        for step in BeamSearch(beam=1, expansions=1, solved_at=-100.0).run(scores, starts, expand)
    ]
    assert seen[:3] == [(False, 16, -15.0), (False, 32, -31.0), (True, 40, -39.0)]
    assert not list(BeamSearch().run(scores, [], expand))
