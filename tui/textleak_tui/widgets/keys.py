"""The keys at the bottom: as many as there is room for, and always the one that tells of all."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.widget import Widget
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

HELP = "app.help"
PALETTE = "-command-palette"
# Blanks around a key and its word, as Textual's style sheet has them.
_AROUND = 3


class Keys(Footer):
    """Textual's footer; where keys would be cut, the palette's goes first, then the last ones before the help's.

    Textual makes all keys anew whenever any might have changed, and works out their styles three times each. Here they
    are made anew where they are others, and their styles are worked out once.
    """

    _made: list[Widget] | None = None

    def compose(self) -> ComposeResult:
        """The keys that fit."""
        made, self._made = self._made, None
        yield from self._fitting() if made is None else made

    async def recompose(self) -> None:
        """Other keys, where they are others."""
        if not self.is_attached:
            return
        made = self._fitting()
        if _told(made) != _told(self.children):
            self._made = made
            await super().recompose()

    def _fitting(self) -> list[Widget]:
        keys = fitting(list(super().compose()), self.app.size.width)
        for key in keys:
            if isinstance(key, FooterKey):
                # A key begins as a compact one, and would become one as wide as the footer's by two changes of class.
                compact = self.compact or key.has_class(PALETTE)
                key.set_reactive(FooterKey.compact, compact)
                key.set_class(compact, "-compact", update=False)
        return keys

    def on_resize(self, event: events.Resize) -> None:
        """Others fit."""
        del event
        self.call_after_refresh(self.recompose)


def fitting(keys: list[Widget], room: int) -> list[Widget]:
    """Those of a footer's keys that fit into so many columns, in their order."""
    palette = [key for key in keys if key.has_class(PALETTE)]
    others = [key for key in keys if key not in palette]
    # The palette's has a line before it.
    if sum(map(_width, keys)) + len(palette) <= room:
        return keys
    if sum(map(_width, others)) <= room:
        return others
    last = [key for key in others if isinstance(key, FooterKey) and key.action in (HELP, "help")]
    left = room - sum(map(_width, last))
    found: list[Widget] = []
    for key in others:
        if key not in last:
            left -= _width(key)
            if left < 0:
                break
            found.append(key)
    return found + last


def _told(keys: Iterable[Widget]) -> list[object]:
    """All that tells footers' keys apart; a widget that isn't a key is like no other."""
    return [
        (key.key, key.key_display, key.description, key.action, key.tooltip, key.classes)
        if isinstance(key, FooterKey)
        else key
        for key in keys
    ]


def _width(key: Widget) -> int:
    return (
        cell_len(key.key_display) + cell_len(key.description) + _AROUND if isinstance(key, FooterKey) else 0
    )
