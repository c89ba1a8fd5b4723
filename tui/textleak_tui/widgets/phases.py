"""The phases of an attack as a timeline: what is done, what is running, how long each took."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from rich.style import Style
from rich.text import Text

from textleak.view import UNICODE, PhaseSpan, ViewState
from textleak.words import seconds_in_words
from textleak_tui.standing import CERTIFY, SIGNS
from textleak_tui.widgets.drawn import Drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stretch:
    """All times that a phase ran, together."""

    name: str
    seconds: float
    times: int
    running: bool


class PhaseTimeline(Drawn):
    """One line of phases in the order of their first beginning; with room, a second one to scale."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "phase--done",
        "phase--running",
        "phase--failed",
        "phase--stopped",
        "phase--quiet",
        "phase--even",
        "phase--odd",
    }

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._state = ViewState()
        self._now = 0.0
        self._drawn: object = None

    def show(self, state: ViewState, *, blind: bool = False, now: float | None = None) -> None:
        """Draw a state as it stands `now` seconds after the run's start; nothing here tells the truth."""
        self._state = state
        self._now = state.t if now is None or state.finished else now
        drawn = (state.phases, state.finished and state.finished.outcome, round(self._now, 1))
        if drawn != self._drawn:
            self._drawn = drawn
            self.redraw()

    def draw(self) -> list[Text]:
        """The line or the two lines."""
        width, quiet = self.size.width, self.ink("phase--quiet")
        if not self._state.phases:
            return [Text("the attack has not begun yet", style=quiet)]
        chips = self._chips(width, quiet)
        return [chips, self._scale(width)] if self.size.height > 1 else [chips]

    def _chips(self, width: int, quiet: Style) -> Text:
        finished = self._state.finished
        outcome = "done" if finished is None else finished.outcome
        pieces = []
        stretches = stretches_of(self._state.phases, self._now)
        # What was stopped is what went on before its best answer was certified.
        failed = outcome in ("failed", "killed")
        ended = [phase.name for phase in self._state.phases if phase.name != CERTIFY or failed]
        last = ended[-1] if ended else CERTIFY
        for stretch in stretches:
            sign, kind = (UNICODE.now, "running") if stretch.running else (UNICODE.done, "done")
            if outcome != "done" and stretch.name == last:
                sign, kind = (
                    SIGNS.get(outcome, UNICODE.failed),
                    "failed" if failed else "stopped",
                )
            piece = Text(f"{sign} {stretch.name}", style=self.ink(f"phase--{kind}"))
            times = f" ×{stretch.times}" if stretch.times > 1 else ""
            piece.append(f"{times} {seconds_in_words(stretch.seconds)}", style=quiet)
            pieces.append(piece)
        joint = Text(" ─ ", style=quiet)
        line, dropped = joint.join(pieces), 0
        while line.cell_len > width and dropped < len(pieces) - 1:
            dropped += 1
            line = joint.join([Text(UNICODE.ellipsis, style=quiet), *pieces[dropped:]])
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
        return line

    def _scale(self, width: int) -> Text:
        """Each phase as long as it took, next to each other in two tones."""
        start = self._state.phases[0].start
        end = max(self._now, self._state.phases[-1].end or 0.0, start + 1e-6)
        line, drawn = Text(no_wrap=True), 0
        for index, phase in enumerate(self._state.phases):
            until = end if phase.end is None else phase.end
            column = round((until - start) / (end - start) * width)
            tone = "running" if phase.end is None else "odd" if index % 2 else "even"
            style = self.ink(f"phase--{tone}")
            line.append("▔" * max(0, column - drawn), style=style)
            drawn = max(drawn, column)
        return line


def stretches_of(phases: tuple[PhaseSpan, ...], now: float) -> list[Stretch]:
    """The phases by name, in the order in which they first began."""
    found: dict[str, Stretch] = {}
    for phase in phases:
        before = found.get(phase.name, Stretch(name=phase.name, seconds=0.0, times=0, running=False))
        spent = (now if phase.end is None else phase.end) - phase.start
        found[phase.name] = Stretch(
            name=phase.name,
            seconds=before.seconds + max(0.0, spent),
            times=before.times + 1,
            running=phase.end is None,
        )
    return list(found.values())
