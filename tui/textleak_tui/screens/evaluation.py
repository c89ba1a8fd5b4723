"""The evaluation screen: the cells of a grid, filling while one looks; Enter lists a cell's sentences, worst first."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget
from textual.worker import get_current_worker

from textleak.errors import InputError
from textleak.view import UNICODE
from textleak.words import count_of, printable, seconds_in_words
from textleak_tui.places import AttackAgain
from textleak_tui.screens.base import Page
from textleak_tui.standing import SIGNS
from textleak_tui.widgets.run_table import RunTable, rate_bar, short
from textleak_tui.widgets.words import Words

if TYPE_CHECKING:
    from textleak.evaluation.answers import Records
    from textleak.evaluation.records import Cell, Record, SentenceRecord
    from textleak.reports.reading import Findings

SECONDS_BETWEEN_LOOKS, LOOKS_A_WAIT = 2.0, 20
BAR = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellRow:
    """One cell of the grid, and the records that it has so far."""

    cell: Cell
    records: Records


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceRow:
    """One sentence of a cell, and the record that it is in."""

    record: Record
    sentence: SentenceRecord


def cells_of(records: Sequence[Record]) -> list[CellRow]:
    """The cells that have a record, in the order of their first one."""
    from textleak.evaluation.answers import Records

    return [CellRow(cell=cell, records=rows) for cell, rows in Records(records).by_cell().items()]


def sentences_of(row: CellRow, *, blind: bool) -> list[SentenceRow]:
    """A cell's sentences, those of which most leaked first; blind in the order of the data."""
    found = [SentenceRow(record=record, sentence=one) for record in row.records for one in record.sentences]
    return found if blind else sorted(found, key=lambda one: -one.sentence.token_match_rate)


def values_of(cell: Cell) -> dict[str, str]:
    """A cell's settings as the texts of a run's form."""
    return {
        "model": cell.model,
        "weights": cell.weights,
        "task": cell.task,
        "attack": cell.attack,
        "share": cell.share,
        "client": " ".join(cell.client),
        "defenses": " ".join(cell.defense),
        "know": cell.know or "",
        "seed": str(cell.seed),
    }


class EvaluationScreen(Page):
    """An evaluation's folder, also one that another process is still writing.

    Args:
        folder: of the evaluation.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "open", "Open", show=False, tooltip="List a cell's sentences; attack a sentence again."),
        Binding("escape", "back", "Back", tooltip="From the sentences to the grid, from the grid out."),
        Binding("t", "app.truth", "Truth", tooltip="Show or hide the true sentences."),
        Binding("b", "app.blind", "Blind", tooltip="Show only what an attacker would see, or all again."),
    ]
    DEFAULT_CSS = """
    EvaluationScreen {
        & .summary { height: 1; padding: 0 2; text-style: bold; }
        & .chosen { height: auto; max-height: 6; padding: 0 2; color: $text-muted; }
    }
    """

    @dataclasses.dataclass
    class Looked(Message):
        """The folder was read, or can't be."""

        findings: Findings | None
        problem: str = ""

    def __init__(self, folder: Path) -> None:
        super().__init__("history")
        self.folder = folder
        self.findings: Findings | None = None
        self.cells: list[CellRow] = []
        self.sentences: list[SentenceRow] = []
        self.chosen: Cell | None = None
        self.problem = ""
        self.summary = Words(classes="summary")
        self.table = RunTable()
        self.words = Words(grows=True, classes="chosen")
        self._read_bytes = -1

    def content(self) -> Iterable[Widget]:
        """How far it is, the grid or a cell's sentences, what is under the cursor."""
        yield self.summary
        yield self.table
        yield self.words

    def on_mount(self) -> None:
        """Begin to read."""
        self.watch(self.app, "theme", lambda: self.refresh_view(), init=False)
        self.run_worker(self._watch_folder, thread=True, name="look")
        self.table.focus()
        self._draw()

    def _watch_folder(self) -> None:
        """In a thread: read the folder, and again whenever its records have grown."""
        from textleak.reports.reading import read

        worker = get_current_worker()
        while not worker.is_cancelled:
            size = _size_of(self.folder / "records.jsonl")
            if size != self._read_bytes:
                self._read_bytes = size
                try:
                    self.post_message(self.Looked(read(self.folder)))
                except InputError as error:
                    self.post_message(self.Looked(None, f"{error.what} {error.why}"))
            _wait(lambda: worker.is_cancelled)

    def on_evaluation_screen_looked(self, message: Looked) -> None:
        """Show what was read."""
        self.problem = message.problem
        if message.findings is not None:
            self.findings = message.findings
            self.cells = cells_of(message.findings.records)
        self._draw()

    def refresh_view(self) -> None:
        """What is shown of the truth, or the theme, has changed."""
        self._draw()

    @property
    def _row(self) -> CellRow | None:
        return next((row for row in self.cells if row.cell == self.chosen), None)

    def _draw(self) -> None:
        """Tell how far it is, and list cells or sentences."""
        self.summary.say(self._in_words())
        at = self.table.cursor_row
        row = self._row
        self.table.clear(columns=True)
        if row is None:
            self._list_cells()
        else:
            self._list_sentences(row)
        if self.table.row_count:
            self.table.move_cursor(row=max(0, min(at, self.table.row_count - 1)))
        self._tell()

    def _in_words(self) -> str:
        findings = self.findings
        if findings is None:
            return f"✗ {self.problem}" if self.problem else f"Reading {printable(self.folder.name)} …"
        failed = sum(record.status == "failed" for record in findings.records)
        parts = [printable(self.folder.name), count_of(len(self.cells), "cell")]
        planned = findings.planned
        parts.append(f"{len(findings.records):,}" + (f" of {planned:,} batches" if planned else " batches"))
        parts += [f"{SIGNS['failed']} {failed} failed"] if failed else []
        if self.chosen is not None:
            parts.append(
                f"sentences of {self.chosen.attack}, {' '.join(self.chosen.defense) or 'no defense'}"
            )
        return UNICODE.dot.join(parts)

    def _list_cells(self) -> None:
        differing = self._differing()
        for name in (*differing, "batches", "match rate", "exact", "verified", "secrets", "s/batch"):
            self.table.add_column(name, key=name)
        for row in self.cells:
            texts = [Text(short(_cell_text(row.cell, name), 30)) for name in differing]
            self.table.add_row(*texts, *self._figures(row.records))

    def _differing(self) -> list[str]:
        """The settings that tell the cells apart, the attack and the defense in any case."""
        names = ("data", "model", "attack", "share", "client", "defense", "know", "batch_size", "seed")
        several = {name for name in names if len({_cell_text(row.cell, name) for row in self.cells}) > 1}
        return [name for name in names if name in several | {"attack", "defense"}]

    def _figures(self, records: Records) -> list[Text]:
        counts, done, blind = records.counts(), records.done, self.sight.blind
        batches = Text(f"{counts.done}" + (f" {SIGNS['failed']}{counts.failed}" if counts.failed else ""))
        rate = exact = Text("····" if blind else "")
        if done and not blind:
            rate, exact = (
                self._bar(records.mean("token_match_rate")),
                Text(f"{records.mean('exact_rate'):.2f}"),
            )
        seconds = [record.seconds for record in done]
        return [
            batches,
            rate,
            exact,
            Text(f"{counts.verified} of {counts.verifiable}" if counts.verifiable else "can't tell"),
            Text("····" if blind else f"{counts.secrets_recovered} of {counts.secrets}"),
            Text(seconds_in_words(sum(seconds) / len(seconds)) if seconds else "", justify="right"),
        ]

    def _bar(self, rate: float) -> Text:
        return rate_bar(rate, BAR, self.app.theme_variables)

    def _list_sentences(self, row: CellRow) -> None:
        blind = self.sight.blind
        self.sentences = sentences_of(row, blind=blind)
        for name in ("batch", "match rate", "recovered"):
            self.table.add_column(name, key=name)
        for one in self.sentences:
            rate = Text("····") if blind else self._bar(one.sentence.token_match_rate)
            text = printable(one.sentence.recovered) or "nothing"
            self.table.add_row(Text(str(one.record.batch + 1)), rate, Text(short(text, 200)))

    def _tell(self) -> None:
        """More of what is under the cursor."""
        text, at = Text(), self.table.cursor_row
        if self._row is not None and 0 <= at < len(self.sentences):
            one = self.sentences[at]
            text.append(f"recovered  {printable(one.sentence.recovered)}")
            if self.sight.truth and not self.sight.blind:
                text.append(f"\ntrue       {printable(one.sentence.reference)}")
            text.append(f"\n{one.record.stop} Enter attacks its batch again, live.", style="dim")
        elif self._row is None and 0 <= at < len(self.cells):
            failed = self.cells[at].records.failed
            cell = self.cells[at].cell
            text.append(f"{cell.attack} on {cell.model}, {' '.join(cell.defense) or 'no defense'}")
            text.append(f"\n✗ {printable(failed[-1].error)}" if failed else "")
            text.append("\nEnter lists its sentences.", style="dim")
        self.words.say(text)

    def on_data_table_row_highlighted(self) -> None:
        """Something else is under the cursor."""
        self._tell()

    def on_data_table_row_selected(self) -> None:
        """Enter or a click on a row."""
        self.action_open()

    def action_open(self) -> None:
        """A cell's sentences; or a sentence's batch, attacked again."""
        at = self.table.cursor_row
        if self._row is None:
            if 0 <= at < len(self.cells):
                self.chosen = self.cells[at].cell
                self._draw()
                self.table.move_cursor(row=0)
        elif 0 <= at < len(self.sentences):
            record = self.sentences[at].record
            batch = [one.reference for one in record.sentences]
            self.post_message(AttackAgain(batch, values_of(record.cell)))

    def action_back(self) -> None:
        """From the sentences to the grid, from the grid out."""
        if self.chosen is None:
            self.dismiss()
            return
        here = next((at for at, row in enumerate(self.cells) if row.cell == self.chosen), 0)
        self.chosen = None
        self._draw()
        self.table.move_cursor(row=here)


def _cell_text(cell: Cell, name: str) -> str:
    value = getattr(cell, name)
    return (
        (" ".join(value) or "none")
        if isinstance(value, tuple)
        else "default"
        if value is None
        else str(value)
    )


def _wait(stopped: Callable[[], bool]) -> None:
    """Wait for the next look, in short sleeps, as a canceled worker has to end soon."""
    for _ in range(LOOKS_A_WAIT):
        if stopped():
            return
        time.sleep(SECONDS_BETWEEN_LOOKS / LOOKS_A_WAIT)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
