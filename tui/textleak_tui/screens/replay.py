"""The replay screen: one run folder, scrubbed through, played, or followed while it is still being written."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.worker import get_current_worker

from textleak.errors import InputError
from textleak.view import Point, ViewState
from textleak.words import seconds_in_words
from textleak_tui.recording import Axis, Recording, Standing, place_of
from textleak_tui.screens.base import Page
from textleak_tui.widgets import RunView
from textleak_tui.widgets.scrubber import Scrubber, Track, loss_heights
from textleak_tui.widgets.words import Words

FRAMES_A_SECOND = 15
SECONDS_BETWEEN_LIVE_FRAMES = 0.12
SPEEDS = (0.25, 1.0, 4.0, 16.0)
SIGNS = {
    "done": "✓",
    "running": "●",
    "silent": "◌",
    "interrupted": "■",
    "stopped": "■",
    "failed": "✗",
    "killed": "✗",
    "broken": "✗",
}


class ReplayScreen(Page):
    """One run folder.

    A finished run opens at its end, where its answer is; playing begins at the beginning. A run without an end is
    followed until one goes elsewhere.
    """

    place = "history"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("space", "play", "Play/pause", tooltip="Play the run, or hold it."),
        Binding(
            "comma",
            "step(-1)",
            "Scrub",
            key_display="← →",
            tooltip="One event back or on, with Shift ten, by Page keys a tenth, by Home and End all the way.",
        ),
        Binding("x", "speed", "Speed", tooltip="Play at ¼×, 1×, 4× or 16× of the run's own time."),
        Binding("full_stop", "step(1)", "One on", show=False, tooltip="Go one event on; a comma, one back."),
        Binding("escape", "back", "Back", tooltip="Leave the replay."),
        Binding("e", "export", "Export", tooltip="Write the screen, the run or a summary to a file."),
        Binding("t", "app.truth", "Truth", tooltip="Show or hide the true tokens."),
        Binding(
            "f",
            "newest",
            "Newest",
            show=False,
            tooltip="Go to the end; follow it while the run is still written.",
        ),
    ]
    DEFAULT_CSS = """
    ReplayScreen {
        & Scrubber { height: 2; }
        &.-low Scrubber { height: 1; }
        & .standing { height: auto; max-height: 4; margin: 0 2; color: $warning; }
    }
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.folder = run
        self.recording: Recording | None = None
        self.problem: Standing | None = None
        try:
            self.recording = Recording(run)
        except InputError as error:
            self.problem = Standing(outcome="broken", what=error.what, why=error.why, fix=error.fix)
        self.view = RunView()
        self.words = Words(grows=True, classes="standing")
        self.scrubber = Scrubber()
        self.event = 0
        self.speed = 1.0
        self.playing = False
        self.following = False
        self._second = 0.0
        self._followed = 0.0
        self._drawn: object = None
        self.clock = time.perf_counter
        self._ticked = self.clock()

    def content(self) -> Iterable[Widget]:
        """The run, words on how it stands, the slider."""
        yield self.view
        yield self.words
        yield self.scrubber

    def on_resize(self, event: events.Resize) -> None:
        """Leave the run what little room there is."""
        self.set_class(event.size.height < 20, "-low")

    def on_mount(self) -> None:
        """Open the folder, and begin to read it."""
        super().on_mount()
        self.sub_title = self.folder.name
        if self.recording is None:
            self._draw()
            return
        self.following = True
        self.scrubber.focus()
        self.run_worker(self._read, thread=True, name="read", exclusive=True)
        self.set_interval(1 / FRAMES_A_SECOND, self._tick)
        self._draw()

    def _read(self) -> None:
        """In a thread: read the events until the run has ended or nobody looks any more."""
        worker = get_current_worker()
        assert self.recording is not None
        self.recording.follow(lambda: worker.is_cancelled)

    @property
    def standing(self) -> Standing | None:
        """How the run stands; None while it isn't known yet."""
        return self.problem if self.recording is None else self.recording.stands

    def _tick(self) -> None:
        """Play on, or follow the end."""
        now = self.clock()
        passed, self._ticked = now - self._ticked, now
        recording = self.recording
        if recording is None:
            return
        if self.playing:
            self._second += passed * self.speed
            self.event = recording.index_at("seconds", self._second)
            if self._second >= recording.extent("seconds"):
                self.playing = False
                self.following = recording.finished is None
        elif self.following and len(recording):
            # An attack that goes on needs the processor more than its viewer does.
            if recording.finished is None and now - self._followed < SECONDS_BETWEEN_LIVE_FRAMES:
                return
            self._followed = now
            self.event = len(recording) - 1
            self._second = recording.extent("seconds")
        self._draw()

    def refresh_view(self) -> None:
        """Blind or truth has changed."""
        self._drawn = None
        self._draw()

    def _draw(self) -> None:
        recording, standing = self.recording, self.standing
        size = 0 if recording is None else len(recording)
        whole = recording is None or recording.whole
        share = 1.0 if recording is None else recording.share_read
        drawn = (self.event, size, self.playing, self.following, self.speed, standing, whole, share)
        if drawn == self._drawn:
            return
        moved = self._drawn is None or drawn[:2] != self._drawn[:2]  # type: ignore[index]
        self._drawn = drawn
        if moved:
            state = ViewState() if recording is None else recording.state(self.event)
            self.view.show(
                state,
                blind=self.textleak.blind,
                truth=self.textleak.truth,
                waiting=self._waiting(),
            )
        self.words.say(self._standing())
        self.scrubber.show(self._track())

    @property
    def state(self) -> ViewState:
        """What is on the screen."""
        return ViewState() if self.recording is None else self.recording.state(self.event)

    def _waiting(self) -> str:
        """Words in place of the tokens."""
        if self.recording is None:
            return "There is nothing to replay."
        if not self.recording.whole:
            return f"Reading the run, {self.recording.share_read:.0%} so far."
        if self.recording.finished is None and (self.standing is None or self.standing.outcome == "running"):
            return "No tokens yet: the attack hasn't shown any so far."
        if not len(self.recording):
            return "This run wrote no events: it ended before it began."
        return "No tokens at this place yet. Space plays on from here."

    def _standing(self) -> Text:
        standing, recording = self.standing, self.recording
        if recording is not None and not recording.whole:
            return Text(f"◌ Reading the run, {recording.share_read:.0%} so far.")
        if standing is None or standing.outcome == "done":
            return Text()
        words = [standing.what, standing.why, standing.fix]
        return Text(f"{SIGNS[standing.outcome]} " + " ".join(part for part in words if part))

    def _track(self) -> Track:
        recording = self.recording
        if recording is None or not len(recording):
            return Track(after="0 events")
        end = recording.extent("seconds")
        second = recording.value_at("seconds", self.event)
        growing = recording.finished is None
        sign = "▶" if self.playing else "●" if self.following and growing else "‖"
        live = "live" if self.following and growing else speed_in_words(self.speed)
        return Track(
            place=second / end if end else 1.0,
            heights=course(recording.points(), "seconds", end, blind=self.textleak.blind),
            marks=tuple(phase.start / end for phase in recording.phases() if end),
            before=f"{sign} {live}",
            after=f"{seconds_in_words(second)} of {seconds_in_words(end)}, event {self.event + 1:,} of "
            f"{len(recording):,}",
            still_growing=growing,
        )

    def _go(self, event: int) -> None:
        if self.recording is None or not len(self.recording):
            return
        self.playing = self.following = False
        self.event = max(0, min(event, len(self.recording) - 1))
        self._second = self.recording.value_at("seconds", self.event)
        self._draw()

    def on_scrubber_moved(self, message: Scrubber.Moved) -> None:
        """The slider was moved."""
        if self.recording is None:
            return
        if message.place >= 1:
            self.action_newest()
        else:
            end = self.recording.extent("seconds")
            self._go(self.recording.index_at("seconds", message.place * end))

    def on_scrubber_stepped(self, message: Scrubber.Stepped) -> None:
        """An arrow key on the slider."""
        self.action_step(message.by)

    def action_step(self, by: int) -> None:
        """Go some events on."""
        self._go(self.event + by)

    def action_newest(self) -> None:
        """Go to the end; stay there while the run goes on."""
        if self.recording is not None:
            self._go(len(self.recording) - 1)
            self.following = True
            self._draw()

    def action_play(self) -> None:
        """Play or hold; at the end, from the beginning."""
        recording = self.recording
        if recording is None or not len(recording):
            return
        self.playing = not self.playing
        if self.playing:
            self.following = False
            if self.event >= len(recording) - 1:
                self.event, self._second = 0, 0.0
        self._ticked = self.clock()
        self._draw()

    def action_speed(self) -> None:
        """The next speed."""
        self.speed = SPEEDS[(SPEEDS.index(self.speed) + 1) % len(SPEEDS)]
        self._draw()

    def action_export(self) -> None:
        """Ask what to write."""
        from textleak_tui.screens.export import ExportDialog

        if self.recording is not None:
            self.app.push_screen(ExportDialog(self.recording.folder.path, self.state))

    def action_back(self) -> None:
        """Leave the replay."""
        self.dismiss()


def speed_in_words(speed: float) -> str:
    """A speed as a person writes it."""
    return "¼×" if speed == 0.25 else f"{speed:g}×"


def course(
    points: tuple[Point, ...], axis: Axis, extent: float, *, blind: bool
) -> tuple[tuple[float, float], ...]:
    """A run's course as heights over an axis: the match rate, or the loss where that isn't known or not told."""
    if not extent:
        return ()
    places = [place_of(point, axis) / extent for point in points]
    rates = [None if blind else point.match_rate for point in points]
    told = any(rate is not None for rate in rates)
    heights = rates if told else loss_heights([point.loss for point in points])
    return tuple((place, height) for place, height in zip(places, heights, strict=True) if height is not None)
