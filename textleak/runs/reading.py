"""Run folders read back: finished, still going, or left by a process that was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from textleak import foreign
from textleak.errors import InputError
from textleak.events import Event, Finished, Progress, Truth, from_json
from textleak.runs.folder import RunFolder, runs_folder

# Our choices, far above any run's: tokens of a sentence, and bytes of a last line.
MOST_POSITIONS = 1 << 16
MOST_OF_THE_END = 1 << 26


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedEvent:
    """An event and when it happened, in seconds after the start."""

    t: float
    event: Event


def read_events(
    path: Path,
    *,
    follow: bool = False,
    poll_seconds: float = 0.1,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[TimedEvent]:
    """The events in an `events.jsonl`, in order; a torn or unknown line is passed over.

    Args:
        path: the file, or the run folder.
        follow: wait for more until the run has finished or `stop()` is true.
        poll_seconds: how often to look.
        stop: asked while waiting.

    Raises:
        InputError: it is no regular file, or isn't there.
    """
    if path.is_dir():
        path = RunFolder(path=path).events_path
    rest = b""
    while follow and not path.exists():
        if stop():
            return
        time.sleep(poll_seconds)
    with _opened(path) as file:
        while True:
            # Whatever is in the file now is whole lines and perhaps a part of one.
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines if follow else (*lines, rest):
                timed = parse_line(line)
                if timed is None:
                    continue
                yield timed
                if isinstance(timed.event, Finished):
                    return
            if not follow or stop():
                return
            time.sleep(poll_seconds)


def _opened(path: Path) -> BufferedReader:
    try:
        return foreign.open_regular(path)
    except foreign.UnreadError as error:
        raise InputError(f"{path} is not the events of a run.", why=f"{error}.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} is not the events of a run.", why="There is no such file.") from None


def parse_line(line: bytes) -> TimedEvent | None:
    """The event in a line of an `events.jsonl`; None where it is torn or unknown, or its time or positions can't be."""
    try:
        record = json.loads(line)
        if "losses" in record:
            record["losses"] = [math.inf if loss is None else loss for loss in record["losses"]]
        timed = TimedEvent(t=float(record["t"]), event=from_json(record))
    # pydantic's ValidationError is a ValueError
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return timed if math.isfinite(timed.t) and _has_places(timed.event) else None


def _has_places(event: Event) -> bool:
    """Whether each token stands at a place that a sentence can have: all up to the last are counted through."""
    sentences = event.sentences if isinstance(event, Progress | Truth) else ()
    return all(
        0 <= position.position < MOST_POSITIONS for sentence in sentences for position in sentence.positions
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run folder as it can be read now.

    Attributes:
        folder: its files.
        facts: run.json.
        outcome: "done", "interrupted", "stopped", "failed", "running", or "killed" where the process is gone
            without a last event.
        result: result.json, None where there is none.
    """

    folder: RunFolder
    facts: dict[str, Any]
    outcome: str
    result: dict[str, Any] | None

    @property
    def settings(self) -> dict[str, Any]:
        """The run's settings."""
        settings: dict[str, Any] = self.facts.get("settings", {})
        return settings

    def events(self) -> Iterator[TimedEvent]:
        """Its events."""
        return read_events(self.folder.events_path) if self.folder.events_path.exists() else iter(())


def read_run(path: Path) -> RunRecord:
    """Read a run folder, finished or not.

    Raises:
        InputError: it isn't a run folder.
    """
    folder = RunFolder(path=path)
    try:
        facts = json.loads(foreign.read(folder.run_path))
        pid = int(facts.get("pid") or 0)
        if not isinstance(facts.get("settings", {}), dict):
            raise TypeError("its settings are no settings")
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(
            f"{path} is not a run folder.",
            why=f"run.json can't be read: {error}.",
            fix="`textleak run` prints the folder that it makes.",
        ) from None
    alive = _alive(pid)  # before its events are read: what ends after this has written how
    result = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(foreign.read(folder.result_path))
        result = found if isinstance(found, dict) else None
    outcome = ""
    with contextlib.suppress(OSError):
        outcome = _last_outcome(folder.events_path)
    if not outcome and result is not None:
        outcome = str(result.get("outcome", "done"))
    return RunRecord(
        folder=folder,
        facts=facts,
        outcome=outcome or ("running" if alive else "killed"),
        result=result,
    )


def list_runs(root: Path | None = None) -> list[Path]:
    """Run folders under `root` (default: `runs_folder()`), newest first."""
    found = []
    for path in (root or runs_folder()).glob("*/run.json"):
        with contextlib.suppress(OSError):  # deleted meanwhile
            found.append((path.stat().st_mtime, path.parent))
    return [path for _, path in sorted(found, reverse=True)]


def _last_outcome(path: Path) -> str:
    """The outcome in the last whole line, "" where it isn't a last event; reads no more than the end."""
    end = b""
    with foreign.open_regular(path) as file:
        left = file.seek(0, os.SEEK_END)
        while left and len(end) < MOST_OF_THE_END and b"\n" not in end.rstrip(b"\n"):
            size = min(left, max(1 << 16, len(end)))
            left -= size
            file.seek(left)
            end = file.read(size) + end
    line = end.rstrip(b"\n").rpartition(b"\n")[2]
    timed = parse_line(line) if b'"finished"' in line[:80] else None
    return timed.event.outcome if timed and isinstance(timed.event, Finished) else ""


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    if os.name == "nt":  # where signal 0 is no question but an order
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # the latter where no process can have such a number
        return False
    except OSError:
        return True
    return True
