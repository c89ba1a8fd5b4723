"""The app: its places, its themes, what every screen shares. `build_app` makes it, for `textleak tui` and for tests.

Adding a screen: a file in `screens/` with a `Page`, and a row in `PLACES`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.reactive import reactive
from textual.screen import ModalScreen, Screen
from textual.worker import WorkerError

from textleak.errors import TextleakError
from textleak.runs import runs_folder
from textleak_tui import settings
from textleak_tui.child import Child
from textleak_tui.themes import DARK, LIGHT, QUIET


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


def _pictures() -> Screen[None]:
    from textleak_tui.fields import IMAGE
    from textleak_tui.screens.run import RunScreen

    return RunScreen(IMAGE)


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
    Place(
        name="pictures",
        title="Pictures",
        key="f6",
        words="The same for a picture: set up an attack on an image classifier and watch.",
        factory=_pictures,
    ),
)


def _palette() -> type[Provider]:
    from textleak_tui.palette import Everything

    return Everything


class TextleakApp(App[None]):
    """Watch the text come back, token by token.

    Args:
        run: a run folder to open at once.
        root: where run folders lie; None for the usual place.
        settings_path: where settings are remembered; None remembers nothing.
    """

    TITLE = "textleak"
    CSS_PATH = "app.tcss"
    COMMANDS: ClassVar[set[type[Provider] | Callable[[], type[Provider]]]] = {_palette}
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(
                place.key, f"go('{place.name}')", place.title, show=False, priority=True, tooltip=place.words
            )
            for place in PLACES
        ),
        Binding("t", "truth", "Truth", show=False, tooltip="Show or hide the true tokens."),
        Binding(
            "b", "blind", "Blind", show=False, tooltip="Show only what an attacker would see, or all again."
        ),
        Binding("f9", "save_svg", "Save picture", show=False, tooltip="Write the screen to an SVG file."),
        Binding("f8", "other_theme", "Dark or light", show=False, tooltip="Change to the other theme."),
        Binding(
            "f1,question_mark",
            "help",
            "Help",
            key_display="F1",
            tooltip="What the signs mean, and every key.",
        ),
        Binding(
            "ctrl+q,q", "quit", "Quit", show=False, tooltip="A run that is going ends with its best answer."
        ),
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
        self.remembered: dict[str, Any] = settings.read(settings_path)
        self.attacks: set[Child] = set()
        self._quitting = False
        for place in PLACES:
            self.add_mode(place.name, place.factory)

    def on_mount(self) -> None:
        """Open the run screen, or the run that was named."""
        self.register_theme(DARK)
        self.register_theme(LIGHT)
        self.theme = LIGHT.name if self.remembered.get("theme") == LIGHT.name else DARK.name
        self._hear_signals()
        self.switch_mode("run")
        if self.run_path is not None:
            self.open_replay(self.run_path)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """What a theme that isn't ours lacks."""
        return {"quiet": QUIET}

    def _hear_signals(self) -> None:
        """End in order when the system or a closed terminal asks for it."""
        loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGHUP"):
            # Not on Windows, and not where the app runs beside another program's main thread.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError, AttributeError):
                loop.add_signal_handler(getattr(signal, name), self._end_on_signal, name)

    def _end_on_signal(self, name: str) -> None:
        if name == "SIGHUP":
            self.run_worker(self._end_without_terminal(), name="end")
        else:
            self.exit(return_code=143)

    async def _end_without_terminal(self) -> None:
        """The terminal has gone: there is nothing to put back, and writing to it would never end."""
        await self.end_attacks()
        os._exit(129)

    def remember(self, key: str, value: object) -> None:
        """Keep a setting for the next start."""
        if self.remembered.get(key) != value:
            self.remembered[key] = value
            settings.write(self.settings_path, self.remembered)

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

    def action_other_theme(self) -> None:
        """Dark or light."""
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name
        self.remember("theme", self.theme)

    def action_save_svg(self) -> None:
        """Write the screen to an SVG file."""
        from textleak_tui import export

        try:
            folder = export.export_folder(self.root / "screen")
            path = export.write(folder, "screen.svg", self.export_screenshot(title="textleak"))
        except TextleakError as error:
            words = " ".join(part for part in (error.why, error.fix) if part)
            self.notify(words, title=error.what, severity="error", timeout=10, markup=False)
        else:
            self.notify(str(path), title="Saved", timeout=8, markup=False)

    def export_screenshot(self, *, title: str | None = None, simplify: bool = False) -> str:
        """The screen as SVG that looks the same wherever it is opened."""
        from textleak_tui.svg import portable

        return portable(super().export_screenshot(title=title, simplify=simplify))

    async def action_quit(self) -> None:
        """Quit; an attack that is going ends with its best answer first. Asked twice, it is killed."""
        going = [child for child in self.attacks if child.going]
        if going and not self._quitting:
            self._quitting = True
            self.notify(
                "The run is stopped with its best answer. Ctrl+Q again doesn't wait for it.", timeout=20
            )
            self.run_worker(self._end_and_exit(), name="quit")
            return
        for child in going:
            child.kill()
        self.exit()

    async def _end_and_exit(self) -> None:
        await self.end_attacks()
        self.exit()

    def own(self, child: Child) -> None:
        """Answer for this attack's end."""
        self.attacks = {one for one in self.attacks if not one.ended} | {child}

    async def end_attacks(self) -> None:
        """End every attack that is going, with its best answer where it finds the time."""
        await asyncio.gather(*(child.end() for child in self.attacks))
        self.attacks.clear()

    async def on_unmount(self) -> None:
        """However the app ends, no process goes on without it."""
        await self.end_attacks()
        self.workers.cancel_all()
        for worker in self.workers:
            with contextlib.suppress(WorkerError):
                await worker.wait()

    def action_help(self) -> None:
        """What the signs mean, and every key."""
        from textleak_tui.screens.help import HelpScreen

        if not isinstance(self.screen, ModalScreen):
            self.push_screen(HelpScreen(self.screen))

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
