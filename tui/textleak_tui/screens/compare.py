"""The compare screen: two runs side by side, both as they were at the same step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widget import Widget
from textual.worker import get_current_worker

from textleak.errors import InputError
from textleak.view import ViewState
from textleak.words import count_of, loss_in_words, seconds_in_words
from textleak_tui.index import AXES, Axis
from textleak_tui.playback import speed_after, speed_in_words
from textleak_tui.recording import Recording
from textleak_tui.screens.base import Page
from textleak_tui.standing import SIGNS
from textleak_tui.widgets import TokenGrid
from textleak_tui.widgets.overlay import NAMES, Courses, Overlay
from textleak_tui.widgets.scrubber import Scrubber, Track, course
from textleak_tui.widgets.words import Words

FRAMES_A_SECOND = 15
# Sizes of the screen below which one side is shown at a time, and below which the curves are left out.
ONE_SIDE, CURVES = 72, 22
# What tells two runs apart, in this order.
_TELLING = (
    "model",
    "weights",
    "task",
    "attack",
    "attack_options",
    "share",
    "client",
    "defense",
    "know",
    "seed",
    "device",
    "dtype",
    "sentences",
)


class Side(Vertical):
    """One of the two runs: a title, its tokens, a line of figures."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__()
        self.letter = name
        self.path = path
        self.recording: Recording | None = None
        self.problem = ""
        self.title = Words(classes="title")
        self.tokens = TokenGrid()
        self.figures = Words(classes="figures")
        try:
            self.recording = Recording(path)
        except InputError as error:
            self.problem = f"{error.what} {error.why}"

    def compose(self) -> Iterable[Widget]:
        """Title, tokens, figures."""
        yield self.title
        yield self.tokens
        yield self.figures

    def at(self, axis: Axis, value: float) -> ViewState:
        """The run as it stood there."""
        recording = self.recording
        return ViewState() if recording is None else recording.state(recording.index_at(axis, value))

    def show(self, axis: Axis, value: float, *, blind: bool, truth: bool) -> ViewState:
        """Draw the run as it stood there."""
        state, recording = self.at(axis, value), self.recording
        facts = state.settings or (recording.settings if recording else {})
        defense = ", ".join(map(str, facts.get("defense") or ())) or "no defense"
        what = f"{facts.get('attack', '?')} on {facts.get('model', '?')}, {defense}"
        self.title.say(f"{self.letter}  {what}")
        self.tokens.show(state, blind=blind, truth=truth, waiting=self._waiting(), flash=True)
        self.figures.say(self._figures(state, axis, value, blind))
        return state

    def _waiting(self) -> str:
        if self.recording is None:
            return self.problem
        if not self.recording.whole:
            return f"Reading the run, {self.recording.share_read:.0%} so far."
        if "picture_shape" in self.recording.settings:
            return "A run on pictures: the replay shows them. The curves are compared here."
        return "No tokens here yet."

    def _figures(self, state: ViewState, axis: Axis, value: float, blind: bool) -> str:
        recording = self.recording
        if recording is None:
            return ""
        parts = []
        end = recording.extent(axis)
        stands = recording.stands
        if recording.finished is None and stands is not None:
            parts.append(f"{SIGNS[stands.outcome]} {stands.outcome}")
        elif value >= end and recording.finished is not None:
            parts.append(f"{SIGNS.get(recording.finished.outcome, '?')} {recording.finished.outcome}")
            parts[-1] += f" at {amount(axis, end)}" if value > end else ""
        rate = state.points[-1].match_rate if state.points and not blind else None
        parts += [f"match rate {rate:.2f}"] if rate is not None else []
        if state.progress is not None:
            loss = state.progress.loss
            parts += [f"loss {loss_in_words(loss)}"] if loss is not None else []
            parts.append(state.progress.phase)
            parts.append(count_of(state.progress.evaluations, "evaluation"))
        return " · ".join(parts)


class CompareScreen(Page):
    """Two runs side by side, with one slider for both."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "play", "Play", tooltip="Play both runs, or hold them."),
        Binding("x", "speed", "Speed", tooltip="Play at ¼×, 1×, 4× or 16× of the longer run's own time."),
        Binding(
            "a",
            "axis",
            "Axis",
            tooltip="Compare at equal steps, equal gradient evaluations or equal seconds.",
        ),
        Binding("full_stop", "step(1)", "One on", show=False, tooltip="Go on to where either run is next."),
        Binding("v", "other", "Other side", show=False, tooltip="In little room: show the other run."),
        Binding("escape", "back", "Back", tooltip="Leave the comparison."),
        Binding(
            "comma",
            "step(-1)",
            "Scrub",
            key_display="← →",
            tooltip="Back to where either run was before, or on to where it is next; with Shift ten.",
        ),
        Binding("t", "app.truth", "Truth", tooltip="Show or hide the true tokens."),
        Binding("b", "app.blind", "Blind", tooltip="Show only what an attacker would see, or all again."),
    ]
    DEFAULT_CSS = """
    CompareScreen {
        & .sides { height: 1fr; }
        & Side { width: 1fr; }
        & .title { height: 1; padding: 0 2; color: $primary; text-style: bold; }
        & .right .title { color: $secondary; }
        & TokenGrid { height: 1fr; min-height: 4; }
        & .figures { height: 1; padding: 0 2; }
        & Overlay { height: 34%; min-height: 6; max-height: 14; }
        & .words { height: auto; max-height: 3; padding: 0 2; color: $text-muted; }
        & .verdict { height: auto; max-height: 2; padding: 0 2; text-style: bold; }
        &.-low Scrubber { height: 1; }
    }
    """

    def __init__(self, left: Path, right: Path) -> None:
        super().__init__("history")
        self.sides = (Side(NAMES[0], left), Side(NAMES[1], right))
        self.sides[1].add_class("right")
        self.overlay = Overlay()
        self.verdict = Words(grows=True, classes="verdict")
        self.words = Words(grows=True, classes="words")
        self.scrubber = Scrubber()
        self.axis: Axis | None = None
        self.value = 0.0
        self.speed = 1.0
        self.playing = False
        self.side = 0
        self._at_end = True
        self._drawn: object = None
        self._clock = time.perf_counter()

    def content(self) -> Iterable[Widget]:
        """Both runs, their curves, who is ahead, what differs, the slider."""
        with Horizontal(classes="sides"):
            yield from self.sides
        yield self.overlay
        yield self.verdict
        yield self.words
        yield self.scrubber

    def on_mount(self) -> None:
        """Begin to read both."""
        self.scrubber.focus()
        for recording in self.recordings:
            self.run_worker(lambda one=recording: _read(one), thread=True, name="read")
        self.set_interval(1 / FRAMES_A_SECOND, self._tick)
        self._draw()

    @property
    def recordings(self) -> list[Recording]:
        """Those that can be read."""
        return [side.recording for side in self.sides if side.recording is not None]

    @property
    def on(self) -> Axis:
        """The axis in use: the chosen one, or the first on which both runs have a length."""
        if self.axis is not None:
            return self.axis
        both = [axis for axis in AXES if all(one.extent(axis) > 0 for one in self.recordings)]
        return both[0] if both else "seconds"

    @property
    def extent(self) -> float:
        """Where the longer run ends."""
        return max((one.extent(self.on) for one in self.recordings), default=0.0)

    def on_resize(self, event: events.Resize) -> None:
        """Fold or unfold."""
        self.set_class(event.size.height < CURVES, "-low")
        self._fold()

    def _fold(self) -> None:
        one = self.size.width < ONE_SIDE
        for number, side in enumerate(self.sides):
            side.display = not one or number == self.side
        self.overlay.display = self.size.height >= CURVES
        self._drawn = None
        self._draw()

    def _tick(self) -> None:
        now = time.perf_counter()
        passed, self._clock = now - self._clock, now
        if self.playing:
            seconds = max((one.extent("seconds") for one in self.recordings), default=0.0)
            # In the longer run's own time, whatever the axis.
            self.value += passed * self.speed * (self.extent / seconds if seconds else 0.0)
            if self.value >= self.extent:
                self.playing, self._at_end, self.value = False, True, self.extent
        elif self._at_end:
            self.value = self.extent
        self._draw()

    def refresh_view(self) -> None:
        """Blind or truth has changed."""
        self._drawn = None
        self._draw()

    def _draw(self) -> None:
        if not self.is_mounted:
            return
        axis, value, extent = self.on, min(self.value, self.extent), self.extent
        places = [one.index_at(axis, value) for one in self.recordings]
        drawn = (
            axis,
            value,
            extent,
            self.playing,
            self.speed,
            [(len(one), one.whole, one.share_read, one.stands) for one in self.recordings],
            places,
        )
        if drawn == self._drawn:
            return
        self._drawn = drawn
        blind, truth = self.sight.blind, self.sight.truth
        states = [side.show(axis, value, blind=blind, truth=truth) for side in self.sides]
        points = tuple(one.points() for one in self.recordings)
        self.overlay.show(Courses(points=points, axis=axis, extent=extent, place=value, blind=blind))
        self.verdict.say(verdict(states, axis, value, blind=blind))
        self.words.say(self._words(states))
        longer = max(self.recordings, key=lambda one: one.extent(axis), default=None)
        sign = "▶" if self.playing else "‖"
        self.scrubber.show(
            Track(
                place=value / extent if extent else 0.0,
                heights=() if longer is None else course(longer.points(), axis, extent, blind=blind),
                before=f"{sign} {speed_in_words(self.speed)}",
                after=f"{amount(axis, value)} of {amount(axis, extent).removeprefix('step ')}",
                still_growing=any(one.finished is None for one in self.recordings),
            )
        )

    def _words(self, states: Sequence[ViewState]) -> Text:
        different = differences(*(state.settings for state in states), blind=self.sight.blind)
        text = Text(different, overflow="ellipsis")
        hidden = [] if self.overlay.display else ["curves"]
        if not all(side.display for side in self.sides):
            hidden.append(f"run {NAMES[1 - self.side]} (v shows it)")
        if hidden:
            text.append(f"\nhidden: {', '.join(hidden)}", style="italic")
        return text

    def _go(self, value: float) -> None:
        self.playing = False
        self.value = max(0.0, min(value, self.extent))
        self._at_end = self.value >= self.extent
        self._draw()

    def on_scrubber_moved(self, message: Scrubber.Moved) -> None:
        """The slider was moved."""
        self._go(message.place * self.extent)

    def on_scrubber_stepped(self, message: Scrubber.Stepped) -> None:
        """An arrow key on the slider."""
        self.action_step(message.by)

    def action_step(self, by: int) -> None:
        """Go on to the next places where either run has an event."""
        value = self.value
        for _ in range(abs(by)):
            near = [one.neighbor(self.on, value, by) for one in self.recordings]
            found = [one for one in near if one is not None]
            if found:
                value = min(found) if by > 0 else max(found)
        self._go(value)

    def action_play(self) -> None:
        """Play or hold; at the end, from the beginning."""
        self.playing = not self.playing and self.extent > 0
        if self.playing:
            self.value = 0.0 if self.value >= self.extent else self.value
            self._at_end = False
        self._clock = time.perf_counter()
        self._draw()

    def action_speed(self) -> None:
        """The next speed."""
        self.speed = speed_after(self.speed)
        self._draw()

    def action_axis(self) -> None:
        """The next axis, at about the same place."""
        share = self.value / self.extent if self.extent else 1.0
        self.axis = AXES[(AXES.index(self.on) + 1) % len(AXES)]
        self.value = share * self.extent
        self._draw()

    def action_other(self) -> None:
        """Show the other run, where there is room for one."""
        self.side = 1 - self.side
        self._fold()

    def action_back(self) -> None:
        """Leave."""
        self.dismiss()


def _read(recording: Recording) -> None:
    worker = get_current_worker()
    recording.follow(lambda: worker.is_cancelled)


def amount(axis: Axis, value: float) -> str:
    """A place on an axis in words."""
    if axis == "seconds":
        return seconds_in_words(value)
    return f"step {int(value):,}" if axis == "steps" else count_of(int(value), "evaluation")


def verdict(states: Sequence[ViewState], axis: Axis, value: float, *, blind: bool) -> str:
    """Who is ahead, in a sentence."""
    where = f"At {amount(axis, value)}"
    rates = [state.points[-1].match_rate if state.points else None for state in states]
    if not blind and None not in rates:
        a, b = (float(rate or 0.0) for rate in rates)
        if a == b:
            return f"{where} both have recovered {a:.0%} of the tokens."
        ahead, behind = (NAMES[0], NAMES[1]) if a > b else (NAMES[1], NAMES[0])
        return f"{where} {ahead} is ahead: {max(a, b):.0%} of the tokens against {behind}'s {min(a, b):.0%}."
    losses = [state.progress.loss if state.progress else None for state in states]
    told = [
        f"{name} {loss_in_words(loss)}" for name, loss in zip(NAMES, losses, strict=True) if loss is not None
    ]
    if len(told) < len(losses):
        return (
            f"{where} the loss is {told[0]}; the other has none." if told else f"{where} neither has a loss."
        )
    return f"{where} the losses are {', '.join(told)}."


def differences(left: Mapping[str, Any], right: Mapping[str, Any], *, blind: bool) -> str:
    """What tells two runs' settings apart, in a line."""
    found = []
    for key in _TELLING:
        a, b = left.get(key), right.get(key)
        if a == b or (key == "attack_options" and left.get("attack") != right.get("attack")):
            continue
        if key == "sentences":
            found.append("the sentences")
        elif isinstance(a, dict) and isinstance(b, dict):
            found += [
                f"{name} ({a.get(name)} | {b.get(name)})" for name in {**a, **b} if a.get(name) != b.get(name)
            ]
        else:
            found.append(f"{key} ({_written(a)} | {_written(b)})")
    if blind:
        found = [one for one in found if one != "the sentences"]
    return f"They differ in {', '.join(found)}." if found else "Both have the same settings."


def _written(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
