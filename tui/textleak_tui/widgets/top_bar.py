"""The line on top: name, places, and what is shown of the truth."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from textleak_tui.places import PLACES, Sight, lit


class TopBar(Horizontal):
    """Name, places (a click goes there), and a word while blind or with the truth shown."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._place = place
        self._badge = Static("", classes="badge")

    def compose(self) -> ComposeResult:
        """Name, places, badge."""
        yield Static("textleak", classes="brand")
        for place in (one for one in PLACES if not one.within):
            words = f"[@click=app.go('{place.name}')]{place.title}[dim] {place.key.upper()}[/][/]"
            yield Static(words, classes="place here" if place.name == lit(self._place) else "place")
        yield self._badge

    def on_resize(self) -> None:
        """No gaps where they would push a place out."""
        self.set_class(self.size.width < 89, "-narrow")
        self.set_class(self.size.width < 72, "-tight")

    def on_mount(self) -> None:
        """Say what is shown of the truth."""
        self.watch(self.app, "sight", self._tell)

    def _tell(self, sight: Sight) -> None:
        words = "◌ blind: what an attacker sees" if sight.blind else "● truth shown" if sight.truth else ""
        self._badge.update(words)
