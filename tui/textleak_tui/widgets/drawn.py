"""Panes that draw their own lines: only those that differ from what is on the screen are drawn again.

A run's panes are told of a new state several times a second, while an attack needs the processor. Textual draws all
lines of a widget anew, borders included, and looks its colors up among all that is around it for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Self, TypeAlias

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual.geometry import Offset, Region, Size
from textual.strip import Strip
from textual.widget import Widget

Line: TypeAlias = list[Segment]


class Drawn(Widget):
    """A widget whose subclass gives `draw`; `redraw` shows what that has come to."""

    ALLOW_SELECT = False
    # No __init__: what scrolls has one of its own, with other arguments.
    _lines_drawn: list[Line] | None = None  # None once all of it is to be drawn
    _frame_drawn: tuple[Size, Offset] = Size(), Offset()
    _looks: Mapping[str, Style] = MappingProxyType({})

    def draw(self) -> Sequence[Line | Text]:
        """The lines of the content, as many as there are; what is missing is blank, what is too long is cut."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw the lines that have changed; nothing where nobody sees them."""
        before = self._lines_drawn
        if before is None:
            return  # all of it is drawn anyway, or was never seen
        if self._frame_drawn != self._frame or not self.is_on_screen:
            self.refresh()
            return
        now = self._make_lines()
        changed = [y for y, (old, new) in enumerate(zip(before, now, strict=True)) if old != new]
        if changed:
            width = self._frame_drawn[0].width
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    def render_lines(self, crop: Region) -> list[Strip]:
        """Lines of the widget, its border included."""
        if self._frame_drawn != self._frame:
            self._lines_drawn = None
        return super().render_lines(crop)

    def render_line(self, y: int) -> Strip:
        """One line of the content."""
        if self._lines_drawn is None:
            self._frame_drawn = self._frame
            self._make_lines()
        lines = self._lines_drawn or []
        line = lines[y] if y < len(lines) else []
        width, paper = self._frame_drawn[0].width, self.paper
        segments = Segment.apply_style(Segment.adjust_line_length(line, width, paper), paper)
        return Strip(segments, width)

    def refresh(
        self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False
    ) -> Self:
        """Draw regions, or everything anew."""
        if repaint and not regions:
            self._lines_drawn = None
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)

    def notify_style_update(self) -> None:
        """Colors may have changed."""
        super().notify_style_update()
        self._looks = {}
        self.refresh()

    def look(self, name: str) -> Style:
        """The style of a component class, on the widget's own background."""
        return self._remembered(name, lambda: self.get_component_rich_style(name))

    def ink(self, name: str) -> Style:
        """What a component class alone says."""
        return self._remembered(f"{name} alone", lambda: self.get_component_rich_style(name, partial=True))

    @property
    def paper(self) -> Style:
        """The widget's own colors."""
        return self._remembered("", lambda: self.rich_style)

    def _remembered(self, name: str, find: Callable[[], Style]) -> Style:
        if name not in self._looks:
            self._looks = {**self._looks, name: find()}
        return self._looks[name]

    @property
    def _frame(self) -> tuple[Size, Offset]:
        """What lines are cut to."""
        return self.size, self.scroll_offset

    def _make_lines(self) -> list[Line]:
        height = self._frame_drawn[0].height
        lines = [self._segments(line) if isinstance(line, Text) else line for line in self.draw()[:height]]
        self._lines_drawn = lines + [[] for _ in range(height - len(lines))]
        return self._lines_drawn

    def _segments(self, text: Text) -> Line:
        # A text without spans is rendered without the style that it has as a whole.
        return list((text if text.spans else Text.assemble(text)).render(self.app.console))


class OneLine(Drawn):
    """A line of words, cut with an ellipsis where they don't fit."""

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._said = Text()

    def say(self, words: Text) -> None:
        """Say these words."""
        if words != self._said:
            self._said = words
            self.redraw()

    def draw(self) -> list[Text]:
        """The words."""
        line = self._said.copy()
        line.truncate(self.size.width, overflow="ellipsis")
        return [line]
