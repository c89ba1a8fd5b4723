"""The waterfall: the answers of a run below one another, one column a position, newest at the bottom.

A cell is the lighter the surer the attack is, and its hue says what it is: a guess, or settled by a channel; right or
wrong only where the truth is shown. A token is written where it came, and stands for as long as the color below it.

The answers of a run that is over fill the pane. Where there are fewer than lines, each takes several, and the phases
are told with their times and the answer that each began with.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.color import Color
from textual.message import Message

from textleak.events import Sentence
from textleak.view import UNICODE, ViewState, WaterRow, lines_of
from textleak.view.waterfall import CANDIDATE, OPEN, SETTLED, SPECIAL, WaterCell
from textleak.words import readable, seconds_in_words
from textleak_tui.widgets.cells import fit
from textleak_tui.widgets.drawn import Drawn, Line
from textleak_tui.widgets.phases import stretches_of
from textleak_tui.widgets.scrubber import Scrubber

# Our choices: shades that can be told apart on a screen; columns of a phase's name, at most, and from which width on
# there is one; columns of a position, and from how many on its token can be read.
SHADES, NAME, NAMED_FROM, WIDEST, READABLE = 12, 11, 44, 12, 5


class Waterfall(Drawn, can_focus=True):
    """The rows of the sentence in focus."""

    BORDER_TITLE = "Waterfall"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Position to the left", show=False),
        Binding("right", "move(1)", "Position to the right", show=False),
        Binding("up", "step(-1)", "One event back", show=False),
        Binding("down", "step(1)", "One event on", show=False),
    ]
    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "water--open",
        "water--candidate",
        "water--settled",
        "water--special",
        "water--right",
        "water--elsewhere",
        "water--wrong",
        "water--name",
        "water--cursor",
    }

    @dataclasses.dataclass
    class Picked(Message):
        """A cell was clicked: a progress's number and a position, from 0."""

        number: int
        position: int

    @dataclasses.dataclass
    class Moved(Message):
        """Focus the position so many further."""

        by: int

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._state = ViewState()
        self._true: dict[int, int] | None = None  # tokens by position
        self._at = (0, 0)
        self._lines: list[WaterRow] = []
        self._laid_out: object = None
        self._drawn: object = None
        self._colors: dict[tuple[str, int], Style] = {}
        self._how: object = None
        self._names: list[str] = []
        self._filled = False
        self._made: dict[int, tuple[WaterRow, WaterRow | None, str, Line]] = {}  # by the row's id

    def show(self, state: ViewState, *, at: tuple[int, int], truth: Sentence | None) -> None:
        """Draw a state.

        Args:
            state: what the events so far add up to.
            at: sentence and position in focus, from 0.
            truth: the true sentence that it is compared with; None compares nothing.
        """
        self._state, self._at = state, at
        drawn = (state.rows, state.phases, state.finished is None, at, truth)
        if drawn != self._drawn:
            self._drawn = drawn
            self._true = None if truth is None else {one.position: one.id for one in truth.positions}
            self._lay_out()

    def _lay_out(self) -> None:
        state, height = self._state, max(0, self.size.height - self._headed)
        over = state.finished is not None
        if (laid_out := (state.rows, state.phases, over, height)) != self._laid_out:
            self._laid_out, self._lines = laid_out, lines_of(state.rows, state.phases, height, filled=over)
            self._filled = over and len({row.number for row in self._lines}) < height
            self._names = self._named()
        count = len(state.rows[-1].sentences) if state.rows else 0
        where = f"text {self._at[0] + 1} of {count}" if count > 1 else ""
        if where != self.border_subtitle:
            self.border_subtitle = where
        self.redraw()

    def _named(self) -> list[str]:
        """What stands before each line: a phase's name and, where it has several lines and is over, its time."""
        took = {
            one.name: seconds_in_words(one.seconds) for one in stretches_of(self._state.phases, self._state.t)
        }
        names: list[str] = []
        for at, row in enumerate(self._lines):
            first = at == 0 or self._lines[at - 1].phase != row.phase
            second = self._filled and not first and names[-1] == row.phase and row.phase not in names[:-1]
            names.append(row.phase if first else took.get(row.phase, "") if second else "")
        return names

    @property
    def _headed(self) -> bool:
        """Whether the positions' numbers stand above."""
        return self.size.height > 3

    def on_resize(self) -> None:
        """Other rows fit."""
        self._lay_out()

    def notify_style_update(self) -> None:
        """Colors may have changed."""
        super().notify_style_update()
        self._colors.clear()
        self._made.clear()

    def _columns(self) -> tuple[int, int, int, int]:
        """Columns of names, of a position, the first position drawn, and the one after the last."""
        longest = max((len(one) for one in self._names), default=0)
        name = min(NAME, longest + 1) if self.size.width >= NAMED_FROM else 0
        room = max(1, self.size.width - name)
        count = max((len(cells) for row in self._lines[-1:] for cells in self._cells(row)), default=0)
        width = max(1, min(WIDEST, room // max(1, count)))
        fits = max(1, room // width)
        first = max(0, min(self._at[1] - fits // 2, count - fits))
        return name, width, first, min(count, first + fits)

    def _cells(self, row: WaterRow) -> tuple[tuple[WaterCell, ...], ...]:
        """The sentence in focus, as the only one; none where the row has none."""
        return row.sentences[self._at[0] : self._at[0] + 1]

    def draw(self) -> list[Line]:
        """The numbers, and the rows; a row that was drawn before is not made again."""
        columns = self._columns()
        lines = [self._numbers(*columns)] if self._headed else []
        if not self._lines:
            return [*lines, [Segment("no rows yet", self._style("name"))]]
        how = columns, self._at[0], self.has_focus and self._at[1], self._true
        if how != self._how:
            self._how = how
            self._made.clear()
        made, self._made, before = self._made, {}, None
        for row, name in zip(self._lines, self._names, strict=True):
            entry = made.get(id(row))
            if entry is None or entry[0] is not row or entry[1] is not before or entry[2] != name:
                entry = row, before, name, self._row(row, before, name, *columns)
            self._made[id(row)] = entry
            lines.append(entry[3])
            before = row
        return lines

    def _numbers(self, name: int, width: int, first: int, last: int) -> Line:
        segments = [Segment(" " * name)]
        for position in range(first, last):
            here = position == self._at[1]
            # Where there is no room for each number, the one in focus has a sign.
            text = f"{position + 1}" if width > len(str(last)) else "▾" if here else ""
            segments.append(Segment(fit(text, width), self._style("cursor" if here else "name")))
        return segments

    def _row(
        self, row: WaterRow, before: WaterRow | None, named: str, name: int, width: int, first: int, last: int
    ) -> Line:
        begins = before is None or before.phase != row.phase
        segments = [Segment(fit(named, name - 1) + " ", self._style("name"))] if name else []
        if begins and not row.sentences:
            return [*segments, Segment("no token yet", self._style("name"))]
        cells = next(iter(self._cells(row)), ())
        earlier = next(iter(self._cells(before)), ()) if before is not None else ()
        for position in range(first, min(last, len(cells))):
            cell = cells[position]
            changed = (
                (begins and self._filled)
                or position >= len(earlier)
                or earlier[position].id != cell.id
                or cell.kind != earlier[position].kind
            )
            kind = self._kind(cell, position)
            word = ""
            if changed and width >= READABLE and cell.kind != OPEN:
                word = UNICODE.marks[_MARKS[kind]] + readable(cell.text)
            style = self._shade(kind, cell.confidence)
            if position == self._at[1] and self.has_focus:
                style += Style(underline=True)
            # A gap in the cell's own color, so that neighbors are two words and one picture.
            gap = int(width >= READABLE)
            segments.append(Segment(fit(word, width - gap) + " " * gap, style))
        return segments

    def _kind(self, cell: WaterCell, position: int) -> str:
        """What decides a cell's hue: what it is, or how it compares where that is asked for."""
        if self._true is None or cell.kind in (OPEN, SPECIAL):
            return cell.kind
        if self._true.get(position) == cell.id:
            return "right"
        return "elsewhere" if cell.id in self._true.values() else "wrong"

    def _shade(self, kind: str, confidence: float) -> Style:
        """A hue, the lighter the surer."""
        level = 0 if kind in (OPEN, SPECIAL) else 1 + round(confidence * (SHADES - 1))
        if (kind, level) not in self._colors:
            paper = self.background_colors[1]
            hue = self.get_component_styles(f"water--{kind}").color
            shade = paper.blend(hue, 0.08 + 0.62 * level / SHADES) if level else paper
            ink = hue if not level else Color.parse("#ffffff" if shade.brightness < 0.5 else "#000000")
            self._colors[kind, level] = Style(color=ink.rich_color, bgcolor=shade.rich_color)
        return self._colors[kind, level]

    def _style(self, name: str) -> Style:
        return self.look(f"water--{name}")

    def action_move(self, by: int) -> None:
        """Focus another position."""
        self.post_message(self.Moved(by))

    def action_step(self, by: int) -> None:
        """Go some events on, where the run is replayed."""
        self.post_message(Scrubber.Stepped(by))

    def on_click(self, event: events.Click) -> None:
        """Focus the position that was clicked and, where the run is replayed, go to its time."""
        offset = event.get_content_offset(self)
        if offset is None:
            return
        name, width, first, last = self._columns()
        line = offset.y - self._headed
        if 0 <= line < len(self._lines) and last > first:
            position = max(first, min(last - 1, first + (offset.x - name) // width))
            self.post_message(self.Picked(self._lines[line].number, position))

    def on_focus(self) -> None:
        """Show the cursor."""
        self.refresh()

    def on_blur(self) -> None:
        """Hide the cursor."""
        self.refresh()


_MARKS = {
    CANDIDATE: "unknown",
    SETTLED: "unknown",
    SPECIAL: "special",
    "right": "right",
    "elsewhere": "elsewhere",
    "wrong": "wrong",
}
