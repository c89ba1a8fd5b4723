"""A small dialog: what to export, and then where it went."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from textleak.errors import TextleakError
from textleak.view import ViewState
from textleak_tui import export

if TYPE_CHECKING:
    from textleak_tui.app import TextleakApp

CHOICES = {
    "svg": "SVG: the screen as a picture",
    "json": "JSON: the run as textleak run --json prints it",
    "markdown": "Markdown: a short summary",
    "all": "All three",
}


class ExportDialog(ModalScreen[None]):
    """Asks what to write, writes it, and says where it is.

    Args:
        run: the run folder.
        state: what is on the screen.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Back")]
    DEFAULT_CSS = """
    ExportDialog { align: center middle; background: $background 60%; }
    ExportDialog > Vertical {
        width: 58; max-width: 100%; height: auto; padding: 1 2; background: $panel; border: round $accent;
        & OptionList, & OptionList:focus {
            height: auto; background: $panel; border: none; padding: 0; margin-top: 1;
        }
        & .words { color: $text-muted; }
    }
    """

    def __init__(self, run: Path, state: ViewState) -> None:
        super().__init__()
        self._run_folder = run
        self._state = state

    def compose(self) -> ComposeResult:
        """The question and its answers."""
        with Vertical() as box:
            box.border_subtitle = "↑ ↓ choose, Enter writes, Esc leaves"
            yield Static("[b]Export[/]")
            yield Static(f"Into {export.EXPORTS}, in the folder the app was started in.", classes="words")
            yield OptionList(*(Option(words, id=kind) for kind, words in CHOICES.items()))

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        """Leave the dialog, so that it isn't in the picture, and write."""
        kind = str(message.option.id)
        app, run, state = cast("TextleakApp", self.app), self._run_folder, self._state
        self.dismiss()
        # The picture is taken once the screen below has been drawn.
        app.call_after_refresh(app.call_after_refresh, write_exports, app, run, state, kind)


def write_exports(app: TextleakApp, run: Path, state: ViewState, kind: str) -> list[Path]:
    """Write what was chosen, and tell where it is or why not.

    Args:
        app: the app, for the picture and for the truth being hidden or not.
        run: the run folder.
        state: what is on the screen.
        kind: one of `CHOICES`.
    """
    written: list[Path] = []
    try:
        folder = export.export_folder(run)
        if kind in ("svg", "all"):
            written.append(export.write(folder, "screen.svg", app.export_screenshot(title="textleak")))
        if kind in ("json", "all"):
            content = export.run_json(run, state, blind=app.blind)
            text = json.dumps(content, ensure_ascii=False, indent=1, default=str)
            written.append(export.write(folder, "run.json", text + "\n"))
        if kind in ("markdown", "all"):
            written.append(export.write(folder, "summary.md", export.summary(run, state, blind=app.blind)))
    except TextleakError as error:
        words = " ".join(part for part in (error.why, error.fix) if part)
        app.notify(words, title=error.what, severity="error", timeout=10, markup=False)
        return written
    names = ", ".join(path.name for path in written)
    app.notify(f"{names} in {folder}", title="Exported", timeout=8, markup=False)
    return written
