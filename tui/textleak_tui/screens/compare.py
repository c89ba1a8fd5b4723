"""The compare screen: two runs side by side at equal steps."""

from __future__ import annotations

from pathlib import Path

from textleak_tui.screens.base import Page


class CompareScreen(Page):
    """Two runs side by side."""

    place = "history"

    def __init__(self, left: Path, right: Path) -> None:
        super().__init__()
        self.left = left
        self.right = right
