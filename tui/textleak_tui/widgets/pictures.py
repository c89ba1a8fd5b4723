"""The pictures of an image run in half-cells: each true one, where it is asked for, beside what stands for it."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, Any

from rich.text import Text
from textual import work
from textual.widget import Widget

from textleak.view import ViewState

if TYPE_CHECKING:
    from textleak.events import Progress


class Pictures(Widget):
    """The newest pictures, as large as there is room for."""

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._originals: tuple[Any, ...] = ()
        self._labels: tuple[int, ...] = ()
        self._truth = False
        self._ready = False

    @property
    def lines(self) -> int:
        """Lines that the pictures need at full size, words below included."""
        image = self._progress.image if self._progress is not None else ()
        return (len(image[0]) + 1) // 2 + 1 if image and isinstance(image[0], list | tuple) else 1

    def show(self, state: ViewState, *, blind: bool = False, truth: bool = False) -> None:
        """Draw a state; the true pictures where `truth`, and unless blind how near the others come to them."""
        originals = () if blind else state.originals
        progress = state.progress
        same = progress is not None and self._progress is not None and progress.image is self._progress.image
        if same and originals == self._originals and truth == self._truth:
            return
        self._truth = truth
        self._progress, self._originals, self._labels = progress, originals, state.labels
        if not self._ready:
            self._prepare()
        self.refresh()

    @work(exclusive=True)
    async def _prepare(self) -> None:
        # It takes scipy, which is slow to import: not on the thread that answers keys.
        await asyncio.to_thread(importlib.import_module, "textleak.view.pictures")
        self._ready = True
        self.refresh()

    def render(self) -> Text:
        """Half a cell a pixel."""
        if self._progress is None or not self._progress.image:
            return Text("")
        if not self._ready:
            return Text("drawing …")
        from textleak.view.pictures import picture_lines

        width, height = self.size
        try:
            lines = picture_lines(
                self._progress, self._originals, self._labels, width, height + 1, beside=self._truth
            )
        except (ValueError, TypeError, LookupError, OverflowError):
            # They are nested lists of a file's: of any depth and length.
            return Text("What this run holds in the place of pictures can't be drawn.")
        return Text("\n").join(lines)
