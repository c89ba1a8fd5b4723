"""Words on the screen that are said many times a second: the same again costs nothing."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text
from textual.widgets import Static

from textleak.view import UNICODE


class Words(Static):
    """A line of words, or, where `grows`, as many as they need and none for no words.

    What doesn't fit the line, or the lines that the style sheet allows, is cut with an ellipsis.
    """

    DEFAULT_CSS = "Words.-line { text-wrap: nowrap; text-overflow: ellipsis; }"

    def __init__(self, *, grows: bool = False, classes: str | None = None) -> None:
        super().__init__("", classes=classes, markup=False)
        self.set_class(not grows, "-line")
        self._grows = grows
        self._said: Text | None = None
        self._shown: Text | None = None
        self._lines: tuple[int, int] | None = None

    def say(self, words: Text | str) -> None:
        """Say these words, unless they are there already."""
        text = Text(words) if isinstance(words, str) else words
        if self._grows and self.display != bool(text.plain):
            self.display = bool(text.plain)
        if text != self._said:
            self._said = text
            self._show()

    def on_resize(self) -> None:
        """Other words fit."""
        self._show()

    def _show(self) -> None:
        if self._said is None:
            return
        shown, most = self._said, self.styles.max_height
        if self._grows and most is not None and most.cells is not None and self.size.width:
            shown = cut_to(shown, self.size.width, int(most.cells), self.app.console)
        if shown != self._shown:
            lines, self._lines = self._lines, self._lines_of(shown)
            self._shown = shown
            # To lay the screen out anew costs more than all else that a word does.
            self.update(shown, layout=self._grows and lines != self._lines)

    def _lines_of(self, text: Text) -> tuple[int, int]:
        """The width that there is, and how many lines a text takes in it; no lines where there is none yet."""
        width = self.size.width
        return width, len(text.wrap(self.app.console, width)) if width and self._grows else 0


def cut_to(text: Text, width: int, most: int, console: Console) -> Text:
    """A text in so many lines, the last one with an ellipsis where there would be more."""
    lines = text.wrap(console, width)
    if len(lines) <= most:
        return text
    kept = Text("\n").join(line for line in lines[:most])
    last = Text(UNICODE.ellipsis)
    surplus = lines[most - 1].cell_len + last.cell_len - width
    if surplus > 0:  # Rich leaves nothing of a text that none is cut off
        kept.right_crop(surplus)
    return kept.append_text(last)
