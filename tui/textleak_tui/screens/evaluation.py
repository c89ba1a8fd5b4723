"""The evaluation screen: the cells of a grid, filling while one looks; Enter lists a cell's sentences, worst first."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget
from textual.worker import get_current_worker

from textleak.errors import InputError
from textleak.words import printable
from textleak_tui import export
from textleak_tui.agreed import INTERRUPTED
from textleak_tui.grid import CellRow, Grid, Pace, SentenceRow, cell_text, differing, secrets_of, values_of
from textleak_tui.grid_cells import FIGURES, Writing, cut_settings, fitting, narrowed
from textleak_tui.grid_ladders import Ladder, ladders_of
from textleak_tui.grid_words import cell_in_words, grid_in_words, sentence_in_words
from textleak_tui.heat import pairs_of
from textleak_tui.places import AttackAgain, OpenRun
from textleak_tui.replays import folder_of, name_of
from textleak_tui.screens.base import COPY, Page
from textleak_tui.session import Session
from textleak_tui.settings import Memory
from textleak_tui.widgets.bars import Bar, Bars
from textleak_tui.widgets.grid_table import GAP, GridTable
from textleak_tui.widgets.run_table import within
from textleak_tui.widgets.words import Words

if TYPE_CHECKING:
    from textleak.evaluation.records import Cell, Record

SECONDS_BETWEEN_LOOKS, LOOKS_A_WAIT = 2.0, 40
# Our choice: the limit that a grid is first held against, and a key's step.
FIRST_LIMIT, STEP = 0.1, 0.05

# Columns of the screen that a table has around its own: its padding and its scroll bar.
_AROUND = 4


class EvaluationScreen(Page):
    """An evaluation's folder, also one that another process is still writing.

    Args:
        folder: of the evaluation.
        memory: keeps the limit that it is held against.
        session: its process, where it was started here.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,o", "open", "Open", tooltip="List a cell's sentences, the worst first."),
        Binding(
            "enter,o", "replay", "Replay", tooltip="Replay this sentence's batch as it was attacked again."
        ),
        Binding(
            "enter,o,a",
            "attack",
            "Attack again",
            tooltip="Attack this sentence's batch again, live, with the same draws.",
        ),
        Binding("escape", "back", "Back", tooltip="From the sentences to the grid, from the grid out."),
        COPY,
        Binding("x", "stop", "Stop", tooltip="End it; its records are kept."),
        Binding("w", "worst", "Worst", tooltip="The sentences of the cell with the worst leak so far."),
        Binding(
            "plus,equals_sign", "limit(1)", "Limit", key_display="+ −", tooltip="Hold cells against a limit."
        ),
        Binding("minus", "limit(-1)", "Lower limit", show=False, tooltip="Hold cells against a lower limit."),
        Binding("m", "map", "Map", tooltip="The cells as a map of two settings; again, of two others."),
        Binding(
            "l",
            "ladder",
            "Ladder",
            tooltip="What leaks past a defense in growing strength; again, past another.",
        ),
        Binding("t", "app.truth", "Truth", tooltip="Show or hide the true sentences."),
        Binding("e", "export", "Report", tooltip="Write what it found as a page to read in a browser."),
        Binding(
            "b",
            "app.blind",
            "Blind",
            show=False,
            tooltip="Show only what an attacker would see, or all again.",
        ),
    ]
    DEFAULT_CSS = """
    EvaluationScreen {
        & Bars { height: 1fr; max-height: 20; }
        & .summary { height: auto; max-height: 3; padding: 0 2; text-style: bold; }
        & .chosen { height: auto; max-height: 7; padding: 0 2; color: $text-muted; }
    }
    """

    @dataclasses.dataclass
    class Looked(Message):
        """Records have come, or can't be read."""

        records: Sequence[Record] = ()
        planned: int | None = None
        settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
        problem: str = ""

    def __init__(self, folder: Path, memory: Memory, session: Session | None = None) -> None:
        super().__init__("history" if session is None else "grid")
        self.folder = folder
        self.memory = memory
        self.session = session
        self.grid = Grid()
        self.planned: int | None = None
        self.sentences: list[SentenceRow] = []
        self.chosen: Cell | None = None
        self.problem = ""
        self.summary = Words(grows=True, classes="summary")
        self.table = GridTable()
        self.bars = Bars()
        self.words = Words(grows=True, classes="chosen")
        limit = memory.get("limit")
        self.limit: float | None = limit if isinstance(limit, float) else None
        self._keys: tuple[object, ...] = ()
        self._pace = Pace()
        self._seen = False
        self._map: tuple[str, str] | None = None
        self._ladder: str | None = None
        self._told_apart: tuple[int, list[str]] = 0, []
        self._settings: Mapping[str, Any] = {}
        self._written: dict[Cell, tuple[CellRow, object, tuple[Text, ...], list[int]]] = {}

    def content(self) -> Iterable[Widget]:
        """How far it is, the grid or a cell's sentences, what is under the cursor."""
        yield self.summary
        yield self.table
        yield self.bars
        yield self.words

    def on_mount(self) -> None:
        """Begin to read."""
        self.run_worker(self._watch_folder, thread=True, name="look")
        if self.session is not None:
            self.set_interval(SECONDS_BETWEEN_LOOKS, self._look_after)
        self.table.focus()
        self._draw()

    def _watch_folder(self) -> None:
        """In a thread: read the folder, and then what its records have grown by."""
        from textleak.evaluation.store import Following
        from textleak.reports.believed import check_facts

        worker, following, first = get_current_worker(), None, True
        while not worker.is_cancelled:
            try:
                if following is None:
                    found = Following(self.folder)
                    check_facts(found.facts, found.folder.settings_path, run=False)
                    following, first = found, True
                records = following.look()
                if records or first:
                    facts = following.facts
                    self.post_message(self.Looked(records, facts.get("batches"), facts.get("settings", {})))
                first = False
            except InputError as error:
                if self.session is None or not self.session.child.alive:
                    self.post_message(self.Looked(problem=f"{error.what} {error.why}"))
            _wait(lambda: worker.is_cancelled)

    def on_evaluation_screen_looked(self, message: Looked) -> None:
        """Show what was read."""
        self.problem = message.problem
        if not message.problem:
            self._seen, self.planned, self._settings = True, message.planned, message.settings
        changed = self.grid.take(message.records)
        if self.chosen is None or self.chosen in changed:
            self._draw()
        else:
            self.summary.say(self._in_words())

    def _look_after(self) -> None:
        """Tell how its process stands."""
        session = self.session
        if session is not None and not session.settled:
            session.look()
        self.summary.say(self._in_words())
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What is over can't be stopped; a cell is opened, a sentence replayed or attacked."""
        allowed = {
            "stop": self.session is not None and self.session.child.alive,
            "open": self.chosen is None and self._ladder is None,
            "copy_text": self.chosen is not None,
            "replay": self._replay is not None,
            "attack": self.chosen is not None,
        }
        return allowed[action] if action in allowed else super().check_action(action, parameters)

    def action_stop(self) -> None:
        """End it; asked again, by force."""
        if self.session is not None:
            self.session.stop()

    def action_worst(self) -> None:
        """The sentences of the cell with the worst leak so far; blind that isn't known."""
        worst = None if self.sight.blind else self.grid.worst
        if worst is not None:
            self._ladder = None
            self.chosen = worst[0].cell
            self._draw()
            at = [one.sentence for one in self.sentences].index(worst[1].sentence)
            self.table.move_to(at)

    def action_limit(self, steps: int) -> None:
        """Hold the cells against a limit, a higher or a lower one."""
        limit = FIRST_LIMIT if self.limit is None else self.limit + steps * STEP
        self.limit = round(min(max(limit, 0.0), 1.0), 2)
        self.memory.keep("limit", self.limit)
        self._draw()

    def on_screen_resume(self) -> None:
        """A sentence may have been attacked again meanwhile."""
        if self.is_mounted:
            self._tell()

    def on_resize(self, event: events.Resize) -> None:
        """More or fewer columns."""
        del event
        self._draw()

    def refresh_view(self) -> None:
        """What is shown of the truth, or the theme, has changed."""
        self._draw()

    def action_map(self) -> None:
        """From the list to the maps of two settings, one after another, and back."""
        pairs: list[tuple[str, str] | None] = [*pairs_of(self.grid.rows, cell_text), None]
        if len(pairs) == 1:
            self.notify("A map takes two settings that differ.", title="No map", timeout=3)
            return
        self.chosen = self._ladder = None
        self._map = pairs[(pairs.index(self._map) + 1) % len(pairs)] if self._map in pairs[:-1] else pairs[0]
        self._draw()
        self.table.move_to(0)

    def action_ladder(self) -> None:
        """From the list to the ladders, one after another, and back."""
        names: list[str | None] = [*(one.name for one in ladders_of(self.grid.rows)), None]
        if len(names) == 1:
            self.notify(
                "A ladder takes a defense in two strengths, or in one beside cells without it.",
                title="No ladder",
                timeout=3,
            )
            return
        self.chosen = self._map = None
        self._ladder = (
            names[(names.index(self._ladder) + 1) % len(names)] if self._ladder in names else names[0]
        )
        self._draw()

    @property
    def _rungs(self) -> Ladder | None:
        """The ladder that is shown."""
        shown = self._ladder if self.chosen is None else None
        return next((one for one in ladders_of(self.grid.rows) if one.name == shown), None) if shown else None

    @property
    def _sentence(self) -> SentenceRow | None:
        """The sentence under the cursor."""
        at = self.table.cursor
        return self.sentences[at] if self.chosen is not None and 0 <= at < len(self.sentences) else None

    @property
    def recovered(self) -> str:
        """What came back of the sentence under the cursor."""
        return "" if self._sentence is None else printable(self._sentence.sentence.recovered)

    @property
    def _replay(self) -> Path | None:
        """The run folder of its batch, where that was attacked again."""
        one = self._sentence
        return None if one is None else folder_of(self.memory, one.record)

    @property
    def _row(self) -> CellRow | None:
        return next((row for row in self.grid.rows if row.cell == self.chosen), None)

    def _draw(self) -> None:
        """Tell how far it is, and list cells or sentences."""
        self.summary.say(self._in_words())
        row, ladder = self._row, self._rungs
        self.table.display, self.bars.display = ladder is None and self._seen, ladder is not None
        if ladder is not None:
            self.bars.border_title = f"Match rate past {ladder.name}"
            hidden = "It takes the truth to know a match rate; b shows it." if self.sight.blind else ""
            bars = tuple(Bar(name=name, rate=rate) for name, rate in ladder.rates)
            self.bars.show(bars, instead=hidden)
        elif row is None and self._map is not None:
            self.table.fill(*self._writing.map(self.grid.rows, self._map))
        elif row is None:
            self.table.fill(*self._cells())
        else:
            self.sentences = row.sentences(blind=self.sight.blind)
            self.table.fill(*self._writing.sentences(self.sentences, self.size.width - _AROUND))
        self._tell()

    def _in_words(self) -> str:
        session = self.session
        failure = None if session is None else session.failure
        if session is not None and failure is not None and session.child.exit_code not in (0, INTERRUPTED):
            # Whatever the folder says: this is why.
            return f"✗ {' '.join(part for part in (failure.what, failure.why, failure.fix) if part)}"
        if self.problem:
            return f"✗ {self.problem}"
        if not self._seen and session is None:
            return f"Reading {printable(self.folder.name)} …"
        if not self._seen and session is not None:
            seconds = int(session.seconds)
            return (
                f"Loading the attacks and reading the data in a process of its own … {seconds} s\n"
                "Cells appear with their first batches. x stops it."
            )
        batches, planned = self.grid.batches, self.planned
        alive = session is not None and session.child.alive
        over = session is not None and not alive
        stopped = over and planned is not None and batches < planned
        return grid_in_words(
            self.grid,
            "● measuring" if alive else "■ stopped" if stopped else printable(self.folder.name),
            planned=planned,
            left=None if over else self._pace.left(time.monotonic(), batches, planned),
            limit=self.limit,
            blind=self.sight.blind,
            chosen=self.chosen,
        )

    @property
    def _writing(self) -> Writing:
        return Writing(blind=self.sight.blind, limit=self.limit, colors=self.app.theme_variables)

    def _cells(self) -> tuple[tuple[str, ...], Sequence[Sequence[Text]]]:
        rows, how, writing = self.grid.rows, (self.sight.blind, self.limit, self.app.theme), self._writing
        if len(rows) != self._told_apart[0]:
            self._told_apart = len(rows), differing(rows)
        settings = self._told_apart[1]
        titles = (*settings, *FIGURES)
        widths = [len(title) for title in titles]
        written = []
        for row in rows:
            # A cell that has no new record is written as before, and the table needn't compare it.
            before = self._written.get(row.cell)
            if before is None or before[0] is not row or before[1] != (how, settings):
                names = [Text(within(cell_text(row.cell, name), 30)) for name in settings]
                texts = *names, *writing.figures(row).values()
                before = row, (how, settings), texts, [text.cell_len for text in texts]
                self._written[row.cell] = before
            widths = list(map(max, widths, before[3]))
            written.append(before[2])
        missing = () if any(row.counts.secrets for row in rows) else ("secrets",)
        by_title, room = dict(zip(titles, widths, strict=True)), self.size.width - _AROUND
        shown = fitting(by_title, room, missing)
        at = [titles.index(name) for name in shown]
        listed = [[texts[index] for index in at] for texts in written]
        over = sum(by_title[name] + GAP for name in shown) - GAP - room
        for name, width in narrowed({name: by_title[name] for name in settings}, over).items():
            cut_settings(listed, shown.index(name), width)
        return shown, listed

    def _tell(self) -> None:
        """More of what is under the cursor."""
        text, at = Text(), self.table.cursor
        ladder, replay = self._rungs, self._replay
        keys = self.chosen is None, ladder is None, replay
        if keys != self._keys:
            self._keys = keys
            self.refresh_bindings()
        if ladder is not None:
            text.append("" if self.sight.blind else f"{ladder.words} ")
            text.append("Means over all cells of a strength; l goes on to the next ladder, Esc to the list.")
        elif (one := self._sentence) is not None:
            truth = self.sight.truth and not self.sight.blind
            text = sentence_in_words(one, truth=truth, replayed=replay is not None)
        elif self._map is not None and self._row is None:
            text.append(f"Mean match rate over all cells of each {' and '.join(self._map)}.")
            text.append("\nm goes on to the next two settings, and back to the list; Enter to the list.")
        elif self._row is None and 0 <= at < len(self.grid.rows):
            text = cell_in_words(self.grid.rows[at])
        self.words.say(text)

    def on_grid_table_highlighted(self) -> None:
        """Something else is under the cursor."""
        self._tell()

    def on_grid_table_selected(self) -> None:
        """Enter or a click on a row."""
        self.action_open()

    def action_open(self) -> None:
        """A cell's sentences; or a sentence's batch, replayed or attacked again."""
        at = self.table.cursor
        if self._row is None and self._map is not None:
            self._leave_map(at)
        elif self._row is None:
            if 0 <= at < len(self.grid.rows):
                self.chosen = self.grid.rows[at].cell
                self._draw()
                self.table.move_to(0)
        elif self._replay is not None:
            self.action_replay()
        else:
            self.action_attack()

    def action_replay(self) -> None:
        """Replay a sentence's batch as it was attacked again."""
        one, folder = self._sentence, self._replay
        if one is not None and folder is not None:
            self.post_message(OpenRun(folder, secrets_of(one.record)))

    def action_attack(self) -> None:
        """Attack a sentence's batch again, with what it drew; its run is replayed from then on."""
        if (one := self._sentence) is None:
            return
        record = one.record
        batch = [sentence.reference for sentence in record.sentences]
        values = values_of(record, self._settings)
        self.post_message(AttackAgain(batch, values, secrets_of(record), kept_as=name_of(record)))

    def _leave_map(self, line: int) -> None:
        """To the list, at the first cell of a line of the map."""
        assert self._map is not None
        texts = [cell_text(row.cell, self._map[0]) for row in self.grid.rows]
        found = list(dict.fromkeys(texts))
        self._map = None
        self._draw()
        self.table.move_to(texts.index(found[line]) if 0 <= line < len(found) else 0)

    def action_export(self) -> None:
        """Write a report."""
        blind = self.sight.blind
        self.write_meanwhile(lambda: [export.write_report(self.folder, blind=blind)])

    def action_back(self) -> None:
        """From the sentences, the map or the ladder to the grid, from the grid out."""
        if self._rungs is not None:
            self._ladder = None
            self._draw()
            self.table.focus()
            return
        if self.chosen is None and self._map is not None:
            self._leave_map(self.table.cursor)
            return
        if self.chosen is None:
            self.dismiss()
            return
        here = next((at for at, row in enumerate(self.grid.rows) if row.cell == self.chosen), 0)
        self.chosen = None
        self._draw()
        self.table.move_to(here)


def _wait(stopped: Callable[[], bool]) -> None:
    """Wait for the next look, in short sleeps, as a canceled worker has to end soon."""
    for _ in range(LOOKS_A_WAIT):
        if stopped():
            return
        time.sleep(SECONDS_BETWEEN_LOOKS / LOOKS_A_WAIT)
