"""The grid screen: set up an evaluation and start it; the evaluation screen shows how it fills."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.widget import Widget

from textleak.runs import holds_an_evaluation
from textleak_tui.catalog import Catalog
from textleak_tui.places import OpenGrid
from textleak_tui.screens.base import SENT, Page
from textleak_tui.session import Session, Sessions
from textleak_tui.settings import Memory
from textleak_tui.setups import GRID, command_line, remembered, settings_of
from textleak_tui.widgets.setup_form import SetupForm

FIRST_DATA = "sample"
SECONDS_BETWEEN_LOOKS = 0.2


class GridScreen(Page):
    """The form of an evaluation.

    Args:
        sessions: opens its process.
        memory: keeps the form's texts.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f5,ctrl+r,ctrl+s", "start", "Start", priority=True, tooltip="Measure the cells of this grid."
        ),
        Binding(
            "ctrl+l,ctrl+o",
            "copy",
            "Copy command",
            priority=True,
            tooltip="Copy the same evaluation as a command line to the clipboard.",
        ),
        Binding(
            "f4",
            "app.go('defenses')",
            "Ladder",
            priority=True,
            tooltip="One sentence against a defense of growing strength.",
        ),
        Binding("ctrl+b", "reset", "Defaults", priority=True, tooltip="Set every field back; the data stay."),
        Binding("escape", "watch", "Back to the grid", tooltip="From the form to the grid that was started."),
        Binding("ctrl+q", "app.quit", "Quit", tooltip="What is going ends; its records are kept."),
    ]

    def __init__(self, sessions: Sessions, memory: Memory) -> None:
        super().__init__(GRID.place)
        self.sessions = sessions
        self.memory = memory
        self.form = SetupForm(memory.texts("grid fields"), GRID, id="setup")
        self.form.sentences.text = FIRST_DATA
        self.session: Session | None = None

    def content(self) -> Iterable[Widget]:
        """The form."""
        yield self.form

    def on_mount(self) -> None:
        """Ask what attacks there are; what is typed takes the place of the first data."""
        self.form.sentences.select_all()
        self.form.list_names(Catalog.from_json(self.memory.get("catalog")))
        self._list_names()

    @work(exclusive=True, group="catalog")
    async def _list_names(self) -> None:
        found = await self.sessions.catalog()
        if found.attacks:
            self.form.list_names(found)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """There is nothing to go back to before something was started."""
        if action == "watch":
            return self.session is not None
        return super().check_action(action, parameters)

    @on(SetupForm.Start)
    def action_start(self) -> None:
        """Start what the form says, where it can be; one at a time."""
        if self.session is not None and self.session.child.alive:
            self.notify("x in it stops it.", title="A grid is being measured", severity="warning")
            self.action_watch()
        elif self.form.check():
            self._start()

    @on(SetupForm.Copy)
    def action_copy(self) -> None:
        """Copy the command line."""
        self.app.copy_to_clipboard(command_line(self.form.private_batch, self.form.values, GRID))
        self.notify(SENT, title="Command line", timeout=3)

    def action_reset(self) -> None:
        """All fields as they were at first."""
        self.form.reset()

    def action_watch(self) -> None:
        """The grid that was started."""
        if self.session is not None:
            self.post_message(OpenGrid(self.session))

    @work(exclusive=True, group="start")
    async def _start(self) -> None:
        self.form.say(None)
        values = self.form.values
        self.session = session = self.sessions.open(f"evaluation-{self.sessions.name(values['attack'])}")
        await session.start(GRID.command, settings_of(self.form.private_batch, values, GRID))
        if session.failure is not None:
            self.form.say(Text(f"✗ {session.failure.what} {session.failure.why} {session.failure.fix}"))
            return
        self.refresh_bindings()
        self.post_message(OpenGrid(session))
        while session.child.alive and not holds_an_evaluation(session.folder):
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        if holds_an_evaluation(session.folder):  # it is known now that the settings can be used
            self.memory.keep("grid fields", remembered(values, GRID))
