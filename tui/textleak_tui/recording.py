"""A run folder as a timeline: the state at any event, step or second of it, without keeping its events.

`Recording.read` goes over what was written since the last call and keeps some sixty bytes an event: where its
line begins, and what a curve needs. `Recording.state` then reads one line from the file again. So a run of any
length opens in the time it takes to read its file once, a jump to any place takes a millisecond or two, and a run
that another process or another machine is still writing is followed by calling `read` again.
"""

from __future__ import annotations

import bisect
import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from textleak.errors import InputError
from textleak.events import Finished, Progress, Sentence, Truth
from textleak.foreign import open_regular
from textleak.runs import RunFolder, parse_line, read_run
from textleak.view import ROWS_KEPT, PhaseSpan, Point, ViewState, WaterRow, numbers_kept, row_of
from textleak_tui import bounds
from textleak_tui.index import Axis, Index
from textleak_tui.standing import SILENCE, Standing, standing

# Our choice: a quarter of a megabyte is parsed in some 5 ms, so a reader with a time budget keeps to it.
CHUNK = 1 << 18
# Our choice: a batch of 16 pictures of 224 x 224 takes some 17 MB; a longer line is passed over.
LONGEST_LINE = 1 << 26
# Our choice: rows of a waterfall, for going back and forth in it without reading them again.
MOST_ROWS_REMEMBERED = 4 * ROWS_KEPT
# Our choice: how often a run that has no end yet is looked at, and for how long one look may parse.
SECONDS_BETWEEN_LOOKS, SECONDS_A_LOOK = 0.1, 0.05


class Recording:
    """The timeline of one run folder, finished or still being written.

    `read` may be called in a thread; everything else looks at what it has found so far.

    Args:
        path: the run folder, or its events.jsonl.
        clock: the time of day, for how long a run has been silent.

    Raises:
        InputError: it isn't a run folder, or its settings make no sense.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        path = path.parent if path.name == "events.jsonl" else path
        self.record = read_run(path)
        self._settings = bounds.settings_of(self.record.settings)
        self.folder: RunFolder = self.record.folder
        self.whole = False
        self.stands: Standing | None = None
        self._index = Index()
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
        return self._index.started or self._settings

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
        finished, result = self.finished, self.record.result
        if finished is not None and finished.result is not None:
            return finished.result
        with contextlib.suppress(InputError):
            return None if result is None else bounds.result_of(result)
        return None

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
                    self._index = Index()  # the first time, or another file lies in its place
                self._identity, self._size = identity, stat.st_size
                before = self._index.events
                file.seek(self._index.read_to)
                self.whole = False
                self.whole = self._read_lines(file, until)
        except OSError:
            self.whole = True
            return False
        return self._index.events > before

    def _read_lines(self, file: BinaryIO, until: float) -> bool:
        """Take in lines until the time is over, one at least; whether the file's end was reached."""
        index, rest = self._index, bytearray()
        while chunk := file.read(CHUNK):
            begun, *more = chunk.split(b"\n")
            if not more:
                rest += chunk
                if len(rest) > LONGEST_LINE:
                    index.skip(len(rest))
                    rest.clear()
                    if time.perf_counter() > until:
                        return False
                continue
            for line in (bytes(rest + begun), *more[:-1]):
                index.add(line)
            rest = bytearray(more[-1])
            if time.perf_counter() > until:
                return False
        # A last line without an end is torn, or whole where its last bracket is there.
        if rest.endswith(b"}"):
            index.add_last(bytes(rest))
        return True

    def state(self, index: int | None = None) -> ViewState:
        """What the events up to and with number `index` add up to; None for all there are."""
        kept = self._index
        last = kept.events - 1
        at = last if index is None else max(0, min(index, last))
        if last < 0:
            return ViewState(settings=self.settings)
        count = bisect.bisect_right(kept.progress_events, at)
        points, stride = kept.points(count)
        progress = self._progress(kept, count - 1) if count else None
        rows, row_stride = self._rows(kept, count, progress)
        finished, truth = kept.finished, kept.truth[1] if kept.truth[0] <= at else Truth()
        return ViewState(
            settings=self.settings,
            truth=truth.sentences,
            originals=truth.image,
            labels=truth.labels,
            phases=kept.phases(at),
            progress=progress,
            points=points,
            stride=stride,
            seen=count,
            rows=rows,
            row_stride=row_stride,
            finished=finished[1] if finished is not None and finished[0] <= at else None,
            t=kept.times[at],
        )

    def _rows(self, kept: Index, count: int, newest: Progress | None) -> tuple[tuple[WaterRow, ...], int]:
        """The rows of the first `count` progress events, as `ViewState` keeps them; read once, then remembered."""
        if newest is None or newest.image:
            return (), 1
        numbers, stride = numbers_kept(count, ROWS_KEPT)
        if len(kept.rows) > MOST_ROWS_REMEMBERED:
            kept.rows = {number: kept.rows[number] for number in numbers if number in kept.rows}
        for number in numbers:
            if number in kept.rows:
                continue
            progress = newest if number == count - 1 else self._progress(kept, number)
            if progress is not None:
                kept.rows[number] = row_of(number, kept.times[kept.progress_events[number]], progress)
        return tuple(kept.rows[number] for number in numbers if number in kept.rows), stride

    def event_of(self, number: int) -> int:
        """The event that a progress is."""
        return self._index.progress_events[number]

    def _progress(self, kept: Index, number: int) -> Progress | None:
        event, answer = self._event(kept, number), kept.answers[number]
        if event is None or answer in (-1, number):
            return event
        return event.keeping(self._event(kept, answer))

    def _event(self, kept: Index, number: int) -> Progress | None:
        """A progress, read again from the file; None where it can't be."""
        try:
            with open_regular(self.folder.events_path) as file:
                file.seek(kept.lines[kept.progress_events[number]])
                timed = parse_line(file.readline())
        except OSError:
            return None
        if timed is None or not isinstance(timed.event, Progress):
            return None
        return bounds.progress_of(timed.event)

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
            with contextlib.suppress(InputError):  # deleted, or another file lies in its place
                self.record = read_run(self.folder.path)
        outcome = self.record.outcome if finished is None else finished.outcome
        now, seen = self._clock(), self._grew_at
        if outcome == "killed" and now - seen < SILENCE:
            outcome = "elsewhere"
        return standing(
            outcome,
            pid=_pid_of(self.record.facts),
            silent=max(0.0, now - max(seen, _written_at(self.folder))),
            error="" if finished is None else finished.error,
            traceback=self.folder.traceback_path if self.folder.traceback_path.exists() else None,
        )


def _pid_of(facts: Mapping[str, Any]) -> str:
    try:
        return bounds.name_of(facts.get("pid"))
    except TypeError:
        return "?"


def _written_at(folder: RunFolder) -> float:
    """When the run last wrote something; its beginning where it wrote no events, 0 where nothing is known."""
    for path in (folder.events_path, folder.run_path):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0
