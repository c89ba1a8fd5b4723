"""The replay screen: one run folder, scrubbed through or followed."""

from __future__ import annotations

from pathlib import Path

from textleak_tui.screens.base import Page


class ReplayScreen(Page):
    """One run folder."""

    place = "history"

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.folder = run
