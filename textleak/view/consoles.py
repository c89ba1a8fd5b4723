"""Consoles on which nothing is obeyed that somebody else wrote: a tensor's name, a token, another library's error."""

from __future__ import annotations

import os
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from textleak.words import printable


class ReadableConsole(Console):
    """A console that writes out what a terminal would obey, whatever is printed; its own colors stay."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The pieces of a renderable."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else printable(text, kept="\n"), style, control)


class Commentary(ReadableConsole):
    """Standard error; where nobody reads it any more, what is said is lost, never the work."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False)

    def on_broken_pipe(self) -> None:
        """Say nothing from here on."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())
