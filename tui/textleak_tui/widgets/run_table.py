"""A table of runs, whose Enter is told in the footer."""

from __future__ import annotations

from collections.abc import Mapping
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
