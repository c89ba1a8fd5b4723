"""The line on top: name, places, and what is shown of the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

if TYPE_CHECKING:
    from textleak_tui.app import TextleakApp


class TopBar(Horizontal):
    """Name, places (a click goes there), and a word while blind or with the truth shown."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._place = place
        self._badge = Static("", classes="badge")

    def compose(self) -> ComposeResult:
        """Name, places, badge."""
        from textleak_tui.app import PLACES

        yield Static("textleak", classes="brand")
        for place in PLACES:
            words = f"[@click=app.go('{place.name}')]{place.title}[dim] {place.key.upper()}[/][/]"
            yield Static(words, classes="place here" if place.name == self._place else "place")
        yield self._badge

    def on_resize(self) -> None:
        """No gaps where they would push a place out."""
        self.set_class(self.size.width < 70, "-narrow")

    def on_mount(self) -> None:
        """Say what is shown of the truth."""
        self.watch(self.app, "blind", lambda: self._tell())
        self.watch(self.app, "truth", lambda: self._tell())

    def _tell(self) -> None:
        app = cast("TextleakApp", self.app)
        words = "◌ blind: what an attacker sees" if app.blind else "● truth shown" if app.truth else ""
        self._badge.update(words)
