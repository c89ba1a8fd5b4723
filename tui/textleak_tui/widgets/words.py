"""Words on the screen that are said many times a second: the same again costs nothing."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static


class Words(Static):
    """A line of words, or, where `grows`, as many as they need and none for no words."""

    def __init__(self, *, grows: bool = False, classes: str | None = None) -> None:
        super().__init__("", classes=classes, markup=False)
        self._grows = grows
        self._said: Text | None = None

    def say(self, words: Text | str) -> None:
        """Say these words, unless they are there already."""
        text = Text(words) if isinstance(words, str) else words
        if not self._grows:
            text.no_wrap, text.overflow = True, "ellipsis"
        elif self.display != bool(text.plain):
            self.display = bool(text.plain)
        if text != self._said:
            self._said = text
            self.update(text, layout=self._grows)
