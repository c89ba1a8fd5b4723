"""The app: its places, its themes, what every screen shares. `build_app` makes it, for `textleak tui` and for tests.

Adding a screen: a file in `screens/` with a `Page`, and a row in `PLACES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.reactive import reactive
from textual.screen import Screen

from textleak.runs import runs_folder
from textleak_tui.themes import DARK, LIGHT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A screen that one can go to from anywhere.

    Attributes:
        name: its mode's name.
        title: as the bar on top writes it.
        key: goes there.
        words: what it is for, for the command palette and the help.
        factory: makes it; imports it only then.
    """

    name: str
    title: str
    key: str
    words: str
    factory: Callable[[], Screen[None]]


def _run() -> Screen[None]:
    from textleak_tui.screens.run import RunScreen

    return RunScreen()


def _history() -> Screen[None]:
    from textleak_tui.screens.history import HistoryScreen

    return HistoryScreen()


def _defenses() -> Screen[None]:
    from textleak_tui.screens.defense import DefenseScreen

    return DefenseScreen()


PLACES = (
    Place(
        name="run",
        title="Run",
        key="f2",
        words="Set up an attack, start it and watch the text come back.",
        factory=_run,
    ),
    Place(
        name="history",
        title="History",
        key="f3",
        words="Every run so far: open one, replay it, compare two.",
        factory=_history,
    ),
    Place(
        name="defenses",
        title="Defenses",
        key="f4",
        words="One sentence against a defense of growing strength.",
        factory=_defenses,
    ),
)


class TextleakApp(App[None]):
    """Watch the text come back, token by token.

    Args:
        run: a run folder to open at once.
        root: where run folders lie; None for the usual place.
        settings_path: where settings are remembered; None remembers nothing.
    """

    TITLE = "textleak"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(place.key, f"go('{place.name}')", place.title, show=False) for place in PLACES),
        Binding("b", "blind", "Blind", show=False),
        Binding("t", "truth", "Truth", show=False),
    ]

    blind: reactive[bool] = reactive(False)
    """Only what an attacker would see."""
    truth: reactive[bool] = reactive(False)
    """The true tokens are shown (not while blind)."""

    def __init__(
        self, *, run: Path | None = None, root: Path | None = None, settings_path: Path | None = None
    ) -> None:
        super().__init__()
        self.run_path = run
        self.root = root or runs_folder()
        self.settings_path = settings_path
        for place in PLACES:
            self.add_mode(place.name, place.factory)

    def on_mount(self) -> None:
        """Open the run screen, or the run that was named."""
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = DARK.name
        self.switch_mode("run")
        if self.run_path is not None:
            self.open_replay(self.run_path)

    def action_go(self, place: str) -> None:
        """Go to a place; what was open there is still open."""
        self.switch_mode(place)

    def action_blind(self) -> None:
        """Show only what an attacker would see, or everything again."""
        self.blind = not self.blind

    def action_truth(self) -> None:
        """Show or hide the true tokens."""
        self.truth = self.blind or not self.truth
        self.blind = False

    def open_replay(self, run: Path) -> None:
        """Open a run folder, finished or still being written."""
        from textleak_tui.screens.replay import ReplayScreen

        self.push_screen(ReplayScreen(run))

    def open_compare(self, left: Path, right: Path) -> None:
        """Two runs side by side."""
        from textleak_tui.screens.compare import CompareScreen

        self.push_screen(CompareScreen(left, right))


def build_app(
    *, run: Path | None = None, root: Path | None = None, settings_path: Path | None = None
) -> TextleakApp:
    """The app as `textleak tui` starts it and as tests drive it.

    Args:
        run: a run folder to open at once.
        root: where run folders lie; None for the usual place.
        settings_path: where settings are remembered; None remembers nothing.
    """
    return TextleakApp(run=run, root=root, settings_path=settings_path)
