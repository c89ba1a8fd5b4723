"""The help: what is on the screen, what the signs mean, what can be done and with which key."""

from __future__ import annotations

from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Static

from textleak.view import UNICODE
from textleak_tui.palette import commands

_SIGNS = (
    ("right", "the right token at its place"),
    ("elsewhere", "a token of the sentence, but at another place"),
    ("wrong", "not in the sentence"),
    ("unknown", "a guess that nothing was compared with: blind, or the truth isn't known"),
    ("open", "the attack holds no token here yet"),
    ("special", "set by the tokenizer itself, no secret"),
)


# Columns of a command's name, at most (our choice): its words need the rest.
TITLE = 16


class HelpScreen(ModalScreen[None]):
    """Signs and commands of the screen below."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,f1,q", "dismiss", "Close")]

    def __init__(self, page: Screen[object]) -> None:
        super().__init__()
        self._page = page

    def compose(self) -> ComposeResult:
        """One sheet that scrolls."""
        with VerticalScroll(classes="sheet") as sheet:
            sheet.border_title = "Help"
            sheet.border_subtitle = "↑ ↓ scroll, Esc closes"
            yield Static(
                "An attack sees a shared gradient, never your sentence. What it finds stands in the grid:"
            )
            yield Static(self._signs(), classes="block")
            yield Static(
                "The bar below a token is the attack's own confidence. The truth stays hidden until you ask "
                "for it; blind hides every comparison with it too, so that you see what an attacker would see. "
                "Arrow keys or a click pick a position; Tab goes on to the waterfall and the candidates, where Enter "
                "follows one. "
                "In the waterfall time runs downward: a token is written where it came, lighter where the attack is "
                "surer, green once a channel settled it. "
                "In the form, ↓ opens the choices of a field that has them.",
            )
            yield Static(self._commands(), classes="block")
        yield Footer(show_command_palette=False)

    def _signs(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for status, words in _SIGNS:
            table.add_row(Text(UNICODE.marks[status], style="bold"), words)
        return table

    def _commands(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="bold")
        table.add_column(max_width=TITLE)
        for command in commands(self._page):
            table.add_row(command.key, command.title, Text(command.words, style="dim"))
        return table
