"""A run as a spectrogram of its tokens: time downward, one column a position. Made of nothing but events."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from textleak.events import Event, Position, Progress

if TYPE_CHECKING:
    from textleak.view.state import PhaseSpan

# Our choice: more rows than most screens have lines for, few enough to be read again at every jump in a replay.
ROWS_KEPT = 32
OPEN, CANDIDATE, SETTLED, SPECIAL = "open", "candidate", "settled", "special"

T = TypeVar("T")


class WaterCell(NamedTuple):
    """A position at one time.

    Attributes:
        kind: open (no token), a candidate (a guess), settled (a channel gave it away), or special.
        confidence: the attack's own, 0 to 1.
        id: the token; -1 where it is open.
        text: as the tokenizer writes it.
    """

    kind: str
    confidence: float
    id: int
    text: str


class WaterRow(NamedTuple):
    """What an attack held at one time.

    Attributes:
        number: of the progress, from 0.
        t: seconds after the start.
        phase: that it came from.
        sentences: a cell a position of each.
    """

    number: int
    t: float
    phase: str
    sentences: tuple[tuple[WaterCell, ...], ...] = ()


def row_of(number: int, t: float, progress: Progress) -> WaterRow:
    """The row that a progress makes."""
    sentences = tuple(tuple(map(_cell, sentence.positions)) for sentence in progress.sentences)
    return WaterRow(number, t, progress.phase, sentences)


def _cell(position: Position) -> WaterCell:
    confidence = position.confidence
    confidence = max(0.0, min(1.0, confidence)) if math.isfinite(confidence) else 0.0
    if position.special:
        kind = SPECIAL
    elif position.id < 0:
        kind = OPEN
    else:
        kind = SETTLED if position.channel or position.proved else CANDIDATE
    return WaterCell(kind, confidence, position.id, position.text)


def thinned(kept: Sequence[T], new: T, *, stride: int, seen: int, most: int) -> tuple[tuple[T, ...], int]:
    """One more of a series of which every `stride`-th and the newest are kept; those kept now, and their stride.

    Args:
        kept: those kept so far.
        new: the next one.
        stride: of those kept so far.
        seen: how many there were before the new one.
        most: that may be kept; the stride doubles when there are more.
    """
    even = (len(kept) - 1) * stride == seen - 1
    found = (*(kept if even else kept[:-1]), new)
    return (found, stride) if len(found) <= most else ((*found[:-1:2], new), stride * 2)


def numbers_kept(count: int, most: int) -> tuple[list[int], int]:
    """Which of `count` in a series `thinned` keeps, and their stride."""
    if not count:
        return [], 1
    stride = 1
    while count - 1 > (most - 1) * stride:
        stride *= 2
    numbers = list(range(0, count, stride))
    return (numbers if numbers[-1] == count - 1 else [*numbers, count - 1]), stride


def evenly(series: Sequence[T], most: int) -> list[T]:
    """At most so many of a series, two or more, evenly: the first and the last among them."""
    if len(series) <= most:
        return list(series)
    return [series[round(k * (len(series) - 1) / (most - 1))] for k in range(most)]


def rows_of(events: Iterable[tuple[float, Event]], most: int = ROWS_KEPT) -> tuple[WaterRow, ...]:
    """The rows of recorded events, each with its time; a progress without an answer keeps the one before."""
    rows: tuple[WaterRow, ...] = ()
    stride, seen = 1, 0
    before: Progress | None = None
    for t, event in events:
        if isinstance(event, Progress):
            before = event.keeping(before)
            rows, stride = thinned(rows, row_of(seen, t, before), stride=stride, seen=seen, most=most)
            seen += 1
    return rows


def lines_of(
    rows: Sequence[WaterRow], phases: Sequence[PhaseSpan], height: int, *, filled: bool = False
) -> list[WaterRow]:
    """Rows as so many lines, the first and the last among them; a phase without a row gets one of its own.

    Its cells are those of the row before, as an answer stands while it is grouped or proved.

    Args:
        rows: the answers, oldest first.
        phases: that they came from.
        height: lines, at most.
        filled: where there are fewer rows than lines, each takes its even share of them.
    """
    lines, at = list[WaterRow](), 0
    for index, phase in enumerate(phases):
        end = phases[index + 1].start if index + 1 < len(phases) else math.inf
        before = len(lines)
        while at < len(rows) and (rows[at].t < end or index + 1 == len(phases)):
            lines.append(rows[at])
            at += 1
        if len(lines) == before:
            last = lines[-1] if lines else WaterRow(0, phase.start, phase.name)
            lines.append(last._replace(t=phase.start, phase=phase.name))
    lines.extend(rows[at:])
    if height < 2:
        return lines[-height:] if height else []
    if filled and lines:
        # What comes again is another row, so that whoever draws can tell the first of them from the rest.
        shares = itertools.pairwise(height * k // len(lines) for k in range(len(lines) + 1))
        lines = [
            again
            for line, (first, last) in zip(lines, shares, strict=True)
            for again in (line, *(line._replace() for _ in range(first + 1, last)))
        ]
    return evenly(lines, height)
