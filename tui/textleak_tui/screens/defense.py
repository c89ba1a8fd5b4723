"""The defense screen: one sentence against a ladder of one defense."""

from __future__ import annotations

from textleak_tui.screens.base import Page


class DefenseScreen(Page):
    """A ladder of one defense."""

    place = "defenses"
