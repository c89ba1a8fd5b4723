"""A small dialog: whether a run's folder may go; and what then goes of it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from textleak.runs import RunFolder
from textleak.words import printable

# What an image run leaves beside its records.
PICTURES = ("strip.png", "grid.png", "recovery.gif", "original-*.png", "recovered-*.png")


def delete_run(path: Path) -> list[str]:
    """Delete what is textleak's own in a run folder, and the folder where it is empty then.

    Returns:
        The names that were left alone, as they aren't textleak's.

    Raises:
        OSError: something can't be deleted.
    """
    for picture in (found for pattern in PICTURES for found in path.glob(pattern)):
        picture.unlink()
    RunFolder(path=path).discard()
    return sorted(left.name for left in path.iterdir()) if path.exists() else []


class DeleteDialog(ModalScreen[bool]):
    """Asks whether a run's folder may go."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "answer(False)", "Keep"),
        Binding("y", "answer(True)", "Delete"),
    ]
    DEFAULT_CSS = """
    DeleteDialog { align: center middle; background: $background 60%; }
    DeleteDialog > Vertical {
        width: 64; max-width: 100%; height: auto; padding: 1 2; background: $panel; border: round $error;
        & Horizontal { height: auto; align-horizontal: right; margin-top: 1; }
        & Button { margin-left: 2; }
    }
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self._folder = run

    def compose(self) -> ComposeResult:
        """The question; Keep is in focus."""
        with Vertical():
            yield Static("[b]Delete this run?[/]")
            yield Static(
                f"{printable(str(self._folder))}\nIts settings, events and result can't be brought back.",
                markup=False,
            )
            with Horizontal():
                yield Button("Keep (n)", id="keep", compact=True)
                yield Button("Delete (y)", id="delete", variant="error", compact=True)

    def on_button_pressed(self, message: Button.Pressed) -> None:
        """The answer."""
        self.dismiss(message.button.id == "delete")

    def action_answer(self, sure: bool) -> None:
        """The answer by key."""
        self.dismiss(sure)
