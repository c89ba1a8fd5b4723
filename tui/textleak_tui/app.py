"""The app: it makes the screens, hands them what they need, and hears what they ask of it.

`build_app` makes it, for `textleak tui` and for tests. Screens know `textleak_tui.places`, never this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import App
from textual.binding import Binding, BindingType
from textual.command import Provider
from textual.dom import DOMNode
from textual.reactive import reactive
from textual.screen import ModalScreen, Screen
from textual.worker import WorkerError

from textleak.errors import TextleakError
from textleak.runs import holds_an_evaluation, runs_folder
from textleak_tui.child import Child
from textleak_tui.hangup import when_gone
from textleak_tui.keystrokes import InOrder, hear_alt_and_digits
from textleak_tui.places import PLACES, AttackAgain, CompareRuns, HandOver, OpenGrid, OpenRun, Sight
from textleak_tui.session import Sessions
from textleak_tui.settings import Memory
from textleak_tui.starter import Starter
from textleak_tui.stories import STORIES
from textleak_tui.stylesheet import SteadyStylesheet
from textleak_tui.themes import DARK, LIGHT, QUIET, own_themes

# Our choice: by then the first screen is there.
SECONDS_TO_LOAD = 2.0


def _palette() -> type[Provider]:
    from textleak_tui.palette import Everything

    return Everything


class TextleakApp(InOrder):
    """Watch the text come back, token by token.

    Args:
        sessions: opens attacks, and knows where run folders lie.
        memory: what is remembered from one start to the next.
        run: a run folder, or an evaluation's, to open at once.
        update: a file to audit at once.
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
        *(
            # Before the sentence that is being typed takes the digit.
            Binding(
                story.key,
                f"story('{story.name}')",
                story.title,
                show=False,
                priority=True,
                tooltip=story.words,
            )
            for story in STORIES
        ),
        Binding("t", "truth", "Truth", show=False, tooltip="Show or hide the true tokens."),
        Binding(
            "b", "blind", "Blind", show=False, tooltip="Show only what an attacker would see, or all again."
        ),
        Binding(
            "j", "jump", "Jump", show=False, tooltip="To a field or a pane by its sign; in a form Ctrl+G, J."
        ),
        Binding("f9", "save_svg", "Save picture", show=False, tooltip="Write the screen to an SVG file."),
        Binding("f8", "other_theme", "Dark or light", show=False, tooltip="Change to the next theme."),
        Binding(
            "f1,question_mark",
            "help",
            "Help",
            key_display="F1",
            tooltip="What the signs mean, and every key.",
        ),
        Binding(
            "ctrl+g",
            "where_to",
            "Go to",
            show=False,
            priority=True,
            tooltip="Go to a place, or do what the function keys do, by a letter.",
        ),
        Binding(
            "ctrl+q,q", "quit", "Quit", show=False, tooltip="A run that is going ends with its best answer."
        ),
    ]

    sight: reactive[Sight] = reactive(Sight())
    """What is shown of the truth."""

    def __init__(
        self, sessions: Sessions, memory: Memory, *, run: Path | None = None, update: Path | None = None
    ) -> None:
        super().__init__()
        hear_alt_and_digits()
        self.stylesheet = SteadyStylesheet(variables=self.get_css_variables())
        self.sessions = sessions
        self.memory = memory
        self._run_to_open = run
        self._update = update
        self._quitting = False
        self._themes: list[str] = []
        makers = {
            "run": self._make_run,
            "history": self._make_history,
            "defenses": self._make_defenses,
            "pictures": self._make_pictures,
            "audit": self._make_audit,
            "grid": self._make_grid,
        }
        for place in PLACES:
            self.add_mode(place.name, makers[place.name])

    # Imported only when one goes there.

    def _make_run(self) -> Screen[None]:
        from textleak_tui.screens.run import RunScreen
        from textleak_tui.setups import TEXT

        return RunScreen(TEXT, self.sessions, self.memory)

    def _make_pictures(self) -> Screen[None]:
        from textleak_tui.screens.run import RunScreen
        from textleak_tui.setups import IMAGE

        return RunScreen(IMAGE, self.sessions, self.memory)

    def _make_audit(self) -> Screen[None]:
        from textleak_tui.screens.run import RunScreen
        from textleak_tui.setups import AUDIT

        batch = () if self._update is None else (str(self._update),)
        return RunScreen(AUDIT, self.sessions, self.memory, batch=batch)

    def _make_grid(self) -> Screen[None]:
        from textleak_tui.screens.grid import GridScreen

        return GridScreen(self.sessions, self.memory)

    def _make_history(self) -> Screen[None]:
        from textleak_tui.screens.history import HistoryScreen

        return HistoryScreen(self.sessions.root)

    def _make_defenses(self) -> Screen[None]:
        from textleak_tui.screens.defense import DefenseScreen

        return DefenseScreen(self.sessions, self.memory)

    def on_mount(self) -> None:
        """Open the run screen, or the run that was named: from the history, where one is after leaving it."""
        folder = self.memory.themes
        own, problems = ([], []) if folder is None else own_themes(folder)
        for theme in (DARK, LIGHT, *own):
            self.register_theme(theme)
        self._themes = list(dict.fromkeys(theme.name for theme in (DARK, LIGHT, *own)))
        kept = self.memory.get("theme")
        self.theme = kept if kept in self._themes else DARK.name
        for problem in problems:
            self.notify(problem, title="A theme can't be used", severity="warning", timeout=10, markup=False)
        self._hear_signals()
        if not self.is_headless:
            # What was loaded stays: to go over it again for what may go stops the app for a tenth of a second.
            self.set_timer(SECONDS_TO_LOAD, gc.freeze)
        place = "run" if self._update is None else "audit"
        self.switch_mode(place if self._run_to_open is None else "history")
        if self._run_to_open is not None:
            self.open_run(OpenRun(self._run_to_open))

    def get_key_display(self, binding: Binding) -> str:
        """A key as keyboards write it: function keys have a capital."""
        key = super().get_key_display(binding)
        return key.upper() if key[:1] == "f" and key[1:].isdigit() else key

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """What a theme that isn't ours lacks."""
        return {"quiet": QUIET}

    def update_styles(self, node: DOMNode, animate: bool = True) -> None:
        """Work out the styles of a node and of all below; not before it is on a screen, where they are worked out."""
        if isinstance(node, App | Screen) or node.is_attached:
            super().update_styles(node, animate)

    def _hear_signals(self) -> None:
        """End in order when the system or a closed terminal asks for it."""
        loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGHUP"):
            # Not on Windows, and not where the app runs beside another program's main thread.
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError, AttributeError):
                loop.add_signal_handler(getattr(signal, name), self._end_on_signal, name)
        if not self.is_headless and sys.__stdin__ is not None:
            # A terminal can go without a signal: where it isn't the one that controls the process.
            when_gone(
                sys.__stdin__.fileno(), lambda: loop.call_soon_threadsafe(self._end_on_signal, "SIGHUP")
            )

    def _end_on_signal(self, name: str) -> None:
        if name == "SIGHUP":
            self._end_without_terminal()
        else:
            self.exit(return_code=143)

    @work
    async def _end_without_terminal(self) -> None:
        """The terminal has gone: there is nothing to put back, and writing to it would never end."""
        with self.batch_update():  # nothing is drawn meanwhile
            await self.sessions.end()
            os._exit(129)

    def action_go(self, place: str) -> None:
        """Go to a place; what was open there is still open."""
        self.switch_mode(place)

    def action_where_to(self) -> None:
        """Ask where to, for who has no function keys."""
        from textleak_tui.screens.go import GoDialog

        async def go(action: str | None) -> None:
            if action is not None:
                await self.run_action(f"app.{action}")

        if not isinstance(self.screen, ModalScreen):
            self.push_screen(GoDialog(), go)

    def action_jump(self) -> None:
        """Go to a field or a pane by its sign."""
        from textleak_tui.screens.jump import JumpScreen, targets_of

        if not isinstance(self.screen, ModalScreen):
            self.push_screen(JumpScreen(targets_of(self.screen)), lambda chosen: chosen and chosen.focus())

    def action_story(self, name: str) -> None:
        """Play a recording that came with the app."""
        from textleak_tui.screens.replay import ReplayScreen

        if isinstance(self.screen, ModalScreen):
            return
        story = next(one for one in STORIES if one.name == name)
        self.switch_mode("run")
        while isinstance(self.screen, ReplayScreen):
            self.pop_screen()
        self.push_screen(ReplayScreen(story.folder, "run", story=story))

    def action_blind(self) -> None:
        """Show only what an attacker would see, or everything again."""
        self.sight = self.sight.other_blind()

    def action_truth(self) -> None:
        """Show or hide the true tokens."""
        self.sight = self.sight.other_truth()

    def action_other_theme(self) -> None:
        """The next theme: dark, light, and those of the user's own."""
        at = self._themes.index(self.theme) if self.theme in self._themes else -1
        self.theme = self._themes[(at + 1) % len(self._themes)]
        self.memory.keep("theme", self.theme)

    def action_save_svg(self) -> None:
        """Write the screen to an SVG file."""
        from textleak_tui import export

        try:
            folder = export.export_folder(self.sessions.root / "screen")
            path = export.write(folder, "screen.svg", self.export_screenshot(title="textleak"))
        except TextleakError as error:
            words = " ".join(part for part in (error.why, error.fix) if part)
            self.notify(words, title=error.what, severity="error", timeout=10, markup=False)
        else:
            self.hand_over(HandOver(path))
            self.notify(str(path), title="Saved", timeout=8, markup=False)

    @on(HandOver)
    def hand_over(self, message: HandOver) -> None:
        """In a browser, offer a file that was written as a download too."""
        if self.is_web:
            self.deliver_text(message.path)

    def export_screenshot(self, *, title: str | None = None, simplify: bool = False) -> str:
        """The screen as SVG that looks the same wherever it is opened."""
        from textleak.view.svg import portable

        return portable(super().export_screenshot(title=title, simplify=simplify))

    async def action_quit(self) -> None:
        """Quit; an attack that is going ends with its best answer first. Asked twice, it is killed."""
        if self.sessions.going and not self._quitting:
            self._quitting = True
            self.notify(
                "The run is stopped with its best answer. Ctrl+Q again doesn't wait for it.", timeout=20
            )
            self._end_and_exit()
            return
        self.sessions.kill()
        self.exit()

    @work
    async def _end_and_exit(self) -> None:
        await self.sessions.end()
        self.exit()

    async def on_unmount(self) -> None:
        """However the app ends, no process goes on without it."""
        await self.sessions.end()
        self.workers.cancel_all()
        for worker in self.workers:
            with contextlib.suppress(WorkerError):
                await worker.wait()

    def action_help(self) -> None:
        """What the signs mean, and every key."""
        from textleak_tui.screens.help import HelpScreen

        if not isinstance(self.screen, ModalScreen):
            self.push_screen(HelpScreen(self.screen))

    @on(OpenRun)
    def open_run(self, message: OpenRun) -> None:
        """Open a run folder, finished or still being written, or that of an evaluation."""
        if holds_an_evaluation(message.run):
            from textleak_tui.screens.evaluation import EvaluationScreen

            self.push_screen(EvaluationScreen(message.run, self.memory))
            return
        from textleak_tui.screens.replay import ReplayScreen

        self.push_screen(ReplayScreen(message.run, self.current_mode, secrets=message.secrets))

    @on(OpenGrid)
    def open_grid(self, message: OpenGrid) -> None:
        """Watch an evaluation that is going here."""
        from textleak_tui.screens.evaluation import EvaluationScreen

        self.push_screen(EvaluationScreen(message.session.folder, self.memory, message.session))

    @on(AttackAgain)
    def attack_again(self, message: AttackAgain) -> None:
        """Attack a batch of an evaluation live, or set up what a run had."""
        from textleak_tui.screens.run import RunScreen

        came_from = next((place for place in PLACES if place.name == self.current_mode), None)

        def begin() -> None:
            if not isinstance(self.screen, RunScreen):
                return
            if message.recorded is not None:
                self.screen.set_up(message.batch, message.recorded)
            elif self.screen.attack(message) and message.kept_as and came_from is not None:
                words = f"{came_from.key.upper()} goes back to the evaluation. There Enter replays it from now on."
                self.notify(words, title="Attacked once more", timeout=8)

        self.switch_mode("run")
        self.call_after_refresh(begin)

    @on(CompareRuns)
    def compare_runs(self, message: CompareRuns) -> None:
        """Two runs side by side."""
        from textleak_tui.screens.compare import CompareScreen

        self.push_screen(CompareScreen(message.left, message.right))


def build_app(
    *,
    run: Path | None = None,
    update: Path | None = None,
    root: Path | None = None,
    settings_path: Path | None = None,
    sessions: Sessions | None = None,
    starter: Starter | None = None,
) -> TextleakApp:
    """The app as `textleak tui` starts it and as tests drive it.

    Args:
        run: a run folder, or an evaluation's, to open at once.
        update: a file to audit at once.
        root: where run folders lie; None for the usual place.
        settings_path: where settings are remembered; None remembers nothing.
        sessions: opens attacks; None for real ones under `root`.
        starter: loads what these need while one types; None for nothing beforehand.
    """
    if sessions is None:
        child = Child if starter is None else functools.partial(Child, begin=starter.start)
        sessions = Sessions(root or runs_folder(), child, starter=starter)
    return TextleakApp(sessions, Memory(settings_path), run=run, update=update)
