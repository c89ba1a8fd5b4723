"""The attacks that the app starts: each a process and what it has written so far, as the screens draw it.

A screen is handed `Sessions`, opens one, starts it, and calls `look` a few times a second; the newest state wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from textleak import runs
from textleak.errors import InputError
from textleak.events import Finished
from textleak.view import ViewState
from textleak_tui import catalog
from textleak_tui.agreed import REFUSED
from textleak_tui.catalog import Catalog
from textleak_tui.child import Child, Failure
from textleak_tui.recording import Recording
from textleak_tui.starter import Starter

# Our choice: how long one look may spend on reading what the attack wrote.
SECONDS_TO_READ = 0.02


class Session:
    """One attack: its process, the state that its events add up to, and why it failed where it did.

    `settled` is set when its process has ended and all that it wrote was read.

    Args:
        child: its process, not started yet.
        clock: seconds that only go forward.
    """

    def __init__(self, child: Child, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.child = child
        self._state, self._stale = ViewState(), False
        self.recording: Recording | None = None
        self.failure: Failure | None = None
        self._clock = clock
        self._began = self._heard = clock()
        self._elapsed = 0.0
        self.settled = False

    @property
    def folder(self) -> Path:
        """Where it writes."""
        return self.child.folder

    @property
    def state(self) -> ViewState:
        """What its events add up to; worked out when it is asked for."""
        if self._stale and self.recording is not None:
            self._state, self._stale = self.recording.state(), False
        return self._state

    @property
    def _finished(self) -> Finished | None:
        return None if self.recording is None else self.recording.finished

    @property
    def going(self) -> bool:
        """Whether there is more to come; once there is an answer, nobody waits for its process."""
        finished = self._finished
        return not self.settled and (finished is None or finished.outcome == "failed")

    @property
    def paused(self) -> bool:
        """Whether the attack was asked to wait."""
        return self.child.paused

    @property
    def refused(self) -> bool:
        """Whether it ended before it began, as its settings can't be used."""
        return self.settled and self.child.exit_code == REFUSED and self.state.progress is None

    @property
    def accepted(self) -> bool:
        """Whether its settings could be used; False while that isn't known yet."""
        return self.recording is not None or (self.settled and not self.refused)

    @property
    def seconds(self) -> float:
        """Since the process was asked for, its loading included."""
        return self._clock() - self._began

    def elapsed(self) -> float:
        """Seconds since the attack began, pauses included, as its events count them: between two the clock runs on."""
        now = self.state.t
        if self.recording is not None and self.child.alive:
            now += self._clock() - self._heard
        # An event is read a moment after it was written.
        self._elapsed = max(self._elapsed, now)
        return now if self._finished is not None else self._elapsed

    async def start(self, command: str, settings: Mapping[str, Any]) -> None:
        """Start the process; where there can't be one, `failure` says why.

        Args:
            command: "run" for text, "image" for pictures, "audit" for an update.
            settings: of the run, by the names that configurations have.
        """
        self._began = self._heard = self._clock()
        try:
            await self.child.start(command, settings)
        except OSError as error:
            self.settled = True
            self.failure = Failure(
                what="The attack's process can't be started.",
                why=f"{error.strerror or error}.",
                fix="Free some memory or processes, then start it again.",
            )

    def look(self) -> bool:
        """Take in what was written since the last look; whether there was anything new."""
        if self.settled:
            return False
        ended = self.child.ended  # before its events are read: what has ended has written all of them
        if self.recording is None and (self.folder / "events.jsonl").exists():
            with contextlib.suppress(InputError):
                self.recording = Recording(self.folder)
        news = self.recording is not None and self.recording.read(SECONDS_TO_READ)
        if news:
            self._stale, self._heard = True, self._clock()
        if ended and (self.recording is None or self.recording.whole):
            self.settled = True
            if self._finished is None or self._finished.outcome == "failed":
                self.failure = self.child.failure()
            return True
        return news

    def pause(self) -> None:
        """Let it wait between two steps, or go on; one that hasn't begun can't."""
        self.child.pause()

    def stop(self) -> None:
        """Stop it with its best answer so far; asked again, by force."""
        self.child.stop()


class Sessions:
    """Opens sessions, and answers for their end: no attack goes on without the app.

    Args:
        root: where run folders are made.
        child: what makes a process for a folder.
        starter: begins processes that have loaded everything, and is ended with them; None for none.
    """

    def __init__(
        self, root: Path, child: Callable[[Path], Child] = Child, *, starter: Starter | None = None
    ) -> None:
        self.root = root
        self.starter = starter
        self._child = child
        self._open: set[Session] = set()

    def name(self, words: str) -> str:
        """A new folder's name, as every run's is made, from words that tell the run by."""
        return runs.new_path(words, self.root).name

    def open(self, name: str) -> Session:
        """A session for the folder of this name under the root, not started yet."""
        session = Session(self._child(self.root / name))
        self._open = {one for one in self._open if not one.child.ended} | {session}
        return session

    async def catalog(self) -> Catalog:
        """What attacks there are: of the warm process, else of one that lists them."""
        told = None if self.starter is None else self.starter.catalog
        found = None if told is None else await asyncio.shield(told)
        return await catalog.list_catalog() if found is None else Catalog.from_json(found)

    @property
    def going(self) -> list[Session]:
        """Those whose attack has no result yet."""
        return [one for one in self._open if one.child.going]

    def kill(self) -> None:
        """Kill what is going."""
        for one in self.going:
            one.child.kill()

    async def end(self) -> None:
        """End everything, with its best answer where it finds the time."""
        await asyncio.gather(*(one.child.end() for one in self._open))
        self._open.clear()
        if self.starter is not None:
            self.starter.end()
