"""A small dialog: whether a run's folder may go; and what then goes of it."""

from __future__ import annotations

from collections.abc import Sequence
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
MOST_NAMED = 5  # of several runs (our choice)


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
    """Asks whether runs' folders may go.

    Args:
        runs: the folders.
    """

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

    def __init__(self, runs: Sequence[Path]) -> None:
        super().__init__()
        self._folders = runs

    def compose(self) -> ComposeResult:
        """The question; Keep is in focus."""
        with Vertical():
            one = len(self._folders) == 1
            yield Static(
                "[b]Delete this run?[/]" if one else f"[b]Delete these {len(self._folders)} runs?[/]"
            )
            names = [printable(str(folder) if one else folder.name) for folder in self._folders[:MOST_NAMED]]
            left = len(self._folders) - len(names)
            names += [f"and {left} more"] if left else []
            whose = "Its" if one else "Their"
            yield Static(
                "\n".join([*names, f"{whose} settings, events and result can't be brought back."]),
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
