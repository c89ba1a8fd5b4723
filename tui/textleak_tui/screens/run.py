"""The run screen: set up an attack, start it, watch it, stop it, start it again with changes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import on, work
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widget import Widget
from textual.widgets import ContentSwitcher, Static

from textleak import runs
from textleak_tui import replays
from textleak_tui.catalog import Catalog
from textleak_tui.child import Failure
from textleak_tui.places import AttackAgain, OpenRun
from textleak_tui.playback import Frames
from textleak_tui.screens.base import COPY, SENT, Page
from textleak_tui.session import Session, Sessions
from textleak_tui.settings import Memory
from textleak_tui.setups import Setup, command_line, remembered, settings_of, values_of
from textleak_tui.standing import without_end
from textleak_tui.starter import Starter
from textleak_tui.widgets import RunView
from textleak_tui.widgets.setup_form import ComboBox, SetupForm
from textleak_tui.widgets.status import Pulse

# Our choice: how often what the attack has written is looked at, unless `Frames` lets it be drawn less often.
LOOKS_A_SECOND = 8
# Our choice: after the last key, before a model is loaded that may be half typed.
SECONDS_TO_SETTLE = 0.6
# The clock is drawn this often while nothing else happens; memory is looked up as often.
SECONDS_BETWEEN_TICKS = 0.5


class RunScreen(Page):
    """Setup, then the run.

    Args:
        setup: the kind of run.
        sessions: opens the attacks.
        memory: keeps the form's texts.
        batch: to begin with at once.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f5,ctrl+r,ctrl+s",
            "start",
            "Start",
            priority=True,
            tooltip="Attack the sentence with these settings.",
        ),
        Binding(
            "ctrl+l,ctrl+o",
            "copy",
            "Copy command",
            priority=True,
            tooltip="Copy the same run as a command line to the clipboard.",
        ),
        Binding(
            "ctrl+b", "reset", "Defaults", priority=True, tooltip="Set every field back; the sentence stays."
        ),
        Binding("escape", "watch", "Back to the run", tooltip="From the form back to the run."),
        Binding("space", "pause", "Pause", tooltip="The attack waits between two steps."),
        Binding("space", "resume", "Resume", tooltip="The attack goes on where it waits."),
        Binding("x", "stop", "Stop", tooltip="End the run with its best answer so far; again, by force."),
        Binding("r", "replay", "Replay", tooltip="Scrub through this run and play it again."),
        Binding("n", "edit", "New run", priority=True, tooltip="Back to the form, everything as it was."),
        Binding("escape", "edit", "New run", show=False),
        Binding("f5,ctrl+r,ctrl+s", "again", "Again", show=False, tooltip="The same settings in a new run."),
        Binding("e", "export", "Export", tooltip="Write the screen, the run or a summary to a file."),
        Binding("t", "truth", "Truth", tooltip="Show or hide the true tokens."),
        Binding("b", "blind", "Blind", tooltip="Show only what an attacker would see, or all again."),
        COPY,
        Binding("ctrl+q", "quit", "Quit", tooltip="A run that is going ends with its best answer."),
    ]

    def __init__(
        self, setup: Setup, sessions: Sessions, memory: Memory, *, batch: Sequence[str] = ()
    ) -> None:
        super().__init__(setup.place)
        self.setup = setup
        self.sessions = sessions
        self.memory = memory
        self.form = SetupForm(memory.texts(self._remembered), setup, id="setup")
        self.view = RunView()
        self.view.of_pictures = setup.place == "pictures"
        self.notice = Static("", classes="notice")
        self.session: Session | None = None
        self._values: dict[str, str] = {}
        self._ticked = 0.0
        self._held: int | None = None
        self._frames = Frames()
        self._news = False
        self._batch = batch
        self._to_keep_as = self._kept_as = ""

    def content(self) -> Iterable[Widget]:
        """The two pages."""
        with ContentSwitcher(initial="setup"):
            yield self.form
            with Vertical(id="live"):
                yield self.view
                yield self.notice

    def on_mount(self) -> None:
        """Ask what attacks there are, and begin to draw."""
        self.notice.display = False
        self.form.list_names(Catalog.from_json(self.memory.get("catalog")))
        self._look_again()
        self._list_names()
        if self._batch:
            self.form.sentences.text = "\n".join(self._batch)
            self.call_after_refresh(self.action_start)

    def attack(self, asked: AttackAgain) -> bool:
        """Fill the form, and start what it says then; not while a run is going."""
        if self.going:
            self.notify("x stops it.", title="A run is going here", severity="warning")
            return False
        batch, values = asked.batch, asked.values
        self._to_keep_as = asked.kept_as
        self.view.tokens.secrets = tuple(asked.secrets)
        self.form.fill(values, "\n".join(batch))
        self._show("setup")
        self.call_after_refresh(self.action_start)
        return True

    def set_up(self, batch: Sequence[str], settings: Mapping[str, Any]) -> None:
        """Fill the form with what a recorded run had; nothing starts yet."""
        self.form.fill(values_of(settings, self.form.catalog), "\n".join(batch))
        self.action_edit()

    @work(exclusive=True, group="catalog")
    async def _list_names(self) -> None:
        if self._starter is not None:
            self._starter.keep(
                self.setup.command, settings_of((), remembered(self.form.values, self.setup), self.setup)
            )
        found = await self.sessions.catalog()
        if found.attacks:
            self.form.list_names(found)
            self.memory.keep("catalog", found.to_json())

    @property
    def _starter(self) -> Starter | None:
        return self.sessions.starter

    @on(ComboBox.Changed)
    def _field_changed(self) -> None:
        self._keep_warm()

    @work(exclusive=True, group="warm")
    async def _keep_warm(self) -> None:
        """Once nobody types any more, let what the form names be loaded."""
        if self._starter is not None:
            await asyncio.sleep(SECONDS_TO_SETTLE)
            self._starter.keep(
                self.setup.command, settings_of((), remembered(self.form.values, self.setup), self.setup)
            )

    @property
    def _remembered(self) -> str:
        """What the fields are remembered as."""
        kinds = {"run": "fields", "pictures": "picture fields"}
        return kinds.get(self.setup.place, f"{self.setup.place} fields")

    # What the keys do

    @property
    def live(self) -> bool:
        """Whether the run is shown, not the setup."""
        return self.query_one(ContentSwitcher).current == "live"

    @property
    def going(self) -> bool:
        """Whether an attack is going."""
        return self.session is not None and self.session.going

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that mean nothing now are not in the footer."""
        if not self.is_mounted:
            return False
        live, going = self.live, self.going
        begun = self.session is not None and self.session.recording is not None
        shown = live and (begun or self.session is None)
        written = live and not going and begun
        allowed = {
            "start": not live and not going,
            "copy": not live,
            "reset": not live,
            "pause": live and going and begun and not self.paused,
            "resume": live and going and self.paused,
            "stop": live and going,
            "replay": written,
            "edit": live and not going,
            "again": live and not going,
            "export": written,
            "truth": shown,
            "blind": shown,
            "copy_text": shown and self.setup.place != "pictures",
            "quit": not live,
            "watch": not live and self.session is not None,
        }
        return allowed[action] if action in allowed else super().check_action(action, parameters)

    @on(SetupForm.Start)
    def _asked_to_start(self) -> None:
        if self.check_action("start", ()):
            self.action_start()

    @on(SetupForm.Copy)
    def action_copy(self) -> None:
        """Copy the command line."""
        self.app.copy_to_clipboard(command_line(self.form.private_batch, self.form.values, self.setup))
        self.notify(SENT, title="Command line", timeout=3)

    def action_start(self) -> None:
        """Start what the form says, where it can be."""
        if self.form.check():
            self._start(self._to_keep_as)
        self._to_keep_as = ""

    def action_reset(self) -> None:
        """All fields as they were at first."""
        self.form.reset()

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
        return self.session is not None and self.session.paused

    def action_pause(self) -> None:
        """Wait between two steps."""
        if self.session is not None:
            self.session.pause()
            self.refresh_bindings()
            self._draw()

    def action_resume(self) -> None:
        """Go on."""
        if self.session is not None:
            self.session.pause()
            self.refresh_bindings()
            self._draw()

    def action_stop(self) -> None:
        """Stop with the best answer so far."""
        if self.session is not None:
            self.session.stop()
            self._draw()

    def action_replay(self) -> None:
        """Open the run as a recording."""
        if self.session is not None:
            self.post_message(OpenRun(self.session.folder, self.view.tokens.secrets))

    def action_export(self) -> None:
        """Ask what to write."""
        session = self.session
        if session is not None and session.recording is not None:
            self.export_run(session.recording.folder.path, session.state)

    async def action_truth(self) -> None:
        """Show or hide the true tokens."""
        await self.app.run_action("app.truth")

    async def action_blind(self) -> None:
        """Show only what an attacker would see, or all again."""
        await self.app.run_action("app.blind")

    async def action_quit(self) -> None:
        """Quit."""
        await self.app.action_quit()

    # The attack

    @work(exclusive=True, group="start")
    async def _start(self, kept_as: str = "") -> None:
        self._values, batch = self.form.values, self.form.private_batch
        values = self._values
        model = values["model"] or self.setup.title.lower()
        name = self.sessions.name(runs.run_words(model, values["attack"]))
        self.session = session = self.sessions.open(name)
        self._ticked, self._held = time.monotonic(), None
        self._kept_as = kept_as
        self.view.forget()
        self.form.say(None)
        self._show("live")
        self.view.tokens.focus_tokens()
        self._draw()
        await session.start(self.setup.command, settings_of(batch, values, self.setup))
        self._keep(session)
        self._draw()
        self.refresh_bindings()

    def _look_again(self) -> None:
        """Look in a moment; while a run is drawn, when its next frame is due."""
        drawn = self.going and self.is_current and self.live
        self.set_timer(max(1 / LOOKS_A_SECOND, self._frames.wait() if drawn else 0.0), self._look)

    def _look(self) -> None:
        self._frame()
        self._look_again()

    def _frame(self) -> None:
        """Look at what the attack has written; the newest state wins."""
        session = self.session
        if self._starter is not None and self.is_current and not self.live:
            self.form.tell_warmth(self._starter.doing, self._starter.ready)
        if session is None or not self.going:
            return
        begun = session.recording is not None
        self._news, now = session.look() or self._news, time.monotonic()
        if not begun and session.recording is not None:
            self.refresh_bindings()
        if now - self._ticked >= SECONDS_BETWEEN_TICKS:
            self._ticked = now
            self._held = session.child.memory() or self._held
            self._news = True
        self._keep(session)
        if session.refused and session.failure is not None:
            self._refuse(session.failure)
        elif not session.going:
            self._draw()
            self.refresh_bindings()
        elif self._news and self.is_current and self.live and self._frames.due():
            self._draw()

    def _keep(self, session: Session) -> None:
        """Keep the form's texts, once it is known that they can be used."""
        if session.accepted:
            self.memory.keep(self._remembered, remembered(self._values, self.setup))
            if self._kept_as:
                replays.keep(self.memory, self._kept_as, session.folder)
                self._kept_as = ""

    def _refuse(self, failure: Failure) -> None:
        """The settings can't be used: back to the form, with the reason."""
        self.session = None
        self._show("setup")
        self.form.say(_in_words(failure))
        self.refresh_bindings()

    def _show(self, page: str) -> None:
        self.query_one(ContentSwitcher).current = page
        self.refresh_bindings()

    # What is on the screen

    def refresh_view(self) -> None:
        """Blind or truth has changed."""
        self._draw()

    def _draw(self) -> None:
        session = self.session
        if session is None:
            return
        self._news = False
        self.view.show(
            session.state if session.failure is None else without_end(session.state, "failed"),
            blind=self.sight.blind,
            truth=self.sight.truth,
            pulse=Pulse(now=session.elapsed(), memory=self._held, paused=session.paused and session.going),
            waiting=_waiting(session, self._starter, self.setup.loading),
            live=session.going and not session.paused,
        )
        self.notice.display = session.failure is not None
        if session.failure is not None:
            self.notice.update(_in_words(session.failure))


def _waiting(session: Session, starter: Starter | None, loading: str) -> str:
    """Words in place of the tokens while there are none."""
    if session.failure is not None:
        return "No token was recovered before the run ended."
    if session.recording is None:
        doing = loading
        if session.child.pid is None and starter is not None and starter.doing:
            doing = starter.doing[:1].upper() + starter.doing[1:]
        return (
            f"{doing} in a process of its own … {int(session.seconds)} s\n"
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
