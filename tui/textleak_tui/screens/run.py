"""The run screen: set up an attack, start it, watch it, stop it, start it again with changes."""

from __future__ import annotations

import datetime
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import ContentSwitcher, Static

from textleak.errors import InputError
from textleak.view import ViewState
from textleak_tui import fields
from textleak_tui.child import Child, Failure
from textleak_tui.recording import Recording
from textleak_tui.screens.base import Page
from textleak_tui.widgets import RunView
from textleak_tui.widgets.setup_form import SetupForm

FRAMES_A_SECOND = 12
# Our choice: how long one frame may spend on reading what the attack wrote.
SECONDS_TO_READ = 0.02
# The clock is drawn this often while nothing else happens; memory is looked up as often.
SECONDS_BETWEEN_TICKS = 0.5


class RunScreen(Page):
    """Setup, then the run."""

    place = "run"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f5,ctrl+r", "start", "Start", priority=True, tooltip="Attack the sentence with these settings."
        ),
        Binding(
            "ctrl+l",
            "copy",
            "Copy command",
            priority=True,
            tooltip="Copy the same run as a command line to the clipboard.",
        ),
        Binding("escape", "watch", "Back to the run", tooltip="From the form back to the run."),
        Binding("space", "pause", "Pause", tooltip="The attack waits between two steps."),
        Binding("space", "resume", "Resume", tooltip="The attack goes on where it waits."),
        Binding("x", "stop", "Stop", tooltip="End the run with its best answer so far; again, by force."),
        Binding("r", "replay", "Replay", tooltip="Scrub through this run and play it again."),
        Binding(
            "n,escape", "edit", "New run", key_display="n", tooltip="Back to the form, everything as it was."
        ),
        Binding("f5,ctrl+r", "again", "Again", show=False, tooltip="The same settings in a new run."),
        Binding("e", "export", "Export", tooltip="Write the screen, the run or a summary to a file."),
        Binding("t", "truth", "Truth", tooltip="Show or hide the true tokens."),
        Binding("b", "blind", "Blind", tooltip="Show only what an attacker would see, or all again."),
        Binding("ctrl+q", "quit", "Quit", tooltip="A run that is going ends with its best answer."),
    ]

    def __init__(self, setup: fields.Setup = fields.TEXT) -> None:
        super().__init__()
        self.setup = setup
        self.place = "run" if setup is fields.TEXT else "pictures"
        self.view = RunView()
        self.state = ViewState()
        self.child: Child | None = None
        self.recording: Recording | None = None
        self.failure: Failure | None = None
        self.started = 0.0
        self._heard = 0.0
        self._ticked = 0.0
        self._memory: int | None = None
        self._settled = True

    def content(self) -> Iterable[Widget]:
        """The two pages."""
        remembered = self.textleak.remembered.get(self._remembered)
        values = {str(k): str(v) for k, v in remembered.items()} if isinstance(remembered, dict) else {}
        self.form = SetupForm(values, self.setup, id="setup")
        self.notice = Static("", classes="notice")
        with ContentSwitcher(initial="setup"):
            yield self.form
            with Vertical(id="live"):
                yield self.view
                yield self.notice

    def on_mount(self) -> None:
        """Ask what attacks there are, and begin to draw."""
        super().on_mount()
        self.notice.display = False
        self.form.list_names(fields.Catalog.from_json(self.textleak.remembered.get("catalog")))
        self.set_interval(1 / FRAMES_A_SECOND, self._frame)
        self._list_names()

    @work(exclusive=True, group="catalog")
    async def _list_names(self) -> None:
        catalog = await fields.list_catalog()
        if catalog.attacks:
            self.form.list_names(catalog)
            self.textleak.remember("catalog", catalog.to_json())

    @property
    def _remembered(self) -> str:
        """What the fields are remembered as."""
        return "fields" if self.setup is fields.TEXT else "picture fields"

    # What the keys do

    @property
    def live(self) -> bool:
        """Whether the run is shown, not the setup."""
        return self.query_one(ContentSwitcher).current == "live"

    @property
    def going(self) -> bool:
        """Whether an attack is going."""
        return self.child is not None and not self._settled

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that mean nothing now are not in the footer."""
        if not self.is_mounted:
            return False
        live, going = self.live, self.going
        allowed = {
            "start": not live and not going,
            "copy": not live,
            "pause": live and going and not self.paused,
            "resume": live and going and self.paused,
            "stop": live and going,
            "replay": live and not going and self.recording is not None,
            "edit": live and not going,
            "again": live and not going,
            "export": live and not going and self.recording is not None,
            "truth": live,
            "blind": live,
            "quit": not live,
            "watch": not live and self.child is not None,
        }
        return allowed.get(action, True)

    @on(SetupForm.Start)
    def _asked_to_start(self) -> None:
        if self.check_action("start", ()):
            self.action_start()

    @on(SetupForm.Copy)
    def action_copy(self) -> None:
        """Copy the command line."""
        self.app.copy_to_clipboard(fields.command_line(self.form.private_batch, self.form.values, self.setup))
        self.notify("The command line is in the clipboard.", timeout=3)

    def action_start(self) -> None:
        """Start what the form says, where it can be."""
        if self.form.check():
            self._start()

    def action_again(self) -> None:
        """The same once more."""
        self.action_start()

    def action_edit(self) -> None:
        """Back to the form."""
        self._show("setup")
        self.form.sentences.focus()

    def action_watch(self) -> None:
        """Back to the run."""
        self._show("live")
        self.view.tokens.focus_tokens()

    @property
    def paused(self) -> bool:
        """Whether the attack was asked to wait."""
        return self.child is not None and self.child.paused

    def action_pause(self) -> None:
        """Wait between two steps; an attack that hasn't begun can't."""
        if self.child is None:
            return
        self.child.pause()
        if not self.paused:
            self.notify("It can be paused once the attack has begun.", title="Not yet", timeout=3)
        self.refresh_bindings()
        self._draw()

    def action_resume(self) -> None:
        """Go on."""
        if self.child is not None:
            self.child.pause()
            self.refresh_bindings()
            self._draw()

    def action_stop(self) -> None:
        """Stop with the best answer so far."""
        if self.child is not None:
            self.child.stop()
            self._draw()

    def action_replay(self) -> None:
        """Open the run as a recording."""
        if self.child is not None:
            self.textleak.open_replay(self.child.folder)

    def action_export(self) -> None:
        """Ask what to write."""
        from textleak_tui.screens.export import ExportDialog

        if self.recording is not None:
            self.app.push_screen(ExportDialog(self.recording.folder.path, self.state))

    def action_truth(self) -> None:
        """Show or hide the true tokens."""
        self.textleak.action_truth()

    def action_blind(self) -> None:
        """Show only what an attacker would see, or all again."""
        self.textleak.action_blind()

    async def action_quit(self) -> None:
        """Quit."""
        await self.app.action_quit()

    # The attack's process

    @work(exclusive=True, group="start")
    async def _start(self) -> None:
        values, batch = self.form.values, self.form.private_batch
        self.textleak.remember(self._remembered, values)
        name = f"{Path(values['model']).name}-{values['attack']}"
        self.child = child = Child(self._new_folder(name))
        self.recording, self.failure, self.state = None, None, ViewState()
        self.started = self._heard = self._ticked = time.monotonic()
        self._memory, self._settled = None, False
        self.view.forget()
        self.form.say(None)
        self._show("live")
        self.view.tokens.focus_tokens()
        self._draw()
        self.textleak.own(child)
        try:
            await child.start(fields.arguments(batch, values, self.setup), self.setup.command)
        except OSError as error:
            self._fail(
                Failure(
                    what="The attack's process can't be started.",
                    why=f"{error.strerror or error}.",
                    fix="Free some memory or processes, then start it again.",
                )
            )
        self.refresh_bindings()

    def _new_folder(self, name: str) -> Path:
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        words = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
        return self.textleak.root / f"{now}-{words[:60]}-{secrets.token_hex(2)}"

    def _frame(self) -> None:
        """Look at what the attack has written, a few times a second; the newest state wins."""
        child = self.child
        if child is None or self._settled:
            return
        now = time.monotonic()
        ended = child.ended
        if self.recording is None and (child.folder / "events.jsonl").exists():
            try:
                self.recording = Recording(child.folder)
            except InputError:
                self.recording = None
        news = self.recording is not None and self.recording.read(SECONDS_TO_READ)
        if news and self.recording is not None:
            self.state, self._heard = self.recording.state(), now
        if now - self._ticked >= SECONDS_BETWEEN_TICKS:
            self._ticked = now
            self._memory = child.memory() or self._memory
            news = True
        finished = self.state.finished is not None and self.state.finished.outcome != "failed"
        if finished or (ended and (self.recording is None or self.recording.whole)):
            self._settle()
        elif news and self.is_current and self.live:
            self._draw()

    def _settle(self) -> None:
        """The process has ended, and all it wrote was read."""
        self._settled = True
        assert self.child is not None
        if self.state.finished is None or self.state.finished.outcome == "failed":
            failure = self.child.failure()
            if self.child.exit_code == 2 and self.state.progress is None:
                self._refuse(failure)
                return
            self._fail(failure)
        self._draw()
        self.refresh_bindings()

    def _refuse(self, failure: Failure) -> None:
        """The settings can't be used: back to the form, with the reason."""
        self.child = None
        self._show("setup")
        self.form.say(_in_words(failure))
        self.refresh_bindings()

    def _fail(self, failure: Failure) -> None:
        self.failure = failure
        self._settled = True
        self._draw()
        self.refresh_bindings()

    def _show(self, page: str) -> None:
        self.query_one(ContentSwitcher).current = page
        self.refresh_bindings()

    # What is on the screen

    def refresh_view(self) -> None:
        """Blind or truth has changed."""
        self._draw()

    def _draw(self) -> None:
        child = self.child
        if child is None:
            return
        waited = time.monotonic() - self._heard
        now = None if child.paused or not child.alive or self.recording is None else self.state.t + waited
        self.view.show(
            self.state,
            blind=self.textleak.blind,
            truth=self.textleak.truth,
            now=now,
            memory=self._memory,
            paused=child.paused and self.going,
            waiting=self._waiting(),
        )
        self.notice.display = self.failure is not None
        if self.failure is not None:
            self.notice.update(_in_words(self.failure))

    def _waiting(self) -> str:
        """Words in place of the tokens while there are none."""
        if self.failure is not None:
            return "No token was recovered before the run ended."
        if self.recording is None:
            seconds = int(time.monotonic() - self.started)
            return (
                f"Loading the model and computing the gradient in a process of its own … {seconds} s\n"
                "The first tokens appear when the attack has taken its first step. x stops it."
            )
        return "The attack is on its way: its first answer comes after its first step."


def _in_words(failure: Failure) -> Text:
    """What, why, what to do, and the process's own last lines."""
    text = Text(f"✗ {failure.what}", style="bold")
    for part in (failure.why, failure.fix):
        if part:
            text.append(f"\n  {part}", style="not bold")
    for line in failure.lines[-6:]:
        text.append(f"\n  │ {line}", style="dim not bold")
    return text
