"""The grid as a table: a row a cell, with the columns that tell the cells apart, while it fills and when it is full."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from textleak.evaluation.answers import FIGURES, Counts, Records, client_of, defense_of
from textleak.evaluation.drive import Evaluation
from textleak.evaluation.records import Cell, Record, cut_off_in_words
from textleak.events import Progress
from textleak.view.glyphs import heat
from textleak.words import seconds_in_words

# Plain lines follow each other no faster than this (our choice).
_BETWEEN_LINES = 2.0
# And those of an attack that goes on no faster than this (our choice).
_BETWEEN_STANDS = 30.0
# What tells one cell from another; what all of them have in common is said once, above the table.
_NAMES = {
    "data": "data",
    "model": "model",
    "batch_size": "B",
    "attack": "attack",
    "share": "share",
    "client": "client",
    "defense": "defense",
    "know": "know",
    "seed": "seed",
}
_HEADINGS = (
    "batches",
    "match",
    "recall",
    "named",
    "exact",
    "R-1",
    "R-2",
    "verified",
    "cut off",
    "secrets",
    "n/D",
    "s/batch",
)
# What a narrow terminal goes without, the first one first: better fewer figures than figures of nobody knows what.
_GIVEN_UP = ("n/D", "R-2", "R-1", "s/batch", "recall", "exact", "verified", "named", "cut off", "secrets")
# Letters that a column of names keeps, where it is folded (our choice).
_NARROWEST = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableRow:
    """A cell and what its batches, as many as there are to be, came to so far; means are None before the first one."""

    cell: Cell
    batches: int
    counts: Counts
    weights: str
    tokens_per_hidden: float | None
    means: Mapping[str, float | None]
    named_rate: float | None
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        plain = dataclasses.asdict(self)
        return {**plain.pop("cell"), **plain.pop("means"), **plain.pop("counts"), **plain}


def rows(evaluation: Evaluation) -> list[TableRow]:
    """The grid's rows, in its order."""
    of_cell = evaluation.records().by_cell()
    return [_row(cell, count, of_cell.get(cell, Records())) for cell, count in evaluation.plan.cells()]


def _row(cell: Cell, batches: int, records: Records) -> TableRow:
    done = records.done
    return TableRow(
        cell=cell,
        batches=batches,
        counts=records.counts(),
        weights=done[0].weights if done else "",
        tokens_per_hidden=statistics.fmean(r.tokens_per_hidden or 0.0 for r in done) if done else None,
        means={figure: done.mean(figure) if done else None for figure in FIGURES},
        named_rate=records.named_rate(),
        seconds=statistics.fmean(record.seconds for record in done) if done else None,
    )


def render(evaluation: Evaluation) -> RenderableType:
    """The table, above it what all cells have in common, and below it what the time limit ended."""
    return _Grid(evaluation)


class _Grid:
    """The table in as many columns as the terminal is wide enough for."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._rows = rows(evaluation)
        self._time_limit = evaluation.plan.config.time_limit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        written = [_written(row) for row in self._rows]
        figures = [_figures(row) for row in self._rows]
        apart = [name for name in _NAMES if len({one[name] for one in written}) > 1]
        common = [f"{_NAMES[name]} {written[0][name]}" for name in _NAMES if name not in apart]
        if self._time_limit is not None:
            common.append(f"time limit {self._time_limit:g} s")
        cut_off = sum(row.counts.cut_off for row in self._rows)
        there = {"cut off": cut_off > 0, "named": any(row.named_rate is not None for row in self._rows)}
        shown = [heading for heading in _HEADINGS if there.get(heading, True)]
        left_out = []
        names = [
            min(_NARROWEST, max(len(_NAMES[name]), *(len(one[name]) for one in written))) for name in apart
        ]
        for heading in _GIVEN_UP:
            if _width([*names, *_widths(shown, figures)]) <= options.max_width:
                break
            if heading in shown:
                shown.remove(heading)
                left_out.append(heading)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in apart:
            table.add_column(_NAMES[name], overflow="fold")
        for heading in shown:
            table.add_column(heading, justify="right", no_wrap=True)
        for of_cell, of_row in zip(written, figures, strict=True):
            table.add_row(*(Text(of_cell[name]) for name in apart), *(of_row[heading] for heading in shown))
        yield Text(", ".join(common), style="bright_black")
        yield table
        if cut_off:
            yield Text(cut_off_in_words(cut_off, sum(row.counts.done for row in self._rows)), style="yellow")
        if left_out:
            yield Text(f"Not shown, as the terminal is narrow: {', '.join(left_out)}.", style="bright_black")


def _widths(shown: Sequence[str], figures: Sequence[Mapping[str, Text]]) -> list[int]:
    return [max(len(heading), *(len(one[heading]) for one in figures)) for heading in shown]


def _width(columns: Sequence[int]) -> int:
    """Of the table: a blank at each side, three between two columns."""
    return sum(columns) + 3 * (len(columns) - 1) + 2


def _written(row: TableRow) -> dict[str, str]:
    cell = row.cell
    model = f"{cell.model} (random)" if row.weights == "random" else cell.model
    plain = {name: str(getattr(cell, name)) for name in _NAMES}
    told = {"client": client_of(cell), "defense": defense_of(cell), "know": cell.know or "default"}
    return {**plain, "model": model, **told}


def _figures(row: TableRow) -> dict[str, Text]:
    """What stands under each heading."""
    counts = row.counts
    count = f"{counts.done}/{row.batches}" + (f" ({counts.failed} failed)" if counts.failed else "")
    match = row.means["token_match_rate"]
    color = heat(match or 0.0, through=not counts.cut_off and not row.named_rate)
    return {
        "batches": Text(count, style="red" if counts.failed else ""),
        "match": Text(_number(match), style=f"bold {color}".rstrip() if match is not None else ""),
        "recall": Text(_number(row.means["token_recall"])),
        "named": Text(_number(row.named_rate)),
        "exact": Text(_number(row.means["exact_rate"])),
        "R-1": Text(_number(row.means["rouge1"])),
        "R-2": Text(_number(row.means["rouge2"])),
        "verified": Text(
            f"{counts.verified}/{counts.verifiable}" if counts.verifiable else "–" if counts.done else ""
        ),
        "cut off": Text(f"{counts.cut_off}/{counts.done}" if counts.cut_off else "", style="yellow"),
        "secrets": Text(f"{counts.secrets_recovered}/{counts.secrets}" if counts.secrets else ""),
        "n/D": Text(_number(row.tokens_per_hidden)),
        "s/batch": Text("" if row.seconds is None else f"{row.seconds:.1f}"),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


class LiveTable:
    """The table on a terminal, filling as records come; gone when it is over."""

    def __init__(self, evaluation: Evaluation, console: Console, *, together: int = 1) -> None:
        self._evaluation = evaluation
        self._counter = _Counter(evaluation, together)
        self._stands: tuple[Cell, Progress] | None = None
        self._live = Live(get_renderable=self._picture, console=console, transient=True, refresh_per_second=2)

    def show(self, record: Record) -> None:
        """Take it into the table."""
        self._counter.add()

    def watch(self, cell: Cell, progress: Progress) -> None:
        """Say where an attack stands."""
        self._stands = cell, progress

    def _picture(self) -> RenderableType:
        # On top: a terminal that is too low for the grid loses its last rows, not how far it is.
        words = self._counter.words() + (f"; {_stand(*self._stands)}" if self._stands else "")
        return Group(Text(words, style="bright_black"), render(self._evaluation))

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()


class PlainLines:
    """A line now and then, where there is no terminal; a failed batch always has its own."""

    def __init__(self, evaluation: Evaluation, console: Console, *, together: int = 1) -> None:
        self._console = console
        self._counter = _Counter(evaluation, together)
        self._began = time.monotonic()
        self._last = float("-inf")

    def show(self, record: Record) -> None:
        """Say how far it is."""
        self._counter.add()
        often = record.status == "done" and self._counter.left
        result = (
            f"match {record.token_match_rate:.2f}"
            if record.token_match_rate is not None
            else f"FAILED: {record.error}"
        )
        self._say(f"{_named(record.cell)} batch {record.batch}: {result}", _BETWEEN_LINES if often else 0.0)

    def watch(self, cell: Cell, progress: Progress) -> None:
        """Say where an attack stands."""
        if time.monotonic() - self._began >= _BETWEEN_STANDS:
            self._say(_stand(cell, progress), _BETWEEN_STANDS)

    def _say(self, words: str, between: float) -> None:
        """A line, if the last one isn't so few seconds ago."""
        now = time.monotonic()
        if now - self._last >= between:
            self._last = now
            self._console.print(Text(f"{self._counter.words()}; {words}"), soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return None


def _named(cell: Cell) -> str:
    return (
        f"{cell.model} {cell.attack} B={cell.batch_size} {cell.share} {client_of(cell)} "
        f"{defense_of(cell)} {cell.data}"
    )


def _stand(cell: Cell, progress: Progress) -> str:
    most = "" if progress.steps is None else f" of {progress.steps:,}"
    return f"{_named(cell)}: {progress.phase}, step {progress.step:,}{most}"


class _Counter:
    """How far it is, and how long the rest takes at the pace so far.

    Args:
        evaluation: what is counted.
        together: batches that end at about the same time; those of a group that hasn't ended count as done.
    """

    def __init__(self, evaluation: Evaluation, together: int) -> None:
        self._evaluation = evaluation
        self._together = together
        self._total = evaluation.plan.batches()
        self._new = 0
        self._start = time.monotonic()

    def add(self) -> None:
        self._new += 1

    @property
    def left(self) -> int:
        return max(0, self._total - len(self._evaluation.records()))

    def words(self) -> str:
        elapsed = time.monotonic() - self._start
        words = f"[{elapsed:7.1f} s] {self._total - self.left} of {self._total} batches"
        ending = -self._new % self._together
        if self._new and self.left > ending:
            seconds = elapsed / (self._new + ending) * (self.left - ending)
            words += f", about {seconds_in_words(seconds)} left"
        return words
