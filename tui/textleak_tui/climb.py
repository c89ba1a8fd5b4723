"""Climbing a ladder: its runs, one after another, each watched until its process has ended.

No screen in here: who draws the rungs is called whenever one has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from textleak.view import ViewState
from textleak_tui import ladder
from textleak_tui.child import Failure
from textleak_tui.ladder import Knob
from textleak_tui.session import Session, Sessions
from textleak_tui.setups import TEXT, settings_of

LOOKS_A_SECOND = 8


class Rung:
    """One run of the ladder, and how it stands.

    Args:
        strength: of the defense.
        session: its attack, not started yet.
        settings: of its run.
    """

    def __init__(self, strength: str, session: Session, settings: Mapping[str, Any]) -> None:
        self.strength = strength
        self.session = session
        self.settings = settings
        self.left_out = False
        self._seconds: float | None = None

    @property
    def status(self) -> str:
        """How it stands: waiting, loading, running, not run, or how it ended."""
        if self.left_out:
            return "not run"
        if self._seconds is None:
            return "waiting"
        if self.session.failure is not None:
            return "failed"
        if not self.session.settled:
            return "loading" if self.session.recording is None else "running"
        finished = self.state.finished
        return "failed" if finished is None else finished.outcome

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status not in ("waiting", "loading", "running")

    @property
    def state(self) -> ViewState:
        """What it has come to so far."""
        return self.session.state

    @property
    def failure(self) -> Failure | None:
        """Why it failed, where it did."""
        return self.session.failure

    @property
    def result(self) -> Mapping[str, Any] | None:
        """What it came to, once it has."""
        return self.state.finished.result if self.state.finished is not None else None

    @property
    def took(self) -> float | None:
        """The attack's own seconds, once it is over; until then the process's, loading included. None before."""
        seconds = (self.result or {}).get("seconds")
        return float(seconds) if isinstance(seconds, int | float) else self._seconds

    @property
    def rate(self) -> float | None:
        """The match rate, or how it stands so far."""
        if self.result is not None:
            rate = self.result.get("token_match_rate")
            return float(rate) if isinstance(rate, int | float) else None
        return self.state.points[-1].match_rate if self.state.points else None

    async def run(self, changed: Callable[[], None]) -> None:
        """Attack, and watch until the process has ended."""
        self._seconds = 0.0
        changed()
        await self.session.start(TEXT.command, self.settings)
        while True:
            self.session.look()
            self._seconds = self.session.seconds
            changed()
            if self.session.settled:
                return
            await asyncio.sleep(1 / LOOKS_A_SECOND)


class Climb:
    """All rungs of a ladder of one knob.

    Args:
        knob: what grows.
        strengths: its rungs.
        batch: the private sentences.
        values: a form's texts, the same for every rung.
        sessions: opens the attacks.
    """

    def __init__(
        self,
        knob: Knob,
        strengths: Sequence[str],
        batch: Sequence[str],
        values: Mapping[str, str],
        sessions: Sessions,
    ) -> None:
        self.knob = knob
        self.name = sessions.name("ladder")
        self.going = True
        self.stopping = False
        self.command_lines = ladder.command_lines(batch, values, knob, strengths)
        self.rungs = [
            Rung(
                strength,
                sessions.open(f"{self.name}-{number}-{knob.defense}"),
                settings_of(batch, ladder.with_rung(values, knob, strength)),
            )
            for number, strength in enumerate(strengths, 1)
        ]

    async def run(self, changed: Callable[[], None]) -> None:
        """One rung after another; `changed` is called whenever there is something new to draw."""
        for rung in self.rungs:
            if self.stopping:
                rung.left_out = True
            else:
                await rung.run(changed)
        self.going = False
        changed()

    def stop(self) -> None:
        """Stop the rung that runs with its best answer, and leave out the rest; asked again, by force."""
        self.stopping = True
        for rung in self.rungs:
            if not rung.over and rung.status != "waiting":
                rung.session.stop()

    def verdict(self) -> str:
        """What the rungs that are over say, in a sentence."""
        told = {rung.strength: rung.rate for rung in self.rungs if rung.over and rung.result is not None}
        rates = [(name, rate) for name, rate in told.items() if rate is not None]
        unrun = [rung.strength for rung in self.rungs if told.get(rung.strength) is None]
        return ladder.verdict(self.knob, rates, unrun)
