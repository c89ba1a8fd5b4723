"""Jump mode: every field and pane on the screen has a sign, and the key of that name goes there."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_lowercase, digits
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.screen import ModalScreen, Screen
from textual.widget import Widget
from textual.widgets import Static

SIGNS = digits[1:] + ascii_lowercase


def targets_of(page: Screen[object]) -> Mapping[str, Widget]:
    """What can be gone to and is seen, by its sign, from the top on."""
    seen = [widget for widget in page.focus_chain if page.find_widget(widget).visible_region]
    return dict(zip(SIGNS, sorted(seen, key=lambda widget: (widget.region.y, widget.region.x)), strict=False))


class JumpScreen(ModalScreen[Widget]):
    """Answers with what was chosen; with None after any other key.

    Args:
        targets: by the key that chooses them.
    """

    DEFAULT_CSS: ClassVar[str] = """
    JumpScreen {
        background: $background 40%;
        & Static {
            position: absolute; width: auto; height: 1; padding: 0 1;
            background: $accent; color: $background; text-style: bold;
        }
    }
    """

    def __init__(self, targets: Mapping[str, Widget]) -> None:
        super().__init__()
        self.targets = targets

    def compose(self) -> ComposeResult:
        """A sign at the corner of each."""
        for sign, widget in self.targets.items():
            label = Static(sign)
            label.styles.offset = widget.region.offset
            yield label

    def on_key(self, event: events.Key) -> None:
        """Go, or leave all as it was."""
        event.stop()
        self.dismiss(self.targets.get(event.character or ""))

    def on_click(self, event: events.Click) -> None:
        """A click on a sign chooses it."""
        sign = str(event.widget.content) if isinstance(event.widget, Static) else ""
        self.dismiss(self.targets.get(sign))
