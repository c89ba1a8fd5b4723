"""A run's answers below one another: which rows are kept, which lines they make, what a cell is."""

from __future__ import annotations

import itertools

import pytest

from textleak.events import Event, Phase, Position, Progress, Sentence
from textleak.view import PhaseSpan, ViewState, lines_of, numbers_kept, rows_of
from textleak.view.waterfall import CANDIDATE, OPEN, SETTLED, SPECIAL


def progress(step: int, *positions: Position, phase: str = "continuous") -> Progress:
    sentences = (Sentence(positions=positions, text=""),) if positions else ()
    return Progress(phase=phase, step=step, sentences=sentences)


def token(at: int, word: str, confidence: float = 0.5, **more: object) -> Position:
    return Position(position=at, id=len(word) if word else -1, text=word, confidence=confidence, **more)


def test_a_cell_is_open_a_guess_settled_by_a_channel_or_proved_or_the_tokenizer_s_own() -> None:
    (row,) = rows_of(
        [
            (
                0.5,
                progress(
                    0,
                    token(0, "[CLS]", special=True, channel="span"),
                    token(1, ""),
                    token(2, "plan", 0.25),
                    token(3, "day", 7.0, channel="matching"),
                    token(4, "now", float("nan"), proved=True),
                ),
            )
        ]
    )
    (cells,) = row.sentences
    assert [cell.kind for cell in cells] == [SPECIAL, OPEN, CANDIDATE, SETTLED, SETTLED]
    assert [cell.confidence for cell in cells] == [0.5, 0.5, 0.25, 1.0, 0.0]
    assert (row.t, row.phase, cells[2].text) == (0.5, "continuous", "plan")


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100, 1000])
def test_of_a_long_run_evenly_many_rows_are_kept_the_first_and_the_newest_among_them(count: int) -> None:
    events = [(float(step), progress(step, token(0, "a"))) for step in range(count)]
    rows = rows_of(events, most=8)
    numbers, stride = numbers_kept(count, 8)
    assert [row.number for row in rows] == numbers
    assert len(rows) <= 8
    if count:
        assert (numbers[0], numbers[-1]) == (0, count - 1)
        assert all(b - a == stride for a, b in itertools.pairwise(numbers[:-1]))


def test_a_progress_without_an_answer_keeps_the_one_before() -> None:
    rows = rows_of([(0.0, progress(0, token(0, "a"))), (1.0, progress(1))])
    assert rows[1].sentences == rows[0].sentences


def test_a_phase_without_a_row_has_a_line_of_its_own_with_the_answer_as_it_stands() -> None:
    events: list[tuple[float, Event]] = [
        (0.0, Phase(name="labels")),
        (1.0, Phase(name="span")),
        (2.0, progress(0, token(0, "a"), phase="span")),
        (3.0, Phase(name="certify")),
    ]
    state = ViewState.of(events)
    assert state.rows == rows_of(events)
    lines = lines_of(state.rows, state.phases, 10)
    assert [(line.phase, bool(line.sentences)) for line in lines] == [
        ("labels", False),
        ("span", True),
        ("certify", True),
    ]
    assert lines[2].sentences == lines[1].sentences


def test_in_few_lines_the_first_and_the_last_row_stay() -> None:
    rows = rows_of((float(step), progress(step, token(0, "a"))) for step in range(40))
    phases = (PhaseSpan(name="continuous", start=0.0),)
    lines = lines_of(rows, phases, 5)
    assert [line.number for line in lines][0::4] == [0, 39]
    assert len(lines) == 5
    assert [line.number for line in lines_of(rows, phases, 1)] == [39]
    assert lines_of(rows, phases, 0) == []
    assert lines_of((), (), 5) == []
