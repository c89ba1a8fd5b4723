"""A table of runs, whose Enter is told in the footer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from textleak.view import UNICODE


class RunTable(DataTable[Text]):
    """A row a run."""

    DEFAULT_CSS = """
    RunTable {
        height: 1fr; background: $background; padding: 0 1;
        &:focus { background-tint: $foreground 0%; }
        & > .datatable--header { background: $background; color: $primary; text-style: bold; }
        & > .datatable--cursor, &:focus > .datatable--cursor {
            background: $panel; color: $foreground; text-style: bold;
        }
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Open", tooltip="Replay the run; one still written is followed."),
        Binding("home", "scroll_top", "First run", show=False),
        Binding("end", "scroll_bottom", "Last run", show=False),
    ]

    def __init__(self) -> None:
        super().__init__(cursor_type="row", cell_padding=1)
        self._shape: object = None
        self._drawn: dict[str, Sequence[Text]] = {}

    def draw(
        self, columns: Mapping[str, str], rows: Mapping[str, Sequence[Text]], *, anew: bool = False
    ) -> None:
        """Draw rows, leaving the cursor on its run.

        Each column is told its width. Textual would measure the rows too, but only once it is idle; what it has drawn
        until then stays as it is, cut off at the width of the column's name.

        Args:
            columns: what stands above each, by their names.
            rows: a cell for each column, by what tells a row from the others.
            anew: colors have changed.
        """
        widths = [
            max((len(label), *(row[at].cell_len for row in rows.values())))
            for at, label in enumerate(columns.values())
        ]
        shape = dict(columns), widths, list(rows)
        if anew or shape != self._shape:
            here, top = self.chosen, self.scroll_y
            self.clear(columns=True)
            for (name, label), width in zip(columns.items(), widths, strict=True):
                self.add_column(label, key=name, width=width)
            for key, cells in rows.items():
                self.add_row(*cells, key=key)
            if here is not None and here in rows:
                self.move_cursor(row=list(rows).index(here), scroll=False)
                self.scroll_to(y=top, animate=False, force=True)
        else:
            for key, cells in rows.items():
                for name, before, after in zip(columns, self._drawn[key], cells, strict=True):
                    if before != after or before.style != after.style:
                        self.update_cell(key, name, after)
        self._shape, self._drawn = shape, dict(rows)

    @property
    def chosen(self) -> str | None:
        """What tells the row under the cursor from the others."""
        if not self.row_count or not self.is_valid_row_index(self.cursor_row):
            return None
        return self.coordinate_to_cell_key(self.cursor_coordinate).row_key.value


def rate_bar(rate: float, width: int, colors: Mapping[str, str]) -> Text:
    """A rate as a number, and a bar of so many cells."""
    filled = round(rate * width)
    text = Text(f"{rate:.2f} ").append(UNICODE.bar * filled, style=colors["error"])
    return text.append(UNICODE.rest * (width - filled), style=colors["border-blurred"])


def short(text: str, most: int) -> str:
    """A text in so many letters, cut with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + UNICODE.ellipsis


def within(setting: str, most: int) -> str:
    """A setting in so many letters, cut in its middle: what it is and how strong it is both stay."""
    if len(setting) <= most:
        return setting
    head, tail = (most - 1) // 2, most // 2
    return setting[:head] + UNICODE.ellipsis + setting[len(setting) - tail :]
