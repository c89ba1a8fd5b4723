"""The slider under a replay: the whole run's course in a line, and below it where one is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget

from textleak.view import UNICODE, Point
from textleak_tui.index import Axis, place_of

# Losses below it are drawn there: a verified answer's is 0, which has no logarithm.
_SMALLEST = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """What a scrubber shows; places are shares of the whole, 0 to 1.

    Attributes:
        place: where one is.
        heights: the course as (place, height) in order, both 0 to 1.
        marks: where phases begin.
        before: words at the left, such as the speed.
        after: words at the right, such as the time.
        still_growing: the end is not the end yet.
    """

    place: float = 0.0
    heights: tuple[tuple[float, float], ...] = ()
    marks: tuple[float, ...] = ()
    before: str = ""
    after: str = ""
    still_growing: bool = False


class Scrubber(Widget, can_focus=True):
    """Click or drag to go anywhere; the arrow keys go by events, page up and down by a tenth."""

    DEFAULT_CSS = """
    Scrubber {
        height: 2; padding: 0 1; background: $background;
        & .scrub--past { color: $accent; text-style: bold; }
        & .scrub--rest { color: $border-blurred; }
        & .scrub--head { color: $accent; text-style: bold; }
        & .scrub--words { color: $quiet; }
        & .scrub--course { color: $success; }
    }
    Scrubber:focus .scrub--head { text-style: bold reverse; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "step(-1)", "Back by one event", show=False),
        Binding("right", "step(1)", "On by one event", show=False),
        Binding("shift+left", "step(-10)", "Back by ten", show=False),
        Binding("shift+right", "step(10)", "On by ten", show=False),
        Binding("pageup", "leap(-0.1)", "Back by a tenth", show=False),
        Binding("pagedown", "leap(0.1)", "On by a tenth", show=False),
        Binding("home", "go(0)", "To the beginning", show=False),
        Binding("end", "go(1)", "To the end", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "scrub--past",
        "scrub--rest",
        "scrub--head",
        "scrub--words",
        "scrub--course",
    }

    @dataclasses.dataclass
    class Moved(Message):
        """Go to a place, 0 to 1."""

        place: float

    @dataclasses.dataclass
    class Stepped(Message):
        """Go so many events on."""

        by: int

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.track = Track()
        self._dragging = False

    def show(self, track: Track) -> None:
        """Draw a track."""
        if track != self.track:
            self.track = track
            self.refresh()

    @property
    def _ends(self) -> tuple[int, int]:
        """The first column of the line and the one after its last, in the content."""
        before, after = Text(self.track.before).cell_len, Text(self.track.after).cell_len
        width = self.size.width
        if width - before - after - 2 < 10:  # the words give way to the line
            after = 0
        if width - before - after - 2 < 10:
            before = 0
        return before + bool(before), width - after - bool(after)

    def render(self) -> Text:
        """The course over the line; the line alone where there is one row."""
        track, (start, stop) = self.track, self._ends
        width = max(1, stop - start)
        words = self.get_component_rich_style("scrub--words", partial=True)
        head = min(width - 1, round(track.place * (width - 1)))
        line = Text(f"{track.before} " if start else "", style=words, no_wrap=True)
        marks = {min(width - 1, round(mark * (width - 1))) for mark in track.marks}
        for column in range(width):
            kind = "head" if column == head else "past" if column < head else "rest"
            sign = "●" if column == head else "┿" if column in marks else "━" if column < head else "╌"
            line.append(sign, style=self.get_component_rich_style(f"scrub--{kind}", partial=True))
        if stop < self.size.width:
            line.append(f" {track.after}", style=words)
        if self.size.height < 2:
            return line
        course = Text(" " * start, no_wrap=True)
        for column, height in enumerate(heights_by_column(track.heights, width)):
            kind = "course" if column <= head else "rest"
            sign = " " if height is None else UNICODE.steps[round(height * (len(UNICODE.steps) - 1))]
            course.append(sign, style=self.get_component_rich_style(f"scrub--{kind}", partial=True))
        if track.still_growing:
            course.append("…", style=words)
        return course.append("\n").append_text(line)

    def action_step(self, by: int) -> None:
        """Go some events on."""
        self.post_message(self.Stepped(by))

    def action_leap(self, by: float) -> None:
        """Go a share of the whole on."""
        self.post_message(self.Moved(max(0.0, min(1.0, self.track.place + by))))

    def action_go(self, place: float) -> None:
        """Go to a place."""
        self.post_message(self.Moved(float(place)))

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Go where the mouse is."""
        self._dragging = True
        self.capture_mouse()
        self._to(event)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Follow the mouse while it is held."""
        if self._dragging:
            self._to(event)

    def on_mouse_up(self) -> None:
        """Let go."""
        self._dragging = False
        self.release_mouse()

    def _to(self, event: events.MouseEvent) -> None:
        start, stop = self._ends
        column = event.x - self.styles.padding.left - start
        self.post_message(self.Moved(max(0.0, min(1.0, column / max(1, stop - start - 1)))))


def heights_by_column(heights: Sequence[tuple[float, float]], width: int) -> list[float | None]:
    """The course's last height at or before each column; None before it begins."""
    found: list[float | None] = []
    at, last = 0, None
    for column in range(width):
        until = (column + 0.5) / max(1, width - 1)
        while at < len(heights) and heights[at][0] <= until:
            last = heights[at][1]
            at += 1
        found.append(last)
    return found


def loss_heights(losses: Sequence[float | None]) -> list[float | None]:
    """Losses as heights on a log scale, 0 for the smallest and 1 for the largest."""
    logs = [None if loss is None else math.log10(max(loss, _SMALLEST)) for loss in losses]
    known = [log for log in logs if log is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    return [None if log is None else (log - low) / (high - low) if high > low else 0.0 for log in logs]


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
