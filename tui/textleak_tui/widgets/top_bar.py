"""The line on top: name, places, and what is shown of the truth."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.widgets import Static

from textleak_tui.places import PLACES, Sight, lit

# In ever fewer words, where there is little room.
BLIND = ("◌ blind: what an attacker sees", "◌ blind")
TRUTH = ("● truth shown", "● truth")


class TopBar(Horizontal):
    """Name, places (a click goes there), and a word while blind or with the truth shown."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._place = place
        self._sight = Sight()
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
        self.call_after_refresh(lambda: self._tell(self._sight))

    def on_mount(self) -> None:
        """Say what is shown of the truth."""
        self.watch(self.app, "sight", self._tell)

    def _tell(self, sight: Sight) -> None:
        self._sight = sight
        words = BLIND if sight.blind else TRUTH if sight.truth else ("",)
        room = self._badge.content_size.width
        self._badge.update(next((one for one in words if len(one) <= room), words[-1]))
