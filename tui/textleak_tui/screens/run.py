"""The run screen: set up an attack, start it, watch it."""

from __future__ import annotations

from collections.abc import Iterable

from textual.widget import Widget

from textleak.live import ViewState
from textleak_tui.screens.base import Page
from textleak_tui.widgets import RunView


class RunScreen(Page):
    """Setup, then the run."""

    place = "run"

    def __init__(self) -> None:
        super().__init__()
        self.view = RunView()
        self.state = ViewState()

    def content(self) -> Iterable[Widget]:
        """The run."""
        yield self.view

    def refresh_view(self) -> None:
        """Draw the newest state."""
        self.view.show(self.state, blind=self.textleak.blind, truth=self.textleak.truth)
