"""The attack's process: started, steered through its run folder, and never left behind.

The app knows four things of it: its run folder, whether it lives, its last word where it has no result, and the last
lines of its stderr. What the attack does is read from the run folder by `textleak_tui.recording`, so the attack
never waits for the app.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from textleak import runs
from textleak_tui.agreed import INTERRUPTED, environment

LINES_KEPT = 12
BYTES_KEPT = 1 << 16
# Our choice: how long a stopped attack has to certify and write its best answer, when the app is quit.
SECONDS_TO_FINISH = 10.0


class Process(Protocol):
    """What is asked of a process: `asyncio.subprocess.Process` is one."""

    @property
    def stdin(self) -> asyncio.StreamWriter | None: ...  # noqa: D102
    @property
    def stdout(self) -> asyncio.StreamReader | None: ...  # noqa: D102
    @property
    def stderr(self) -> asyncio.StreamReader | None: ...  # noqa: D102
    @property
    def pid(self) -> int | None: ...  # noqa: D102
    @property
    def returncode(self) -> int | None: ...  # noqa: D102
    async def wait(self) -> int: ...  # noqa: D102
    def send_signal(self, number: int, /) -> None: ...  # noqa: D102


# Begins a process of a command for a folder; None where it can't.
Begin = Callable[[str, Path], Awaitable[Process | None]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """What a process that ended without a result leaves: what, why, what to do, and its own last words."""

    what: str
    why: str
    fix: str
    lines: tuple[str, ...] = ()


class Child:
    """One attack in its own process and session.

    Args:
        folder: its run folder, which need not exist yet.
        begin: tried first; None, or where it gives none: a process that loads everything itself.
    """

    def __init__(self, folder: Path, begin: Begin | None = None) -> None:
        self.folder = folder
        self._begin = begin
        self.paused = False
        self.stopping = 0
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self._said = b""
        self._process: Process | None = None
        self._reader: asyncio.Future[Any] | None = None

    async def start(self, command: str, settings: Mapping[str, Any]) -> None:
        """Start an attack.

        Args:
            command: "run" for text, "image" for pictures, "audit" for an update.
            settings: of the run, by the names that configurations have.

        Raises:
            OSError: no process can be started.
        """
        process = None if self._begin is None else await self._begin(command, self.folder)
        if process is None:
            process = await self._cold(command)
        self.watch(process)
        if process.stdin is not None:
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            with contextlib.suppress(ConnectionError):  # it has gone already; its exit code says why
                await process.stdin.drain()

    async def _cold(self, command: str) -> Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "textleak_tui.attack_process",
            command,
            str(self.folder),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            # Signals that the terminal sends to the app don't reach it: it ends by its standard input.
            start_new_session=True,
            env=environment(),
        )

    def watch(self, process: Process) -> None:
        """Answer for a process: read what it says."""
        self._process = process
        self._reader = asyncio.gather(self._read_lines(process.stderr), self._read_word(process.stdout))

    async def _read_lines(self, stderr: asyncio.StreamReader | None) -> None:
        buffer = b""
        while stderr is not None and (chunk := await stderr.read(4096)):
            # A process that writes no line ends must not fill the memory.
            *lines, buffer = (buffer + chunk)[-BYTES_KEPT:].split(b"\n")
            self.lines.extend(text for line in lines if (text := line.decode("utf-8", "replace").rstrip()))
        if buffer.strip():
            self.lines.append(buffer.decode("utf-8", "replace").rstrip())

    async def _read_word(self, stdout: asyncio.StreamReader | None) -> None:
        while stdout is not None and (chunk := await stdout.read(4096)):
            self._said = (self._said + chunk)[-BYTES_KEPT:]

    @property
    def pid(self) -> int | None:
        """Its process, None before it is there."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def going(self) -> bool:
        """Whether it runs and hasn't written its result yet."""
        return self.alive and not (self.folder / "result.json").exists()

    @property
    def ended(self) -> bool:
        """Whether the process has ended and all that it said has been read."""
        return self._process is not None and not self.alive and (self._reader is None or self._reader.done())

    @property
    def exit_code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.returncode

    def memory(self) -> int | None:
        """Bytes of memory that it holds; None where the system doesn't tell."""
        try:
            fields = Path(f"/proc/{self.pid}/statm").read_text("ascii").split()
            return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return None

    def pause(self) -> None:
        """Pause the attack between two steps, or let it go on."""
        if self.alive and self._steerable:
            self.paused = not self.paused
            runs.send(self.folder, "pause" if self.paused else "resume")

    def stop(self) -> None:
        """Stop the attack with its best answer so far; asked again, interrupt it, then kill it."""
        if not self.alive:
            return
        self.stopping += 1
        if self.stopping == 1 and self._steerable:
            runs.send(self.folder, "stop")
        elif self.stopping <= 2:
            self._signal(signal.SIGINT)
        else:
            self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """Kill it."""
        self._signal(signal.SIGKILL)

    async def end(self, seconds: float = SECONDS_TO_FINISH) -> None:
        """Stop it and wait until it is gone, by force if need be."""
        if self._process is None:
            return
        if not self.stopping:
            self.stop()
        for number in (signal.SIGINT, signal.SIGKILL):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), seconds)
                break
            self._signal(number)
        await self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._reader is not None:
            await self._reader

    @property
    def _steerable(self) -> bool:
        """Whether the attack has begun, and so reads commands."""
        return (self.folder / "events.jsonl").exists()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                self._process.send_signal(number)

    def failure(self) -> Failure:
        """Why it ended without a result."""
        code, lines = self.exit_code, tuple(self.lines)
        if code is not None and code < 0:
            return _killed(-code, lines)
        word = _last_word(self._said)
        if word is not None:
            return Failure(what=word["what"], why=word["why"], fix=word["fix"], lines=lines)
        if code == INTERRUPTED:
            return Failure(
                what="The run was stopped before there was an answer.",
                why="It was still loading the model.",
                fix="Start it again.",
            )
        return Failure(
            what=f"The attack's process ended with exit code {code} and no result.",
            why="Its last lines are below.",
            fix="Start it again, or run the command line by itself to see all of it.",
            lines=lines,
        )


def _last_word(said: bytes) -> dict[str, str] | None:
    """What, why and fix from the last line of a standard output; None where there are none."""
    try:
        word = json.loads(said.strip().rpartition(b"\n")[2])
        return {name: str(word[name]) for name in ("what", "why", "fix")}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _killed(number: int, lines: tuple[str, ...]) -> Failure:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    memory = number == signal.SIGKILL
    return Failure(
        what=f"The attack's process was killed ({name}).",
        why="The system does that when memory runs out; else somebody did."
        if memory
        else "It didn't end by itself; the signal says how.",
        fix="Start it again; if memory ran out, with fewer restarts, a smaller model or a shorter batch.",
        lines=lines,
    )
