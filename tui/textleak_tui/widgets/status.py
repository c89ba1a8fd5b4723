"""One line of figures: elapsed, steps a second, evaluations, device, memory."""

from __future__ import annotations

import dataclasses

from rich.text import Text

from textleak.view import UNICODE, ViewState, remaining_seconds
from textleak.words import count_of, loss_in_words, seconds_in_words
from textleak_tui.standing import CERTIFY
from textleak_tui.widgets.drawn import Drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pulse:
    """How the attack's process is doing.

    Attributes:
        now: seconds since the run's start; None for the time of the last event.
        memory: bytes that it holds, where that is known.
        paused: it waits.
    """

    now: float | None = None
    memory: int | None = None
    paused: bool = False


NO_PULSE = Pulse()


class StatusLine(Drawn):
    """The figures of a run, as many as the width holds."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._parts: list[str] = []

    def show(self, state: ViewState, *, blind: bool = False, pulse: Pulse = NO_PULSE) -> None:
        """Draw a state.

        Args:
            state: what the events so far add up to.
            blind: leave the match rate out.
            pulse: how the attack's process is doing, where there is one.
        """
        parts = _parts(state, pulse, blind)
        if parts != self._parts:
            self._parts = parts
            self.redraw()

    def draw(self) -> list[Text]:
        """As many parts as fit."""
        line = Text(no_wrap=True)
        for part in self._parts:
            needed = len(UNICODE.dot) * bool(line.plain) + Text(part).cell_len
            if line.plain and line.cell_len + needed > self.size.width:
                break
            line.append(UNICODE.dot if line.plain else "", style="dim").append(part)
        return [line]


def _parts(state: ViewState, pulse: Pulse, blind: bool) -> list[str]:
    progress = state.progress
    now = state.t if pulse.now is None or state.finished else pulse.now
    parts = _times(state, pulse, now)
    rate = None if blind or not state.rates else state.rates[-1]
    if rate is not None:
        parts.append(f"match rate {rate:.2f}")
    if progress is not None:
        if progress.loss is not None:
            parts.append(f"loss {loss_in_words(progress.loss)}")
        parts.append(f"step {progress.step:,}" + (f" of {progress.steps:,}" if progress.steps else ""))
        speed = steps_a_second(state)
        if speed is not None and state.finished is None:
            parts.append(f"{speed:.3g} steps/s")
        parts.append(count_of(progress.evaluations, "evaluation"))
        left = None if pulse.paused or state.finished else remaining_seconds(state, now)
        if left is not None:
            parts.append(f"phase ends within {seconds_in_words(left)}")
    if state.settings.get("device"):
        parts.append(str(state.settings["device"]))
    if pulse.memory is not None:
        parts.append(f"{pulse.memory / 2**20:,.0f} MiB")
    return parts


def _times(state: ViewState, pulse: Pulse, now: float) -> list[str]:
    """How the run stands, and how long it took or is going."""
    finished = state.finished
    took = ((finished.result if finished else None) or {}).get("seconds")
    begun = bool(state.phases) or state.progress is not None or finished is not None
    parts = [f"{seconds_in_words(now)} elapsed" if begun else "loading"]
    if isinstance(took, int | float):
        attack, whole = seconds_in_words(took), seconds_in_words(now)
        parts = [f"took {attack}" + (f", {whole} with its certificate" if whole != attack else "")]
    if finished is None and state.phases and state.phases[-1].name == CERTIFY:
        parts.insert(0, "the answer is final, its certificate is being made")
    if pulse.paused:
        parts.insert(0, "paused")
    if finished is not None and finished.outcome != "done":
        parts.insert(0, finished.outcome)
    return parts


def steps_a_second(state: ViewState) -> float | None:
    """Speed of the running phase; None while it can't be told."""
    progress, phases = state.progress, state.phases
    if progress is None or not phases or phases[-1].first_step is None:
        return None
    since, first = phases[-1].first_step
    done = progress.step - first
    return done / (state.t - since) if done > 0 and state.t > since else None
