"""Where to, by one letter: for browsers and terminals that keep the function keys to themselves."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from textleak_tui.places import PLACES
from textleak_tui.stories import STORIES

# What else is asked for from anywhere, by the app's action.
OTHERS = {
    "help": ("?", "Help", "What the signs mean, and every key."),
    "command_palette": ("k", "Commands", "All that can be done here, to search in."),
    "jump": ("j", "Jump", "To a field or a pane of this screen, each by its sign."),
    "other_theme": ("l", "Dark or light", "Change to the next theme."),
    "save_svg": ("s", "Save picture", "Write the screen to an SVG file."),
}


class GoDialog(ModalScreen[str]):
    """Asks where to; answers with an action of the app, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+g", "dismiss", "Back"),
        *(Binding(place.letter, f"choose(\"go('{place.name}')\")", show=False) for place in PLACES),
        *(
            Binding("question_mark" if letter == "?" else letter, f"choose('{action}')", show=False)
            for action, (letter, _, _) in OTHERS.items()
        ),
        *(Binding(story.key[-1], f"choose(\"story('{story.name}')\")", show=False) for story in STORIES),
    ]
    DEFAULT_CSS = """
    GoDialog { align: center middle; background: $background 60%; }
    GoDialog > Vertical {
        width: 98; max-width: 100%; height: auto; max-height: 100%; padding: 1 2; background: $panel;
        border: round $accent;
        & OptionList, & OptionList:focus { height: auto; max-height: 70vh; background: $panel; border: none;
            padding: 0; background-tint: $panel 0%; text-wrap: nowrap; text-overflow: ellipsis; }
        & OptionList:focus > .option-list--option-highlighted { background: $accent 25%; color: $foreground; }
    }
    """

    def compose(self) -> ComposeResult:
        """The places, each with its letter."""
        rows = [(f"go('{place.name}')", place.letter, place.title, place.words) for place in PLACES]
        rows += [(action, *row) for action, row in OTHERS.items()]
        rows += [
            (f"story('{story.name}')", story.key[-1], f"Watch {story.brief}", story.words)
            for story in STORIES
        ]
        with Vertical() as box:
            box.border_subtitle = "a letter, or ↑ ↓ and Enter; Esc leaves"
            yield Static("[b]Go to[/]")
            yield OptionList(
                *(
                    Option(f"[b]{letter}[/]  {title:<15} [dim]{words}[/]", id=action)
                    for action, letter, title, words in rows
                )
            )

    def action_choose(self, action: str) -> None:
        """A letter."""
        self.dismiss(action)

    def on_option_list_option_selected(self, message: OptionList.OptionSelected) -> None:
        """Enter or a click."""
        self.dismiss(str(message.option.id))
