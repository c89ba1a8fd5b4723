"""A table that is written to many times: a row that hasn't changed isn't drawn again.

Textual's own draws all of its rows anew when a cell changes, which took a tenth of a core for a grid of 200 cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.binding import Binding, BindingType
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

GAP = 2  # columns between two cells


class GridTable(ScrollView, can_focus=True):
    """Rows of cells below a line of titles, one of them under the cursor."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"grid-table--titles", "grid-table--cursor"}
    DEFAULT_CSS = """
    GridTable { height: 1fr; background: $background; padding: 0 1; }
    GridTable > .grid-table--titles { color: $primary; text-style: bold; }
    GridTable > .grid-table--cursor { background: $panel; text-style: bold; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Up", show=False),
        Binding("down", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "first", "First", show=False),
        Binding("end", "last", "Last", show=False),
    ]

    class Highlighted(Message):
        """Another row is under the cursor."""

    class Selected(Message):
        """Enter or a click on a row."""

    def __init__(self) -> None:
        super().__init__()
        self.cursor = 0
        self._titles: tuple[str, ...] = ()
        self._rows: list[tuple[Text, ...]] = []
        self._widths: tuple[int, ...] = ()
        self._drawn: dict[int, tuple[object, Strip]] = {}

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def fill(self, titles: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
        """Show these rows; the cursor stays in its place.

        Args:
            titles: of the columns.
            rows: a text a column.
        """
        found = [tuple(row) for row in rows]
        changed = [at for at, row in enumerate(found) if at >= len(self._rows) or row != self._rows[at]]
        count, self._rows = len(self._rows), found
        widths = tuple(
            max(len(title), *(row[at].cell_len for row in found), 0) for at, title in enumerate(titles)
        )
        if (tuple(titles), widths) != (self._titles, self._widths) or len(found) != count:
            self._titles, self._widths = tuple(titles), widths
            self._drawn.clear()
            self.virtual_size = Size(sum(widths) + GAP * max(0, len(widths) - 1), len(found) + 1)
            self.cursor = max(0, min(self.cursor, len(found) - 1))
            self.refresh()
            return
        for at in changed:
            self.refresh_lines(at + 1)

    def move_to(self, row: int) -> None:
        """Put the cursor on a row."""
        before, self.cursor = self.cursor, max(0, min(row, len(self._rows) - 1))
        if before != self.cursor:
            self.refresh_lines(before + 1)
            self.refresh_lines(self.cursor + 1)
            self.post_message(self.Highlighted())
        self.scroll_to_region(Region(0, self.cursor, 1, 2), animate=False, force=True)

    def render_line(self, y: int) -> Strip:
        """The titles, or a row."""
        scroll_x, scroll_y = self.scroll_offset
        width, base = self.scrollable_content_region.width, self.rich_style
        if not y:
            titles = self._line(tuple(Text(title) for title in self._titles))
            style = base + self.get_component_rich_style("grid-table--titles", partial=True)
            return self._strip(titles, style).crop_extend(scroll_x, scroll_x + width, style)
        at = y - 1 + scroll_y
        if at >= len(self._rows):
            return Strip.blank(width, base)
        style = base
        if at == self.cursor:
            style += self.get_component_rich_style("grid-table--cursor", partial=True)
        key = self._rows[at], style
        if at not in self._drawn or self._drawn[at][0] != key:
            self._drawn[at] = key, self._strip(self._line(self._rows[at]), style)
        return self._drawn[at][1].crop_extend(scroll_x, scroll_x + width, style)

    def _line(self, cells: tuple[Text, ...]) -> Text:
        line = Text(no_wrap=True, end="")
        for cell, width in zip(cells, self._widths, strict=False):
            blanks = " " * (width - cell.cell_len)
            line.append_text(cell) if cell.justify != "right" else line.append(blanks).append_text(cell)
            line.append((blanks if cell.justify != "right" else "") + " " * GAP)
        return line

    def _strip(self, line: Text, style: Style) -> Strip:
        return Strip(line.render(self.app.console)).apply_style(style)

    def action_move(self, by: int) -> None:
        """Some rows on."""
        self.move_to(self.cursor + by)

    def action_page(self, pages: int) -> None:
        """A screenful on."""
        self.move_to(self.cursor + pages * max(1, self.size.height - 2))

    def action_first(self) -> None:
        """The first row."""
        self.move_to(0)

    def action_last(self) -> None:
        """The last row."""
        self.move_to(len(self._rows) - 1)

    def action_select(self) -> None:
        """The row under the cursor is meant."""
        if self._rows:
            self.post_message(self.Selected())

    def on_click(self, event: Click) -> None:
        """A click on a row moves the cursor there; on the one under it, it is meant."""
        row = event.y - 1 + self.scroll_offset.y
        if event.y and 0 <= row < len(self._rows):
            same = row == self.cursor
            self.move_to(row)
            if same:
                self.action_select()
