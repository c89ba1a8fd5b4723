"""The history screen: every run folder."""

from __future__ import annotations

from textleak_tui.screens.base import Page


class HistoryScreen(Page):
    """Every run so far."""

    place = "history"
