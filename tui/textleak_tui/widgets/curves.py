"""Loss (log scale) and match rate over the run, drawn with braille dots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from textleak.view import ViewState
from textleak.words import loss_in_words
from textleak_tui.widgets.drawn import Drawn, Line

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
# Losses below it are drawn there: a verified answer's is 0, which has no logarithm.
_SMALLEST = 1e-12
# Letters of a curve that stands in a line of words, and from how many columns on both do.
_SHORT, _BOTH = 10, 56
# Our choice, as in reports: fewer are no course.
FEWEST_POINTS = 3


class Curves(Drawn):
    """The two curves, side by side where the width allows."""

    BORDER_TITLE = "Loss"
    COMPONENT_CLASSES: ClassVar[set[str]] = {"curve--loss", "curve--rate", "curve--quiet"}

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._losses: tuple[float, ...] = ()
        self._rates: tuple[float, ...] = ()
        self._blind = False

    def show(self, state: ViewState, *, blind: bool = False) -> None:
        """Draw a state; blind leaves the match rate out, as it takes the truth to know it."""
        if (state.losses, state.rates, blind) == (self._losses, self._rates, self._blind):
            return
        self._losses, self._rates, self._blind = state.losses, state.rates, blind
        title = "Loss and match rate" if self._rates and not blind else "Loss"
        if title != self.border_title:  # to set it draws all of the pane anew
            self.border_title = title
        self.redraw()

    @property
    def known(self) -> bool:
        """Whether there is a course to draw: a single figure is in the line below all panes."""
        return max(len(self._losses), 0 if self._blind else len(self._rates)) >= FEWEST_POINTS

    def draw(self) -> Sequence[Line | Text]:
        """Both plots, or the loss alone while the match rate isn't known."""
        width, height = self.size
        rates = () if self._blind else self._rates
        if not self._losses and not rates:
            return [Text("no curve yet", style=self._style("quiet"))]
        if height < 2:
            return [self._words(rates)]
        if not rates:
            return self._loss(width, height)
        if not self._losses:
            return self._rate(rates, width, height)
        if width >= 44:
            left = width // 2 - 1
            pairs = zip(self._loss(left, height), self._rate(rates, width - left - 2, height), strict=True)
            return [[*Segment.adjust_line_length(a, left + 2), *b] for a, b in pairs]
        upper = (height + 1) // 2
        return [*self._loss(width, upper), *self._rate(rates, width, height - upper)]

    def _words(self, rates: Sequence[float]) -> Text:
        """Both in one line."""
        text = Text(no_wrap=True)
        if self._losses and (not rates or self.size.width >= _BOTH):
            text.append("loss ", style=self._style("quiet")).append(loss_in_words(self._losses[-1]))
            logs = [math.log10(max(loss, _SMALLEST)) for loss in self._losses]
            (dots,) = braille(logs, min(logs), max(logs), _SHORT, 1)
            text.append(f" {dots}  ", style=self._style("loss"))
        if rates:
            text.append("match rate ", style=self._style("quiet")).append(f"{rates[-1]:.2f}")
            (dots,) = braille(rates, 0.0, 1.0, _SHORT, 1)
            text.append(f" {dots}", style=self._style("rate"))
        return text

    def _style(self, kind: str) -> Style:
        return self.ink(f"curve--{kind}")

    def _loss(self, width: int, height: int) -> list[Line]:
        if not self._losses:
            return [[]] * height
        logs = [math.log10(max(loss, _SMALLEST)) for loss in self._losses]
        low, high = min(logs), max(logs)
        if 10**high <= 2 * _SMALLEST:  # nothing but zeros: the bottom of the picture
            high = 0.0
        elif high - low < 0.5:  # a flat curve stays flat
            low, high = low - 0.25, high + 0.25
        bounds = _bound(low), _bound(high)
        lines = braille(logs, low, high, *self._inside(bounds, width, height))
        head = self._head("loss", loss_in_words(self._losses[-1]), "loss")
        return [head, *self._bounded(lines, bounds, "loss")]

    def _rate(self, rates: Sequence[float], width: int, height: int) -> list[Line]:
        bounds = "0", "1"
        lines = braille(rates, 0.0, 1.0, *self._inside(bounds, width, height))
        head = self._head("match rate", f"{rates[-1]:.2f}", "rate")
        return [head, *self._bounded(lines, bounds, "rate")]

    def _head(self, name: str, newest: str, kind: str) -> Line:
        """The line above a plot: what it is, and its newest value."""
        return [Segment(f"{name} ", self._style("quiet")), Segment(newest, self._style(kind) + _BOLD)]

    def _inside(self, bounds: tuple[str, str], width: int, height: int) -> tuple[int, int]:
        """Letters and lines of a plot, without its head line and its bounds."""
        return max(1, width - max(map(len, bounds)) - 1), height - 1

    def _bounded(self, lines: Sequence[str], bounds: tuple[str, str], kind: str) -> list[Line]:
        """A plot's lines, with the lower and the upper bound before the last and the first."""
        low, high = bounds
        margin, last = max(map(len, bounds)), len(lines) - 1
        quiet, style = self._style("quiet"), self._style(kind)
        return [
            [
                Segment(f"{high if at == 0 else low if at == last else '':>{margin}}▕", quiet),
                Segment(line, style),
            ]
            for at, line in enumerate(lines)
        ]


_BOLD = Style(bold=True)


def _bound(exponent: float) -> str:
    return "0" if 10**exponent <= 2 * _SMALLEST else loss_in_words(10**exponent)


def braille(values: Sequence[float], low: float, high: float, width: int, height: int) -> list[str]:
    """A curve as lines of braille, two points wide and four high a letter, joined up from point to point.

    Args:
        values: oldest first; fewer than points are stretched, more are the means of their share.
        low: lower bound of the picture.
        high: its upper bound.
        width: letters in a line.
        height: lines; none for 0.
    """
    columns, rows = 2 * width, 4 * height
    if not rows:
        return []
    cells = [[0] * width for _ in range(height)]
    before: int | None = None
    for column in range(columns):
        first = len(values) * column // columns
        share = values[first : max(first + 1, len(values) * (column + 1) // columns)]
        value = sum(share) / len(share)
        part = (value - low) / (high - low) if high > low else 0.0
        row = round((1 - max(0.0, min(1.0, part))) * (rows - 1))
        steps = range(min(before, row), max(before, row) + 1) if before is not None else (row,)
        for y in steps:
            cells[y // 4][column // 2] |= _DOTS[y % 4][column % 2]
        before = row
    return ["".join(chr(0x2800 + dots) for dots in line) for line in cells]
