"""A small dialog: what to export."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from textleak_tui.export import EXPORTS

CHOICES = {
    "svg": "SVG: the screen as a picture",
    "json": "JSON: the run as textleak run --json prints it",
    "markdown": "Markdown: a short summary",
    "html": "HTML: a report to read in a browser",
    "all": "All of them",
}


class ExportDialog(ModalScreen[str]):
    """Asks what to write; answers with one of `CHOICES`, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Back")]
    DEFAULT_CSS = """
    ExportDialog { align: center middle; background: $background 60%; }
    ExportDialog > Vertical {
        width: 58; max-width: 100%; height: auto; padding: 1 2; background: $panel; border: round $accent;
        & OptionList, & OptionList:focus {
            height: auto; background: $panel; background-tint: $panel 0%; border: none; padding: 0; margin-top: 1;
        }
        & .words { color: $text-muted; }
    }
    """

    def compose(self) -> ComposeResult:
        """The question and its answers."""
        with Vertical() as box:
            box.border_subtitle = "↑ ↓ choose, Enter writes, Esc leaves"
            yield Static("[b]Export[/]")
            download = " In a browser it is a download too." if self.app.is_web else ""
            yield Static(f"Into {EXPORTS}, in the folder the app was started in.{download}", classes="words")
            yield OptionList(*(Option(words, id=kind) for kind, words in CHOICES.items()))

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        """The answer."""
        self.dismiss(str(message.option.id))
