"""An evaluation's records as a grid that fills: its cells and their figures, how far it is, whether it passes.

A cell's figures are formed once and again only when it has got another record, so that a large grid costs no more to
follow than a small one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from textleak.words import count_of

if TYPE_CHECKING:
    from textleak.evaluation.answers import Counts, Records
    from textleak.evaluation.grid import Key
    from textleak.evaluation.records import Cell, Record, SentenceRecord
    from textleak.reports.statistics import Interval

# Our choice: a tenth of the report's draws moves an end by about 0.01, and takes a millisecond a cell.
RESAMPLES = 999


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceRow:
    """One sentence of a cell, and the record that it is in."""

    record: Record
    sentence: SentenceRecord


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellRow:
    """One cell of the grid, and the records that it has so far."""

    cell: Cell
    records: Records

    @functools.cached_property
    def counts(self) -> Counts:
        """How many of its batches came to what."""
        return self.records.counts()

    @functools.cached_property
    def rate(self) -> Interval | None:
        """The token match rate's mean over its sentences, and where it lies; None while nothing is done."""
        from textleak.reports.statistics import bootstrap_mean

        found = [(one.token_match_rate, record.batch) for record in self.records for one in record.sentences]
        return bootstrap_mean(*zip(*found, strict=True), resamples=RESAMPLES) if found else None

    @functools.cached_property
    def exact(self) -> float | None:
        """The share of its sentences that came back whole; None while nothing is done."""
        return self.records.mean("exact_rate") if self.counts.done else None

    @functools.cached_property
    def seconds(self) -> float | None:
        """An attack's mean time; None while nothing is done."""
        done = self.records.done
        return sum(record.seconds for record in done) / len(done) if done else None

    @functools.cached_property
    def worst(self) -> SentenceRow | None:
        """The sentence of which most leaked, the longest among equals; None for no sentence."""
        return max(self.sentences(blind=True), key=_leaked, default=None)

    def sentences(self, *, blind: bool) -> list[SentenceRow]:
        """Its sentences, those of which most leaked first; blind in the order of the data."""
        found = [
            SentenceRow(record=record, sentence=one) for record in self.records for one in record.sentences
        ]
        return found if blind else sorted(found, key=lambda one: -one.sentence.token_match_rate)


class Grid:
    """Records by cell as they come, the last one of each batch; cells in the order in which they came."""

    def __init__(self) -> None:
        self._records: dict[Cell, dict[Key, Record]] = {}
        self._rows: dict[Cell, CellRow] = {}

    def take(self, records: Iterable[Record]) -> set[Cell]:
        """Take in what is new; the cells that have changed."""
        from textleak.evaluation.answers import Records
        from textleak.evaluation.grid import key_of

        changed = set()
        for record in records:
            self._records.setdefault(record.cell, {})[key_of(record)] = record
            changed.add(record.cell)
        for cell in changed:
            self._rows[cell] = CellRow(cell=cell, records=Records(self._records[cell].values()))
        return changed

    @property
    def rows(self) -> list[CellRow]:
        """The cells that have a record."""
        return [self._rows[cell] for cell in self._records]

    @property
    def batches(self) -> int:
        """How many have a record."""
        return sum(map(len, self._records.values()))

    @property
    def failed(self) -> int:
        """How many of them have an error."""
        return sum(row.counts.failed for row in self._rows.values())

    @property
    def worst(self) -> tuple[CellRow, SentenceRow] | None:
        """The sentence of which most leaked so far, and its cell; None for no sentence."""
        found = [(row, row.worst) for row in self._rows.values() if row.worst is not None]
        return max(found, key=lambda pair: _leaked(pair[1]), default=None)


def _leaked(row: SentenceRow) -> tuple[float, int]:
    return row.sentence.token_match_rate, len(row.sentence.reference_tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgment:
    """Whether a grid passes: no cell's mean match rate is above a limit.

    Attributes:
        passed: None while more is to come and nothing is above it.
        words: that in a sentence.
    """

    passed: bool | None
    words: str


def judged(rows: Iterable[CellRow], limit: float, *, whole: bool) -> Judgment:
    """Judge a grid.

    Args:
        rows: its cells.
        limit: what no cell's mean match rate may be above.
        whole: every batch that there is to be has a record, and none failed.
    """
    rates = [row.rate.mean for row in rows if row.rate is not None]
    above = sum(rate > limit for rate in rates)
    if above:
        return Judgment(
            passed=False, words=f"FAIL: {above} of {count_of(len(rates), 'cell')} above {limit:.2f}"
        )
    if whole and rates:
        return Judgment(passed=True, words=f"PASS: no cell above {limit:.2f}")
    return Judgment(passed=None, words=f"so far no cell above {limit:.2f}")


class Pace:
    """How fast batches come, since one looks."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left(self, now: float, batches: int, planned: int | None) -> float | None:
        """Seconds until all are there; None while that can't be told.

        Args:
            now: seconds that only go forward.
            batches: that are there.
            planned: that are to be.
        """
        if self._first is None:
            self._first = now, batches
        since, first = self._first
        if planned is None or batches <= first or now <= since:
            return None
        return (planned - batches) * (now - since) / (batches - first)


def values_of(record: Record, settings: Mapping[str, Any]) -> dict[str, str]:
    """A batch's settings as the texts of a run's form: what it draws is drawn as it was.

    Args:
        record: of the batch.
        settings: of its evaluation, as its folder says them.
    """
    cell, limit = record.cell, settings.get("time_limit")
    more = {"dtype": "float32", "num_labels": None}
    assignments = [f"of_batch={record.batch}"]
    assignments += [
        f"{name}={settings[name]}" for name, usual in more.items() if settings.get(name, usual) != usual
    ]
    labels = [one.label for one in record.sentences] if record.labels_given else []
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
        "labels": " ".join(map(str, labels)),
        "time_limit": f"{limit:g}s" if isinstance(limit, int | float) else "",
        "device": str(settings.get("device", "auto")),
        "assignments": " ".join(assignments),
    }


def secrets_of(record: Record) -> list[str]:
    """The secrets that were planted in a batch."""
    return [secret.text for sentence in record.sentences for secret in sentence.secrets]


def differing(rows: Sequence[CellRow]) -> list[str]:
    """The settings that tell the cells apart, the attack and the defense in any case."""
    names = ("data", "model", "attack", "share", "client", "defense", "know", "batch_size", "seed")
    several = {name for name in names if len({cell_text(row.cell, name) for row in rows}) > 1}
    return [name for name in names if name in several | {"attack", "defense"}]


def cell_text(cell: Cell, name: str) -> str:
    """One of a cell's settings, as a person reads it."""
    value = getattr(cell, name)
    nothing = "one-step" if name == "client" else "none"
    return (
        (" ".join(value) or nothing)
        if isinstance(value, tuple)
        else "default"
        if value is None
        else str(value)
    )
