"""Writes a run's records while it runs."""

from __future__ import annotations

import datetime
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from textleak import owned
from textleak.errors import TextleakError
from textleak.events import Event, Finished, Progress, Recovery, Started, Stop, Truth, to_json
from textleak.runs.folder import RunFolder, write_json
from textleak.runs.machine import machine_facts, versions
from textleak.runs.redaction import redacted_event, redacted_result, redacted_settings

FORMAT_VERSION = 1
# Our choice: a viewer refreshes some 12 times a second, so more than 20 progress events are not seen.
MIN_INTERVAL = 0.05
# Our choice: after a minute and a half the interval grows with the run, so that hours stay in the megabytes.
INTERVAL_GROWTH = 1 / 2000


class Recorder:
    """Writes a run's records while it runs, and hands every event on to viewers in the same process.

    Where they can't be written any more, as on a full disk, the run goes on without, and `problem` says so at its end.

    Use it as a context manager. `redact` takes every text, token id, label and the truth out of the events
    before anything sees them, viewers included.
    """

    def __init__(
        self,
        folder: RunFolder,
        settings: Mapping[str, Any],
        *,
        redact: bool = False,
        viewers: Sequence[Callable[[Event], None]] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.redact = redact
        self.progress: Progress | None = None
        self._settings = redacted_settings(settings) if redact else dict(settings)
        self._viewers = tuple(viewers)
        self._clock = clock
        self._start = clock()
        self._written = float("-inf")
        self._waiting: tuple[float, Event] | None = None
        self._file: int | None = None
        self._problem: OSError | None = None

    def __enter__(self) -> Self:
        """Write run.json and the first event.

        Raises:
            TextleakError: they can't be written.
        """
        facts = {
            "format": FORMAT_VERSION,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "pid": os.getpid(),
            "redacted": self.redact,
            "settings": self._settings,
            "versions": versions(),
            "machine": machine_facts(),
        }
        try:
            write_json(self.folder.run_path, facts)
            self._file = owned.append_to(self.folder.events_path)
        except OSError as error:
            raise self._unwritable(error, "Nothing has been computed.") from None
        self.record(Started(settings=self._settings))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what is still waiting."""
        if self._file is not None:
            self.flush()
            os.close(self._file)
            self._file = None

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    def record(self, event: Event) -> None:
        """Write an event and hand it to the viewers.

        Progress that follows too soon is held back until the next event shows whether it mattered: the last
        of a phase is always written.
        """
        if isinstance(event, Progress):
            self.progress = event.keeping(self.progress)
        if self.redact:
            if isinstance(event, Truth):
                return
            event = redacted_event(event)
        now = self.elapsed()
        if isinstance(event, Progress):
            before = self._waiting[1] if self._waiting else None
            if isinstance(before, Progress) and before.phase != event.phase:
                self.flush()
            if now - self._written < max(MIN_INTERVAL, now * INTERVAL_GROWTH):
                self._waiting = (now, event)
            else:
                self._waiting = None
                self._written = now
                self._write(now, event)
        else:
            self.flush()
            self._write(now, event)
        for viewer in self._viewers:
            viewer(event)

    def finish(self, outcome: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """Write result.json and the last event.

        Args:
            outcome: "done", "interrupted" or "stopped".
            result: what `run --json` prints.

        Returns:
            The result as it was written, texts taken out where the run is redacted.
        """
        written = redacted_result(result) if self.redact else dict(result)
        try:
            write_json(self.folder.result_path, written)
        except OSError as error:
            self._problem = self._problem or error
        self.record(Finished(outcome=outcome, result=written))
        return written

    def fail(self, error: BaseException) -> None:
        """Write the last event of a run that has no result."""
        # A message may quote the input; its kind can't.
        words = type(error).__name__ if self.redact else f"{type(error).__name__}: {error}"
        self.record(Finished(outcome="failed", error=words))

    def problem(self) -> TextleakError | None:
        """Why the records are not whole; None where they are."""
        if self._problem is None:
            return None
        return self._unwritable(self._problem, "The records of this run are not whole.")

    def _unwritable(self, error: OSError, why: str) -> TextleakError:
        return TextleakError(
            f"{self.folder.path} can't be written to: {error.strerror or error}.",
            why=why,
            fix="Make room, or choose another --out, and run it again.",
        )

    def recovery(self, stop: Stop) -> Recovery:
        """The best answer so far, for a run that ends before its attack does."""
        return Recovery.from_progress(self.progress or Progress(phase="", step=0), stop)

    def flush(self) -> None:
        """Write what is held back."""
        if self._waiting is not None:
            (at, event), self._waiting = self._waiting, None
            self._write(at, event)

    def _write(self, at: float, event: Event) -> None:
        if self._file is None:
            raise RuntimeError("the recorder is not open")
        record = {"t": round(at, 3), **to_json(event)}
        # JSON knows no infinity: a diverged candidate's loss is written as null.
        for key in ("loss", "losses"):
            if key in record:
                record[key] = _without_infinity(record[key])
        # One system call a line: an interrupt falls between lines, and a kill tears the last one at most.
        line = (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        if self._problem is not None:  # a line behind one that is torn would be torn with it
            return
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError as error:
            self._problem = error


def _without_infinity(value: Any) -> Any:  # noqa: ANN401 - a number, None or a list of them
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return value if value is None or math.isfinite(value) else None
