"""What is kept of a run's events: some sixty bytes each, enough for its curve and to find its line again."""

from __future__ import annotations

import contextlib
import json
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from textleak.errors import InputError
from textleak.events import Event, Finished, Started, Truth
from textleak.runs import parse_line
from textleak.runs.reading import MOST_POSITIONS
from textleak.scoring import output_ids
from textleak.view import POINTS_KEPT, PhaseSpan, Point, WaterRow, match_rate_of, numbers_kept
from textleak_tui import bounds

Axis = Literal["steps", "evaluations", "seconds"]
AXES: tuple[Axis, ...] = ("steps", "evaluations", "seconds")

_NOTHING = float("nan")


def place_of(point: Point, axis: Axis) -> float:
    """Where a point of a course is on an axis."""
    return {"steps": point.step, "evaluations": point.evaluations, "seconds": point.t}[axis]


class _Span:
    """A phase on the timeline: the event it began with, and the one of its first progress."""

    def __init__(self, event: int, name: str, t: float) -> None:
        self.event, self.name, self.t = event, name, t
        self.first: tuple[int, float, int] | None = None


class Index:
    """What is kept of an events file: columns by event, and columns by progress.

    `add` takes in its lines one after another; `read_to` is the byte up to which that was done.
    """

    def __init__(self) -> None:
        self.read_to = 0
        self.lines = array("Q")
        self.times = array("d")
        self.progress_events = array("Q")
        self.steps = array("d")
        self.evaluations = array("d")
        self.losses = array("d")
        self.rates = array("d")
        self.answers = array("q")
        self.spans: list[_Span] = []
        self.started: dict[str, Any] = {}
        self.truth: tuple[int, Truth] = (-1, Truth())
        self.finished: tuple[int, Finished] | None = None
        self.events = 0
        self.rows: dict[int, WaterRow] = {}
        self._even: tuple[int, list[Point]] = (1, [])  # every so many progress events, as points
        self._skipping = False
        self._references: list[tuple[int, ...]] = []
        self._special: set[int] = set()
        self._last: tuple[Any, float] = (None, _NOTHING)

    def skip(self, size: int) -> None:
        """Pass over so many bytes of a line, and then over its rest."""
        self.read_to += size
        self._skipping = True

    def add(self, line: bytes) -> None:
        """Take in the next whole line; one that isn't an event is passed over."""
        if not self._skipping:
            self._add(line)
        self._skipping = False
        self.read_to += len(line) + 1

    def add_last(self, line: bytes) -> None:
        """Take in a last line without an end, where it is an event."""
        before = self.events
        if not self._skipping:
            self._add(line)
        if self.events > before:
            self.read_to += len(line)

    def _add(self, line: bytes) -> None:
        try:
            record = json.loads(line)
            t, kind = bounds.number_of(record["t"], 0, bounds.MOST_SECONDS), record["event"]
            if self.finished is not None:
                return
            t = max(t, self.times[-1]) if self.events else t
            if kind == "progress":
                self._add_progress(record, t)
            elif kind == "phase":
                self.spans.append(_Span(self.events, bounds.name_of(record["name"]), t))
            elif kind in ("started", "truth", "finished") and (timed := parse_line(line)) is not None:
                self._add_other(timed.event)
            else:
                return
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return
        self.lines.append(self.read_to)
        self.times.append(t)
        # The last of all: a reader in another thread sees an event only when it is whole.
        self.events += 1

    def _add_other(self, event: Event) -> None:
        match event:
            case Started():
                with contextlib.suppress(InputError):  # then those of run.json are there
                    self.started = bounds.settings_of(event.settings)
            case Truth():
                self._references = [output_ids(sentence) for sentence in event.sentences]
                self._special = {p.id for s in event.sentences for p in s.positions if p.special}
                self.truth = (self.events, bounds.truth_of(event))
            case Finished():
                self.finished = (self.events, bounds.finished_of(event))
            case _:
                pass

    def _add_progress(self, record: Mapping[str, Any], t: float) -> None:
        step = bounds.count_of(record["step"])
        total = max(bounds.count_of(record.get("total_steps", 0)), (self.steps or [0])[-1])
        evaluations = max(bounds.count_of(record.get("evaluations", 0)), (self.evaluations or [0])[-1])
        loss = record.get("loss")
        loss = float(loss) if loss is not None and abs(loss) < bounds.LARGEST_LOSS else _NOTHING
        answered = record.get("sentences") or record.get("image")
        answer = len(self.progress_events) if answered else (self.answers or [-1])[-1]
        rate = self._rate(record.get("sentences") or ())
        phase = bounds.name_of(record["phase"])
        if not self.spans or (phase and self.spans[-1].name != phase):
            self.spans.append(_Span(self.events, phase, t))
        if self.spans[-1].first is None:
            self.spans[-1].first = (self.events, t, step)
        self.steps.append(total)
        self.evaluations.append(evaluations)
        self.losses.append(loss)
        self.rates.append(rate)
        self.answers.append(answer)
        self.progress_events.append(self.events)

    def _rate(self, sentences: Sequence[Mapping[str, Any]]) -> float:
        """The token match rate of an answer as it is in the file; that of the answer before where there is none."""
        if not self._references:
            return _NOTHING
        if not sentences:
            return self._last[1]
        special, outputs = set(self._special), []
        for sentence in sentences:
            ids: list[int] = []
            for position in sentence["positions"]:
                at, id = bounds.count_of(position["position"]), position["id"]
                if at >= MOST_POSITIONS:
                    raise ValueError("no sentence is as long")
                ids += [-1] * (at + 1 - len(ids))
                ids[at] = id
                if position.get("special"):
                    special.add(id)
            outputs.append(tuple(ids))
        if self._last[0] != outputs:
            self._last = (outputs, match_rate_of(self._references, outputs, special))
        return self._last[1]

    def point(self, number: int) -> Point:
        """The point of one progress."""
        loss, rate = self.losses[number], self.rates[number]
        return Point(
            self.times[self.progress_events[number]],
            int(self.steps[number]),
            int(self.evaluations[number]),
            None if math.isnan(loss) else loss,
            None if math.isnan(rate) else rate,
        )

    def points(self, count: int) -> tuple[tuple[Point, ...], int]:
        """The course of the first `count` progress events and its stride, as `ViewState` keeps them."""
        numbers, stride = numbers_kept(count, POINTS_KEPT)
        if stride != self._even[0]:
            self._even = stride, []
        even = self._even[1]
        evenly = (count - 1) // stride + 1
        even.extend(map(self.point, range(len(even) * stride, evenly * stride, stride)))
        return (*even[:evenly], *map(self.point, numbers[evenly:])), stride

    def phases(self, event: int) -> tuple[PhaseSpan, ...]:
        """The phases that had begun by an event."""
        begun = [span for span in self.spans if span.event <= event]
        end = None
        if self.finished is not None and self.finished[0] <= event:
            end = self.times[self.finished[0]]
        ends = [*(span.t for span in begun[1:]), end]
        return tuple(
            PhaseSpan(
                name=span.name,
                start=span.t,
                end=end,
                first_step=span.first[1:] if span.first is not None and span.first[0] <= event else None,
            )
            for span, end in zip(begun, ends, strict=False)
        )
