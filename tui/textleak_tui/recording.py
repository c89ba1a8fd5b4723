"""A run folder as a timeline: the state at any event, step or second of it, without keeping its events.

`Recording.read` goes over what was written since the last call and keeps some sixty bytes an event: where its
line begins, and what a curve needs. `Recording.state` then reads one line from the file again. So a run of any
length opens in the time it takes to read its file once, a jump to any place takes a millisecond or two, and a run
that another process or another machine is still writing is followed by calling `read` again.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
import math
import os
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from textleak.events import Event, Finished, Progress, Sentence, Started, Truth
from textleak.foreign import open_regular
from textleak.runs import RunFolder, parse_line, read_run
from textleak.scoring import output_ids
from textleak.view import POINTS_KEPT, PhaseSpan, Point, ViewState, match_rate_of
from textleak.words import seconds_in_words

Axis = Literal["steps", "evaluations", "seconds"]
AXES: tuple[Axis, ...] = ("steps", "evaluations", "seconds")

# Our choice: a quarter of a megabyte is parsed in some 5 ms, so a reader with a time budget keeps to it.
CHUNK = 1 << 18
# Our choice: a run writes 20 times a second at first and, after hours, every few seconds; a step of a large model
# may take a minute.
SILENCE = 90.0

# Our choice: how often a run that has no end yet is looked at, and for how long one look may parse.
SECONDS_BETWEEN_LOOKS, SECONDS_A_LOOK = 0.1, 0.05

_NOTHING = float("nan")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """How a run stands, for a person.

    Attributes:
        outcome: "done", "interrupted", "stopped", "failed", "killed", "running", or "silent" where no process here
            writes it and nothing has come for a while.
        what: that in a sentence.
        why: what is known of the cause, "" for nothing.
        fix: what to do, "" for nothing.
    """

    outcome: str
    what: str
    why: str = ""
    fix: str = ""


def place_of(point: Point, axis: Axis) -> float:
    """Where a point of a course is on an axis."""
    return {"steps": point.step, "evaluations": point.evaluations, "seconds": point.t}[axis]


class _Span:
    """A phase on the timeline: the event it began with, and the one of its first progress."""

    def __init__(self, event: int, name: str, t: float) -> None:
        self.event, self.name, self.t = event, name, t
        self.first: tuple[int, float, int] | None = None


class _Index:
    """What is kept of an events file: columns by event, and columns by progress."""

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
        self._references: list[tuple[int, ...]] = []
        self._special: set[int] = set()
        self._last: tuple[Any, float] = (None, _NOTHING)

    def add(self, line: bytes, at: int) -> None:
        """Take in the line that begins at byte `at`; one that isn't an event is passed over."""
        try:
            record = json.loads(line)
            t, kind = float(record["t"]), record["event"]
            if self.finished is not None or not math.isfinite(t):
                return
            t = max(t, self.times[-1]) if self.events else t
            if kind == "progress":
                self._add_progress(record, t)
            elif kind == "phase":
                self.spans.append(_Span(self.events, str(record["name"]), t))
            elif kind in ("started", "truth", "finished") and (timed := parse_line(line)) is not None:
                self._add_other(timed.event)
            else:
                return
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return
        self.lines.append(at)
        self.times.append(t)
        # The last of all: a reader in another thread sees an event only when it is whole.
        self.events += 1

    def _add_other(self, event: Event) -> None:
        match event:
            case Started():
                self.started = event.settings
            case Truth():
                self._references = [output_ids(sentence) for sentence in event.sentences]
                self._special = {p.id for s in event.sentences for p in s.positions if p.special}
                self.truth = (self.events, event)
            case Finished():
                self.finished = (self.events, event)
            case _:
                pass

    def _add_progress(self, record: Mapping[str, Any], t: float) -> None:
        step = int(record["step"])
        total = max(float(record.get("total_steps", 0)), (self.steps or [0])[-1])
        evaluations = max(float(record.get("evaluations", 0)), (self.evaluations or [0])[-1])
        loss = record.get("loss")
        loss = float(loss) if loss is not None and math.isfinite(loss) else _NOTHING
        answered = record.get("sentences") or record.get("image")
        answer = len(self.progress_events) if answered else (self.answers or [-1])[-1]
        rate = self._rate(record.get("sentences") or ())
        phase = str(record["phase"])
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
                at, id = position["position"], position["id"]
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
        if not count:
            return (), 1
        stride = 1
        while count - 1 > (POINTS_KEPT - 1) * stride:
            stride *= 2
        numbers = range(0, count, stride)
        points = [self.point(number) for number in numbers]
        if numbers[-1] != count - 1:
            points.append(self.point(count - 1))
        return tuple(points), stride

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


class Recording:
    """The timeline of one run folder, finished or still being written.

    `read` may be called in a thread; everything else looks at what it has found so far.

    Args:
        path: the run folder, or its events.jsonl.
        clock: the time of day, for how long a run has been silent.

    Raises:
        InputError: it isn't a run folder.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        path = path.parent if path.name == "events.jsonl" else path
        self.record = read_run(path)
        self.folder: RunFolder = self.record.folder
        self.whole = False
        self.stands: Standing | None = None
        self._index = _Index()
        self._identity: tuple[int, int] | None = None
        self._size = 0
        self._clock = clock
        self._grew_at = float("-inf")

    def __len__(self) -> int:
        """How many events were found so far."""
        return self._index.events

    @property
    def settings(self) -> Mapping[str, Any]:
        """The run's settings."""
        return self._index.started or self.record.settings

    @property
    def truth(self) -> tuple[Sentence, ...]:
        """What was in the batch, where that is known."""
        return self._index.truth[1].sentences

    @property
    def finished(self) -> Finished | None:
        """The last event, where the run came to an end."""
        found = self._index.finished
        return None if found is None else found[1]

    @property
    def result(self) -> Mapping[str, Any] | None:
        """The result, where there is one."""
        finished = self.finished
        return finished.result if finished is not None and finished.result is not None else self.record.result

    @property
    def share_read(self) -> float:
        """How much of the file was gone over, 0 to 1."""
        return 1.0 if self.whole or not self._size else min(1.0, self._index.read_to / self._size)

    def read(self, seconds: float = math.inf) -> bool:
        """Go over what was written since the last call, for at most so long; whether there was anything new."""
        until = time.perf_counter() + seconds
        try:
            with open_regular(self.folder.events_path) as file:
                stat = os.fstat(file.fileno())
                identity = stat.st_dev, stat.st_ino
                if self._identity is not None and stat.st_size > self._size:
                    self._grew_at = self._clock()
                if identity != self._identity or stat.st_size < self._index.read_to:
                    self._index = _Index()  # the first time, or another file lies in its place
                self._identity, self._size = identity, stat.st_size
                index, before = self._index, self._index.events
                file.seek(index.read_to)
                self.whole = False
                rest = b""
                while chunk := file.read(CHUNK):
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        index.add(line, index.read_to)
                        index.read_to += len(line) + 1
                    if time.perf_counter() > until:
                        break
                else:
                    self.whole = True
                    # A last line without an end is torn, or whole where its last bracket is there.
                    if rest.endswith(b"}"):
                        events = index.events
                        index.add(rest, index.read_to)
                        index.read_to += len(rest) if index.events > events else 0
        except OSError:
            self.whole = True
            return False
        return index.events > before

    def state(self, index: int | None = None) -> ViewState:
        """What the events up to and with number `index` add up to; None for all there are."""
        kept = self._index
        last = kept.events - 1
        at = last if index is None else max(0, min(index, last))
        if last < 0:
            return ViewState(settings=self.settings)
        count = bisect.bisect_right(kept.progress_events, at)
        points, stride = kept.points(count)
        finished, truth = kept.finished, kept.truth[1] if kept.truth[0] <= at else Truth()
        return ViewState(
            settings=self.settings,
            truth=truth.sentences,
            originals=truth.image,
            labels=truth.labels,
            phases=kept.phases(at),
            progress=self._progress(kept, count - 1) if count else None,
            points=points,
            stride=stride,
            seen=count,
            finished=finished[1] if finished is not None and finished[0] <= at else None,
            t=kept.times[at],
        )

    def _progress(self, kept: _Index, number: int) -> Progress | None:
        event, answer = self._event(kept, number), kept.answers[number]
        if event is None or answer in (-1, number):
            return event
        return event.keeping(self._event(kept, answer))

    def _event(self, kept: _Index, number: int) -> Progress | None:
        """A progress, read again from the file; None where it can't be."""
        try:
            with open_regular(self.folder.events_path) as file:
                file.seek(kept.lines[kept.progress_events[number]])
                timed = parse_line(file.readline())
        except OSError:
            return None
        return timed.event if timed is not None and isinstance(timed.event, Progress) else None

    def points(self) -> tuple[Point, ...]:
        """The whole course, thinned as `ViewState` thins it."""
        return self._index.points(len(self._index.progress_events))[0]

    def phases(self) -> tuple[PhaseSpan, ...]:
        """Every phase that began."""
        return self._index.phases(self._index.events)

    def extent(self, axis: Axis) -> float:
        """Where the timeline ends: the largest step or number of evaluations, or the last second."""
        kept = self._index
        if axis == "seconds":
            return kept.times[kept.events - 1] if kept.events else 0.0
        column = kept.steps if axis == "steps" else kept.evaluations
        return column[-1] if column else 0.0

    def index_at(self, axis: Axis, value: float) -> int:
        """The last event at a step, a number of evaluations or a second; the first event where none is that early.

        What follows a progress without being one (the end of the run, most of all) belongs to its step.
        """
        kept = self._index
        if axis == "seconds":
            return max(0, bisect.bisect_right(kept.times, value, hi=kept.events) - 1)
        column = kept.steps if axis == "steps" else kept.evaluations
        number = bisect.bisect_right(column, value)
        if number == len(column):
            return max(0, kept.events - 1)
        return max(0, kept.progress_events[number] - 1)

    def value_at(self, axis: Axis, index: int) -> float:
        """The step, number of evaluations or second of an event."""
        kept = self._index
        if not kept.events:
            return 0.0
        index = max(0, min(index, kept.events - 1))
        if axis == "seconds":
            return kept.times[index]
        count = bisect.bisect_right(kept.progress_events, index)
        column = kept.steps if axis == "steps" else kept.evaluations
        return column[count - 1] if count else 0.0

    def neighbor(self, axis: Axis, value: float, by: int) -> float | None:
        """The next larger (`by` > 0) or smaller value that an event has; None where there is none."""
        kept = self._index
        columns = {"seconds": kept.times, "steps": kept.steps, "evaluations": kept.evaluations}
        column = columns[axis]
        at = bisect.bisect_right(column, value) if by > 0 else bisect.bisect_left(column, value) - 1
        return column[at] if 0 <= at < len(column) else None

    def follow(self, stopped: Callable[[], bool]) -> None:
        """Read until the run has ended or `stopped()`, which is asked ten times a second; for a thread.

        `stands` is kept up to date meanwhile.
        """
        looked = 0.0
        while not stopped():
            grew = self.read(SECONDS_A_LOOK)
            if self.whole:
                if grew or time.monotonic() - looked > 1:
                    self.stands = self.standing()
                    looked = time.monotonic()
                if self.finished is not None:
                    return
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def standing(self) -> Standing:
        """How the run stands now; looks at its process and its files."""
        finished = self.finished
        if finished is None:
            self.record = read_run(self.folder.path) if self.folder.run_path.exists() else self.record
        outcome = self.record.outcome if finished is None else finished.outcome
        now, seen = self._clock(), self._grew_at
        if outcome == "killed" and now - seen < SILENCE:
            outcome = "elsewhere"
        return standing(
            outcome,
            pid=self.record.facts.get("pid"),
            silent=now - max(seen, _written_at(self.folder.events_path)),
            error="" if finished is None else finished.error,
            traceback=self.folder.traceback_path if self.folder.traceback_path.exists() else None,
        )


def standing(
    outcome: str, *, pid: object, silent: float, error: str = "", traceback: Path | None = None
) -> Standing:
    """How a run stands, in words.

    Args:
        outcome: as `RunRecord.outcome` has it, or "elsewhere" for one that grows though its process isn't here.
        pid: the process that began the run.
        silent: seconds since its events last grew.
        error: what its last event says went wrong.
        traceback: where its traceback is, if anywhere.
    """
    match outcome:
        case "done":
            return Standing(outcome="done", what="The run came to its end.")
        case "interrupted" | "stopped":
            how = "It was interrupted." if outcome == "interrupted" else "It was stopped on request."
            return Standing(
                outcome=outcome, what=how, why="What is shown is the best answer it had.", fix="Run it again."
            )
        case "failed":
            return Standing(
                outcome=outcome,
                what="The run failed.",
                why=error or "It left no word of why.",
                fix="" if traceback is None else f"The traceback is in {traceback}.",
            )
        case "running" if silent < SILENCE:
            return Standing(outcome=outcome, what="The run is still being written.")
        case "running":
            return Standing(
                outcome="silent",
                what=f"Nothing was written for {seconds_in_words(silent)}.",
                why=f"Process {pid} is there: it is paused, at a long step, or another program by now.",
                fix="What comes will be shown.",
            )
        case "elsewhere":
            return Standing(outcome="running", what="The run is still being written, by another machine.")
        case _:
            return Standing(
                outcome="killed",
                what="The run has no end.",
                why=f"There is no process {pid} here and nothing was written for {seconds_in_words(silent)}: it was "
                "killed, or another machine has stopped writing.",
                fix="What it wrote can be replayed; run it again for a result.",
            )


def _written_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return float("-inf")
