"""Run folders: what happened in a run, written as it happens and read back as it was.

A folder holds `run.json` (settings, versions, machine), `events.jsonl` (each event a line, `t` seconds after
the start), `result.json` once there is a result, `gradients.safetensors` on request, `traceback.txt` after a
bug, and `control.jsonl`, into which a viewer writes commands. A kill at any moment leaves a readable folder.

This room knows events and files. It knows no model, no attack and no terminal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from textleak.errors import InputError
from textleak.events import (
    Event,
    Finished,
    Phase,
    Progress,
    Recovery,
    Sentence,
    Started,
    Stop,
    Truth,
    from_json,
    to_json,
)

FORMAT_VERSION = 1
COMMANDS = ("pause", "resume", "stop")
# Our choice: a viewer refreshes some 12 times a second, so more than 20 progress events are not seen.
MIN_INTERVAL = 0.05
# Our choice: after a minute and a half the interval grows with the run, so that hours stay in the megabytes.
INTERVAL_GROWTH = 1 / 2000

# Settings that tell of the private batch: its text, classes, and files.
_PRIVATE = ("sentences", "labels", "pictures", "conversions")
_TEXTS = ("reference", "recovered", "reference_tokens", "recovered_tokens", "label", "recovered_label")


def runs_folder() -> Path:
    """Where run folders are made: `$TEXTLEAK_RUNS`, else the platform's folder for user data."""
    chosen = os.environ.get("TEXTLEAK_RUNS")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_data_path

    return user_data_path("textleak", appauthor=False) / "runs"


def check_folder(folder: Path) -> None:
    """Make sure, before any long work, that a run can be written into `folder`; leaves nothing behind.

    Raises:
        InputError: it holds a run already, isn't a folder, or can't be written to.
    """
    if (folder / "run.json").exists():
        raise InputError(
            f"{folder} holds a run already.",
            why="A run never writes over another one's records.",
            fix="Choose another --out, or delete that folder.",
        )
    check_writable(folder)


def check_out(out: Path | None) -> None:
    """Make sure, before any long work, that a run can be written to `out`, or to a new folder where it is None.

    Raises:
        InputError: as for `check_folder`.
    """
    if out is None:
        check_writable(runs_folder())
    else:
        check_folder(out)


def check_writable(folder: Path) -> None:
    """Make sure that files can be made in `folder`, which need not exist yet; leaves nothing behind.

    Raises:
        InputError: it, or what is in its place, can't be written to.
    """
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    try:
        if not nearest.is_dir():
            raise NotADirectoryError(f"{nearest} is a file")
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".textleak-"):
            pass
    except OSError as error:
        raise InputError(
            f"{folder} can't be written to.",
            why=f"{error.strerror or error}.",
            fix="Choose another --out, or set TEXTLEAK_RUNS.",
        ) from None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; imports none of them."""
    found = {"python": platform.python_version()}
    for package in ("textleak", "torch", "transformers", "tokenizers", "numpy", "scipy", "rouge-score"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if "textleak" not in found:
        import textleak

        found["textleak"] = textleak.__version__
    return found


def machine() -> dict[str, Any]:
    """The machine as far as a reader of the records needs it: no host name, no user name."""
    return {"platform": platform.platform(), "processor": platform.machine(), "cores": cores()}


def cores() -> int:
    """CPU cores that this process may really use: its affinity, or a container's quota if that is less."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        found = min(found, max(1, math.ceil(int(quota) / int(period))))
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder:
    """One run's files."""

    path: Path

    @property
    def run_path(self) -> Path:
        """Settings, versions, machine."""
        return self.path / "run.json"

    @property
    def events_path(self) -> Path:
        """One event a line."""
        return self.path / "events.jsonl"

    @property
    def result_path(self) -> Path:
        """The result, once there is one."""
        return self.path / "result.json"

    @property
    def gradients_path(self) -> Path:
        """The shared gradient, on request."""
        return self.path / "gradients.safetensors"

    @property
    def control_path(self) -> Path:
        """Commands of viewers, one a line."""
        return self.path / "control.jsonl"

    @property
    def traceback_path(self) -> Path:
        """What a bug left."""
        return self.path / "traceback.txt"

    @classmethod
    def create(cls, out: Path | None, *, name: str) -> RunFolder:
        """Make a run's folder.

        Args:
            out: the folder; None for a new one under `runs_folder()`.
            name: words that a new folder's name tells the run by, for example "bert-tiny-match".

        Raises:
            InputError: it holds a run already, or can't be made.
        """
        if out is None:
            now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
            words = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
            out = runs_folder() / f"{now}-{words[:60]}-{secrets.token_hex(2)}"
        check_folder(out)
        out.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds private text
        return cls(path=out.resolve())

    def discard(self) -> None:
        """Take back what was written, for a run that is impossible or unwanted; all else stays."""
        own = (self.run_path, self.events_path, self.result_path, self.gradients_path, self.traceback_path)
        for path in (*own, self.control_path):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()


class Recorder:
    """Writes a run's records while it runs, and hands every event on to viewers in the same process.

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

    def __enter__(self) -> Self:
        """Write run.json and the first event."""
        write_json(
            self.folder.run_path,
            {
                "format": FORMAT_VERSION,
                "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "pid": os.getpid(),
                "redacted": self.redact,
                "settings": self._settings,
                "versions": versions(),
                "machine": machine(),
            },
        )
        self._file = os.open(self.folder.events_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
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
        write_json(self.folder.result_path, written)
        self.record(Finished(outcome=outcome, result=written))
        return written

    def fail(self, error: BaseException) -> None:
        """Write the last event of a run that has no result."""
        # A message may quote the input; its kind can't.
        words = type(error).__name__ if self.redact else f"{type(error).__name__}: {error}"
        self.record(Finished(outcome="failed", error=words))

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
        os.write(self._file, (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "replace"))


def execute(
    attack: Generator[Phase | Progress, None, Recovery], recorder: Recorder, *, poll_seconds: float = 0.05
) -> Recovery:
    """Drive an attack to its end, writing what it yields and heeding `control.jsonl` between its steps.

    A KeyboardInterrupt goes through: the caller asks `recorder.recovery(Stop.INTERRUPTED)` for the best.

    Args:
        attack: what `Attack.run` returned.
        recorder: an open recorder.
        poll_seconds: how often a paused run looks for `resume`.

    Returns:
        The attack's recovery, or the best so far when a viewer said `stop`.
    """
    control = Control(recorder.folder.control_path)
    while True:
        if _heed(control, recorder, poll_seconds) == "stop":
            attack.close()
            return recorder.recovery(Stop.STOPPED)
        try:
            event = next(attack)
        except StopIteration as end:
            recovery: Recovery = end.value
            return recovery
        recorder.record(event)


def _without_infinity(value: Any) -> Any:  # noqa: ANN401 - a number, None or a list of them
    if isinstance(value, list | tuple):
        return [_without_infinity(item) for item in value]
    return value if value is None or math.isfinite(value) else None


def _heed(control: Control, recorder: Recorder, poll_seconds: float) -> str:
    """Read new commands; wait while paused. Returns the last command, "" for none."""
    command, paused = "", False
    while True:
        for command in control.read():
            if command == "stop":
                return command
            paused = command == "pause"
            progress = recorder.progress or Progress(phase="", step=0)
            recorder.record(dataclasses.replace(progress, detail="paused" if paused else "resumed"))
            recorder.flush()  # whoever watches from elsewhere sees at once that it waits
        if not paused:
            return command
        time.sleep(poll_seconds)


class Control:
    """New commands in a `control.jsonl`, each told once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def read(self) -> list[str]:
        """Commands written since the last call; costs one stat where there are none."""
        try:
            if self._path.stat().st_size <= self._read:
                return []
            with self._path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        commands = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, AttributeError):
                commands.append(json.loads(line).get("command"))
        return [command for command in commands if command in COMMANDS]


def send(folder: Path, command: str) -> None:
    """Tell a running attack to `pause`, `resume` or `stop`."""
    if command not in COMMANDS:
        raise ValueError(f"{command!r} is not one of {COMMANDS}")
    with RunFolder(path=folder).control_path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"command": command}) + "\n")


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
    """
    if path.is_dir():
        path = RunFolder(path=path).events_path
    rest = b""
    while follow and not path.exists():
        if stop():
            return
        time.sleep(poll_seconds)
    with path.open("rb") as file:
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


def parse_line(line: bytes) -> TimedEvent | None:
    """The event in a line of an `events.jsonl`; None where it is torn or unknown."""
    try:
        record = json.loads(line)
        if "losses" in record:
            record["losses"] = [math.inf if loss is None else loss for loss in record["losses"]]
        return TimedEvent(t=float(record["t"]), event=from_json(record))
    except (ValueError, KeyError, TypeError, RecursionError):  # pydantic's ValidationError is a ValueError
        return None


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
        facts = json.loads(folder.run_path.read_text("utf-8"))
        pid = int(facts.get("pid") or 0)
        if not isinstance(facts.get("settings", {}), dict):
            raise TypeError("its settings are no settings")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is not a run folder.",
            why=f"run.json can't be read: {error}.",
            fix="`textleak run` prints the folder that it makes.",
        ) from None
    alive = _alive(pid)  # before its events are read: what ends after this has written how
    result = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(folder.result_path.read_text("utf-8"))
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
    with path.open("rb") as file:
        left = file.seek(0, os.SEEK_END)
        while left and b"\n" not in end.rstrip(b"\n"):
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
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def write_json(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, never a part."""
    text = json.dumps(value, ensure_ascii=False, indent=1, default=str)
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_text(text + "\n", "utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def redacted_event(event: Event) -> Event:
    """The event without any text, token id, label or words that could quote one."""
    if isinstance(event, Progress):
        return dataclasses.replace(
            event,
            sentences=tuple(_redacted_sentence(s) for s in event.sentences),
            others=(),
            image=(),
            labels=(),
            detail="",
        )
    if isinstance(event, Phase):
        return dataclasses.replace(event, detail="")
    return event


def _redacted_sentence(sentence: Sentence) -> Sentence:
    positions = tuple(
        dataclasses.replace(position, id=-1, text="", candidates=()) for position in sentence.positions
    )
    return Sentence(positions=positions, text="")


def redacted_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the private batch."""
    return {key: value for key, value in settings.items() if key not in _PRIVATE}


def redacted_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with figures only."""
    kept = {key: value for key, value in result.items() if key not in ("notes", "surplus", *_PRIVATE)}
    for samples in ("sentences", "images"):
        if samples in result:
            kept[samples] = [
                {key: None if key in _TEXTS else value for key, value in sample.items()}
                for sample in result[samples]
            ]
    return kept
