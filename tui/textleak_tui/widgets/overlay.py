"""Two runs' curves in one picture: loss on a log scale, and match rate, over the axis they are compared on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from textleak.view import Point
from textleak.words import loss_in_words
from textleak_tui.index import Axis, place_of

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
# Losses below it are drawn there: a verified answer's is 0, which has no logarithm.
_SMALLEST = 1e-12
NAMES = ("A", "B")
_BOLD = Style(bold=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Courses:
    """What an overlay shows.

    Attributes:
        points: the course of each run.
        axis: what they are compared on.
        extent: where the picture ends.
        place: where one is.
        blind: leave the match rates out.
    """

    points: tuple[tuple[Point, ...], ...] = ()
    axis: Axis = "steps"
    extent: float = 0.0
    place: float = 0.0
    blind: bool = False


class Overlay(Widget):
    """Both plots side by side; A is a full line, B a dotted one, and each ends at its letter."""

    BORDER_TITLE = "Loss and match rate"
    DEFAULT_CSS = """
    Overlay {
        border: round $border-blurred; border-title-color: $primary; border-title-style: bold; padding: 0 1;
        & .overlay--a { color: $primary; }
        & .overlay--b { color: $secondary; }
        & .overlay--quiet { color: $quiet; }
        & .overlay--here { color: $accent; text-style: bold; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "overlay--a",
        "overlay--b",
        "overlay--quiet",
        "overlay--here",
    }

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._courses = Courses()

    def show(self, courses: Courses) -> None:
        """Draw these courses."""
        if courses != self._courses:
            self._courses = courses
            self.refresh()

    def render(self) -> Text:
        """Loss at the left, match rate at the right where it is known."""
        width, height = self.size
        quiet = self.get_component_rich_style("overlay--quiet", partial=True)
        courses = self._courses
        losses = [
            [(p, math.log10(max(p.loss, _SMALLEST))) for p in c if p.loss is not None] for c in courses.points
        ]
        rates = [[(p, p.match_rate) for p in c if p.match_rate is not None] for c in courses.points]
        if courses.blind or not any(rates):
            rates = []
        if not any(losses) and not rates:
            return Text("no curve yet", style=quiet)
        if not rates:
            return Text("\n").join(self._plot("loss", losses, width, height))
        left = width // 2 - 1
        pairs = zip(
            self._plot("loss", losses, left, height),
            self._plot("match rate", rates, width - left - 2, height),
            strict=True,
        )
        return Text("\n").join(Text.assemble(a, " " * (left - a.cell_len + 2), b) for a, b in pairs)

    def _plot(
        self, name: str, courses: Sequence[Sequence[tuple[Point, float]]], width: int, height: int
    ) -> list[Text]:
        """A head line with both values at the place one is, and the curves below."""
        shown, quiet = self._courses, self.get_component_rich_style("overlay--quiet", partial=True)
        styles = [self.get_component_rich_style(f"overlay--{k}", partial=True) for k in ("a", "b")]
        head = Text(f"{name} ", style=quiet, no_wrap=True)
        for letter, style, course in zip(NAMES, styles, courses, strict=False):
            passed = [point for point, _ in course if place_of(point, shown.axis) <= shown.place]
            words = "–"
            if passed:
                words = (
                    loss_in_words(passed[-1].loss) if name == "loss" else f"{passed[-1].match_rate or 0:.2f}"
                )
            head.append(f" {letter} ", style=style + _BOLD).append(words, style=style)
        head.truncate(width)
        if height < 3:
            return [head, *[Text()] * (height - 1)]
        values = [value for course in courses for _, value in course]
        low, high = (0.0, 1.0) if name != "loss" else (min(values, default=0.0), max(values, default=1.0))
        if high - low < 0.5:
            low, high = low - 0.25, high + 0.25
        bounds = (
            (f"{high:.0f}", f"{low:.0f}")
            if name != "loss"
            else (loss_in_words(10**high), loss_in_words(10**low))
        )
        margin = max(map(len, bounds)) + 1
        inner = max(1, width - margin)
        rows = self._lines(courses, low, high, inner, height - 1)
        here = round(shown.place / shown.extent * (inner - 1)) if shown.extent else 0
        lines = []
        for index, row in enumerate(rows):
            bound = bounds[0] if index == 0 else bounds[1] if index == height - 2 else ""
            line = Text(f"{bound:>{margin - 1}}▕", style=quiet, no_wrap=True)
            for column, (sign, kind) in enumerate(row):
                if kind:
                    line.append(sign, style=styles[kind - 1])
                elif column == here:
                    line.append("┊", style=self.get_component_rich_style("overlay--here", partial=True))
                else:
                    line.append(" ")
            lines.append(line)
        return [head, *lines]

    def _lines(
        self,
        courses: Sequence[Sequence[tuple[Point, float]]],
        low: float,
        high: float,
        width: int,
        height: int,
    ) -> list[list[tuple[str, int]]]:
        """Rows of (sign, which run drew it; 0 for neither)."""
        axis, extent = self._courses.axis, self._courses.extent
        cells = [[0] * width for _ in range(height)]
        owners = [[0] * width for _ in range(height)]
        letters: dict[tuple[int, int], tuple[str, int]] = {}
        for number, course in enumerate(courses, 1):
            places = [(place_of(point, axis) / extent if extent else 0.0, value) for point, value in course]
            before: int | None = None
            last = (0, 0)
            for column, value in enumerate(sampled(places, 2 * width)):
                if value is None:
                    continue
                part = (value - low) / (high - low) if high > low else 0.0
                row = round((1 - max(0.0, min(1.0, part))) * (4 * height - 1))
                steps = range(min(before, row), max(before, row) + 1) if before is not None else (row,)
                for y in steps:
                    # The second run is dotted, so that it is told from the first without color.
                    if number == 1 or (column + y) % 3 == 0:
                        cells[y // 4][column // 2] |= _DOTS[y % 4][column % 2]
                        owners[y // 4][column // 2] = number
                before, last = row, (row // 4, column // 2)
            if places:
                at = last
                while at in letters and at[1] > 0:
                    at = (at[0], at[1] - 1)
                letters[at] = (NAMES[number - 1], number)
        return [
            [
                letters.get((y, x), (chr(0x2800 + dots) if dots else " ", owner))
                for x, (dots, owner) in enumerate(zip(line, kinds, strict=True))
            ]
            for y, (line, kinds) in enumerate(zip(cells, owners, strict=True))
        ]


def sampled(places: Sequence[tuple[float, float]], columns: int) -> list[float | None]:
    """A course at each of so many columns: None before it begins and after it ends."""
    found: list[float | None] = []
    at, value = 0, None
    end = round(places[-1][0] * (columns - 1)) if places else -1
    for column in range(columns):
        while at < len(places) and round(places[at][0] * (columns - 1)) <= column:
            value = places[at][1]
            at += 1
        found.append(value if column <= end else None)
    return found
