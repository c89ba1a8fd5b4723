"""The keys at the bottom: as many as there is room for, and always the one that tells of all."""

from __future__ import annotations

from rich.cells import cell_len
from textual import events
from textual.app import ComposeResult
from textual.widget import Widget
from textual.widgets import Footer
from textual.widgets._footer import FooterKey

HELP = "app.help"
# Blanks around a key and its word, as Textual's style sheet has them.
_AROUND = 3


class Keys(Footer):
    """Textual's footer; where keys would be cut, the palette's goes first, then the last ones before the help's."""

    def compose(self) -> ComposeResult:
        """The keys that fit."""
        yield from fitting(list(super().compose()), self.app.size.width)

    def on_resize(self, event: events.Resize) -> None:
        """Others fit."""
        del event
        self.call_after_refresh(self.recompose)


def fitting(keys: list[Widget], room: int) -> list[Widget]:
    """Those of a footer's keys that fit into so many columns, in their order."""
    palette = [key for key in keys if key.has_class("-command-palette")]
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


def _width(key: Widget) -> int:
    return (
        cell_len(key.key_display) + cell_len(key.description) + _AROUND if isinstance(key, FooterKey) else 0
    )
