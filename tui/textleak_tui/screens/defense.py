"""The defense screen: one batch against a ladder of one defense, a run a rung, one after another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from rich.text import Text
from textual import events, on, work
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.widget import Widget
from textual.widgets import Static

from textleak.words import count_of
from textleak_tui import export
from textleak_tui.catalog import Catalog
from textleak_tui.climb import Climb, Rung
from textleak_tui.ladder import Knob
from textleak_tui.places import OpenRun
from textleak_tui.screens.base import SENT, Page
from textleak_tui.session import Sessions
from textleak_tui.settings import Memory
from textleak_tui.widgets.bars import Bar, Bars
from textleak_tui.widgets.ladder_form import LadderForm
from textleak_tui.widgets.ladder_table import LadderTable
from textleak_tui.widgets.words import Words

# Sizes of the screen below which the form folds away once the ladder runs, and the command lines go; from which
# on the plot stands beside the table, or below it. In less room it shares the table's place.
FORM, COMMANDS = 34, 26
BESIDE, BELOW = (100, 18), (60, 22)
_BRIEFLY = "F5 runs the ladder."
_NOTHING = (
    "Nothing has run yet.\n\nOne run a rung, one after another, each with the same seed: "
    "how much does this defense keep back, and from which strength on?\nF5 runs the ladder."
)


class DefenseScreen(Page):
    """A form for the ladder, and below it a row a rung and the plot.

    Args:
        sessions: opens the attacks.
        memory: keeps the form's texts; the run screen's are read from it.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "f5,ctrl+r,ctrl+s",
            "start",
            "Start",
            priority=True,
            tooltip="Run the ladder, one rung after another.",
        ),
        Binding(
            "x",
            "stop",
            "Stop",
            tooltip="Stop the rung that runs with its best answer, and leave out the rest.",
        ),
        Binding("escape", "app.go('grid')", "Grid", tooltip="To the grid, which this is a view of."),
        Binding("n", "edit", "Change", tooltip="Back to the sentence and the ladder."),
        Binding("o", "open", "Open", show=False, tooltip="Replay the run of a rung."),
        Binding(
            "ctrl+l,ctrl+o",
            "copy",
            "Copy commands",
            priority=True,
            tooltip="Copy the ladder as command lines, one a rung, to the clipboard.",
        ),
        Binding("e", "export", "Export", tooltip="Write the ladder as a picture, a table and JSON."),
        Binding("v", "other", "Plot", tooltip="In little room: the plot in the table's place, or back."),
    ]
    DEFAULT_CSS = """
    DefenseScreen {
        & .results { height: 1fr; }
        & .empty { height: 1fr; content-align: center middle; text-align: center; color: $text-muted; padding: 0 4; }
        & LadderTable { width: 3fr; min-width: 73; }
        & Bars { width: 2fr; height: 1fr; max-height: 20; }
        & .results.-stacked {
            layout: vertical;
            & LadderTable { width: 1fr; height: auto; min-height: 4; max-height: 60%; }
            & Bars { width: 1fr; height: 1fr; min-height: 6; }
        }
        & .results.-alone LadderTable { height: 1fr; max-height: 100%; }
        & .verdict { height: auto; padding: 0 2; text-style: bold; }
        & .words { height: auto; max-height: 6; padding: 0 2; color: $text-muted; }
        & .commands.-none { display: none; }
        & .commands { height: auto; max-height: 7; padding: 0 2; background: $surface; color: $text-muted; }
    }
    """

    def __init__(self, sessions: Sessions, memory: Memory) -> None:
        super().__init__("defenses")
        self.sessions = sessions
        self.memory = memory
        self.form = LadderForm(memory.texts("ladder"), lambda: memory.texts("fields"))
        self.table = LadderTable()
        self.bars = Bars()
        self.results = Horizontal(classes="results")
        self.empty = Words(grows=True, classes="empty")
        self.verdict = Words(grows=True, classes="verdict")
        self.words = Words(grows=True, classes="words")
        self.commands = Static("", classes="commands", markup=False)
        self.climb: Climb | None = None
        self._editing = True
        self._plot = False
        self._wanted = False

    def content(self) -> Iterable[Widget]:
        """Form, table and plot, what it says, the command lines."""
        yield self.form
        with self.results:
            yield self.table
            yield self.bars
            yield self.empty
        yield self.verdict
        yield self.words
        yield self.commands

    def on_mount(self) -> None:
        """Take what names are remembered, and ask for them anew."""
        self.bars.border_title = "Match rate by strength"
        self._take(Catalog.from_json(self.memory.get("catalog")))
        self._list_names()
        self.form.sentences.focus()
        self._lay_out()

    @work(exclusive=True, group="catalog")
    async def _list_names(self) -> None:
        found = await self.sessions.catalog()
        if found.defenses:
            self._take(found)
            self.memory.keep("catalog", found.to_json())

    def _take(self, found: Catalog) -> None:
        self.form.list_names(found)
        self._tell_commands()
        if self._wanted and found.defenses:
            self._wanted = False
            self.form.say("")
            self.action_start()

    def on_screen_resume(self) -> None:
        """The run screen's other fields may be different ones."""
        if self.is_mounted:
            self.form.check()
            self._tell_commands()

    @on(LadderForm.Changed)
    def _tell_commands(self) -> None:
        lines = self.form.command_lines()
        self.commands.update(Text("\n").join(Text(f"$ {line}", no_wrap=True) for line in lines))

    # The runs

    @property
    def rungs(self) -> list[Rung]:
        """The runs of the newest ladder."""
        return [] if self.climb is None else self.climb.rungs

    @property
    def going(self) -> bool:
        """Whether a ladder is being climbed."""
        return self.climb is not None and self.climb.going

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that mean nothing now are not in the footer."""
        allowed = {
            "start": not self.going,
            "stop": self.going,
            "edit": bool(self.rungs) and not self.form.display if self.is_mounted else False,
            "open": bool(self.rungs),
            "export": bool(self.rungs) and not self.going,
            "other": bool(self.rungs) and not self._roomy,
        }
        return allowed.get(action, True)

    @on(LadderForm.Start)
    def action_start(self) -> None:
        """Run the ladder, where it can be."""
        fine = self.form.check()
        if fine and self.form.private_batch and self.form.knob is not None:
            self._climb(self.form.knob)
            return
        self._editing = True
        self._lay_out()
        if not self.form.check_sentences():
            return
        if not self.form.catalog.defenses:
            self._wanted = True
            self.form.say("◌ Asking what defenses there are. The ladder starts as soon as that is known.")
        else:
            self.form.focus_wrong()

    @work(exclusive=True, group="ladder")
    async def _climb(self, knob: Knob) -> None:
        """One rung after another."""
        form = self.form
        texts = form.texts

        def changed() -> None:
            if self.climb is not None and any(rung.session.accepted for rung in self.climb.rungs):
                self.memory.keep("ladder", texts)
            self._draw()

        self.climb = Climb(knob, form.strengths(), form.private_batch, form.values, self.sessions)
        self._editing = False
        self._lay_out()
        self.table.focus()
        await self.climb.run(changed)
        self._lay_out()

    def action_stop(self) -> None:
        """Stop the rung that runs; asked again, by force."""
        if self.climb is not None:
            self.climb.stop()
        self._draw()

    # What is on the screen

    @property
    def _beside(self) -> bool:
        return self.size.width >= BESIDE[0] and self.size.height >= BESIDE[1]

    @property
    def _roomy(self) -> bool:
        return self._beside or (self.size.width >= BELOW[0] and self.size.height >= BELOW[1])

    def on_resize(self, event: events.Resize) -> None:
        """Fold or unfold."""
        del event
        self._lay_out()

    def refresh_view(self) -> None:
        """Blind has changed."""
        self._draw(anew=True)

    def _lay_out(self) -> None:
        if not self.is_mounted:
            return
        self.form.display = self._editing or self.size.height >= FORM
        self.commands.display = self.size.height >= COMMANDS or not self.rungs
        self.results.set_class(not self._beside, "-stacked")
        self.refresh_bindings()
        self._draw(anew=True)

    def _draw(self, *, anew: bool = False) -> None:
        if not self.table.is_attached:  # not yet, or no more while the last rung is being ended
            return
        begun, blind = bool(self.rungs), self.sight.blind
        self.empty.say("" if begun else _NOTHING if self.size.height >= BELOW[1] else _BRIEFLY)
        self.table.display = begun and (self._roomy or not self._plot)
        self.bars.display = begun and (self._roomy or self._plot)
        self.results.set_class(not self.bars.display, "-alone")
        self.table.show(self.rungs, blind=blind, anew=anew)
        self._tell()
        self.bars.show(
            tuple(
                Bar(name=r.strength, rate=r.rate, moving=not r.over and r.took is not None)
                for r in self.rungs
            ),
            instead="It takes the truth to know a match rate; b shows it." if blind and begun else "",
        )

    def _tell(self) -> None:
        """What the ladder says, and what is wrong with the rung under the cursor."""
        text, climb = "", self.climb
        if climb is not None and climb.going:
            over = sum(rung.over for rung in climb.rungs)
            text = f"{over} of {count_of(len(climb.rungs), 'rung')} {'is' if over == 1 else 'are'} done."
            text += " Stopping; x again stops by force." if climb.stopping else ""
        elif climb is not None and not self.sight.blind:
            text = climb.verdict()
        self.verdict.say(text)
        words = Text()
        rung = self._rung()
        if rung is not None and rung.failure is not None:
            parts = (rung.failure.what, rung.failure.why, rung.failure.fix)
            words.append(f"✗ {rung.strength}: {' '.join(part for part in parts if part)}")
            for line in rung.failure.lines[-3:]:
                words.append(f"\n  │ {line}")
        if self.rungs and not self._roomy:
            other = "table" if self._plot else "plot"
            words.append("\n" if words.plain else "").append(f"hidden: {other} (v shows it)", style="italic")
        self.words.say(words)

    def _rung(self) -> Rung | None:
        at = self.table.cursor_row
        return self.rungs[at] if 0 <= at < len(self.rungs) else None

    def on_data_table_row_highlighted(self) -> None:
        """Another rung is under the cursor."""
        self._tell()

    def on_data_table_row_selected(self) -> None:
        """Enter or a click on a rung."""
        self.action_open()

    def action_open(self) -> None:
        """Replay a rung's run."""
        rung = self._rung()
        if rung is not None and (rung.session.folder / "run.json").exists():
            self.post_message(OpenRun(rung.session.folder))
        elif rung is not None:
            self.notify("It has written nothing yet.", title="Nothing to replay")

    def action_edit(self) -> None:
        """Show the form again."""
        self._editing = True
        self._lay_out()
        self.form.sentences.focus()

    def action_other(self) -> None:
        """Plot or table."""
        self._plot = not self._plot
        self._draw()

    def action_copy(self) -> None:
        """Copy the command lines."""
        lines = self.form.command_lines()
        if lines:
            self.app.copy_to_clipboard("\n".join(lines))
            self.notify(SENT, title=count_of(len(lines), "command line").capitalize(), timeout=3)

    def action_export(self) -> None:
        """Write the ladder."""
        climb = self.climb
        if climb is not None:
            self.write(
                lambda: export.write_ladder(
                    climb, self.sessions.root, picture=self.picture, blind=self.sight.blind
                )
            )
