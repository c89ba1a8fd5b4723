"""What an evaluation came to: its records as a list that knows means, tables and files."""

from __future__ import annotations

import csv
import dataclasses
import functools
import html
import io
import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from textleak import owned
from textleak.errors import InputError, unknown_name, unwritten
from textleak.evaluation.records import Cell, Record
from textleak.scoring.chips import chips
from textleak.settings import AttackChoice, parse_attack, parse_client, parse_defense
from textleak.words import table_cell

FIGURES = (
    "token_match_rate",
    "token_recall",
    "exact_rate",
    "rouge1",
    "rouge2",
    "rougeL",
    "rouge1_words",
    "rouge2_words",
    "rougeL_words",
)
SECRETS = "secrets_recovered"
_MOST_SHOWN, _MOST_SENTENCES = 20, 3  # in a notebook, our choice
_COLUMNS = (
    "tokens",
    "hidden_size",
    "tokens_per_hidden",
    *FIGURES,
    "final_loss",
    "gradient_distance",
    "verified",
    "named_rate",
    "channel",
    "stop",
    "steps",
    "evaluations",
    "seconds",
    "cpu_seconds",
    "device",
    "dtype",
    "threads",
    "epsilon",
    "worker",
    "identity",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What some batches came to, in numbers of them.

    Attributes:
        done: with figures.
        failed: with an error.
        verified: whose answer reproduces the shared gradient.
        verifiable: of which that can be said; of none behind noise.
        cut_off: that were ended, by time or by hand, before they had an answer known to be right.
        secrets: planted in those that are done.
        secrets_recovered: of them, whole.
    """

    done: int
    failed: int
    verified: int
    verifiable: int
    cut_off: int
    secrets: int
    secrets_recovered: int


class Records(list[Record]):
    """Typed records, one a batch; a list of `Record` with what a script asks of it.

    Example:
        >>> records = textleak.evaluate(model="bert-tiny", weights="random", limit=1, attack="embedding")
        >>> records.counts().done, len(records.failed), len(records.where(attack="embedding"))
        (1, 0, 1)
    """

    @property
    def done(self) -> Records:
        """Those with figures."""
        return Records(record for record in self if record.status == "done")

    @property
    def failed(self) -> Records:
        """Those with an error."""
        return Records(record for record in self if record.status == "failed")

    def where(self, **cell: object) -> Records:
        """Those of the cells that are like this: `records.where(model="minilm", attack="match", batch_size=1)`.

        An attack, a client and a defense may be written in any way that a command or `evaluate` takes: sigma=1e-3 is
        sigma=0.001, and a list is one cell's defenses in order. An attack's name without options finds it with any.

        Raises:
            InputError: a cell has no such field, or an attack, client or defense that can't be read.
        """
        known = [field.name for field in dataclasses.fields(Cell)]
        for field in cell:
            if field not in known:
                raise unknown_name("field of a cell", field, known)
        wanted = {field: _plain(field, value) for field, value in cell.items()}
        return Records(record for record in self if all(_fits(record.cell, *one) for one in wanted.items()))

    def by_cell(self) -> dict[Cell, Records]:
        """Those of each cell, cells in the order in which they came first."""
        cells: dict[Cell, Records] = {}
        for record in self:
            cells.setdefault(record.cell, Records()).append(record)
        return cells

    def mean(self, figure: str = "token_match_rate", **cell: object) -> float:
        """The mean of a figure over the sentences of some cells.

        Args:
            figure: one of `FIGURES`, or "secrets_recovered": the share of the planted secrets that came back whole.
            cell: which cells, as for `where`.

        Raises:
            InputError: no such figure, or nothing to take the mean of: no silent 0 where everything has failed.
        """
        if figure not in (*FIGURES, SECRETS):
            raise unknown_name("figure", figure, (*FIGURES, SECRETS))
        chosen = self.where(**cell).done
        values = chosen.secrets() if figure == SECRETS else _over_sentences(chosen, figure)
        if not values:
            raise InputError(
                f"There is no {figure} to take the mean of.",
                why=f"{len(self.where(**cell))} of {len(self)} records are of such a cell, {len(chosen)} of them done.",
            )
        return sum(values) / len(values)

    def _repr_html_(self) -> str:
        """A table of the cells, and the tokens of the sentences that leaked most, for a notebook."""
        cells = self.by_cell()
        lines = [_html_row(cell, records) for cell, records in list(cells.items())[:_MOST_SHOWN]]
        more = f"<p>and {len(cells) - len(lines):,} more cells</p>" if len(cells) > len(lines) else ""
        leaked = sorted((s for record in self for s in record.sentences), key=lambda s: -s.token_match_rate)
        tokens = "".join(chips(s.reference_tokens, s.recovered_tokens) for s in leaked[:_MOST_SENTENCES])
        head = "".join(
            f"<th>{words}</th>"
            for words in ("model", "attack", "client", "defense", "B", "batches", "failed", "match")
        )
        return f"<table><tr>{head}</tr>{''.join(lines)}</table>{more}{tokens}"

    def counts(self) -> Counts:
        """How many of them came to what."""
        done, secrets = self.done, self.done.secrets()
        return Counts(
            done=len(done),
            failed=len(self.failed),
            verified=sum(record.verified is True for record in done),
            verifiable=sum(record.verified is not None for record in done),
            cut_off=sum(record.cut_off for record in done),
            secrets=len(secrets),
            secrets_recovered=int(sum(secrets)),
        )

    def named_rate(self) -> float | None:
        """Share of a batch's distinct tokens that it names for certain, all of a proved one's; None for no rows' names.

        The mean over those with figures.
        """
        if not any(record.named_rate for record in self.done):
            return None
        return statistics.fmean(1.0 if one.verified else one.named_rate or 0.0 for one in self.done)

    def secrets(self) -> list[float]:
        """1 for each planted secret that came back whole, 0 for each that didn't."""
        return [float(one.recovered) for record in self for s in record.sentences for one in s.secrets]

    def rows(self) -> list[dict[str, Any]]:
        """A flat row a record: its cell, its figures, and its texts as JSON lists."""
        return [_row(record) for record in self]

    def to_csv(self, path: Path | str) -> None:
        """Write `rows` as a table; a text that another program would take for a formula gets an apostrophe.

        Raises:
            InputError: it can't be written.
        """
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, _row_columns())
        writer.writeheader()
        for row in self.rows():
            writer.writerow({name: table_cell(v) if isinstance(v, str) else v for name, v in row.items()})
        with unwritten(f"{path} can't be written."):
            owned.write(Path(path), table.getvalue().encode("utf-8", "replace"))

    def to_parquet(self, path: Path | str) -> None:
        """Write `rows` as a Parquet file.

        Raises:
            InputError: pyarrow isn't installed, or it can't be written.
        """
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise InputError("Parquet needs pyarrow.", fix="pip install pyarrow, or use to_csv.") from None
        rows = self.rows()
        columns = {name: [row[name] for row in rows] for name in _row_columns()}
        with unwritten(f"{path} can't be written."), owned.replacing(Path(path)) as partial:
            pyarrow.parquet.write_table(pyarrow.table(columns), partial)


def _html_row(cell: Cell, records: Records) -> str:
    counts = records.counts()
    match = f"{records.mean():.2f}" if any(record.sentences for record in records.done) else "–"
    named = (cell.model, cell.attack, client_of(cell), defense_of(cell))
    values = (*named, cell.batch_size, counts.done, counts.failed, match)
    return f"<tr>{''.join(f'<td>{html.escape(str(value))}</td>' for value in values)}</tr>"


def defense_of(cell: Cell) -> str:
    """A cell's defense as it is written in a command, "none" where there is none."""
    return "+".join(cell.defense) or "none"


def client_of(cell: Cell) -> str:
    """How a cell's client trains, as it is written in a command."""
    return "+".join(cell.client) or "one-step"


def _plain(field: str, value: object) -> object:
    """What a cell's field is compared with: attack, client and defense by options, however they are written."""
    if field == "attack":
        return parse_attack(value)
    if field == "defense":
        return parse_defense(value)
    if field == "client":
        return parse_client(value)
    return None if field == "know" and value == "default" else value


def _fits(cell: Cell, field: str, wanted: object) -> bool:
    found = _of_cell(field, getattr(cell, field))
    if isinstance(wanted, AttackChoice) and isinstance(found, AttackChoice):
        return found.name == wanted.name and wanted.options in ({}, found.options)
    return bool(found == wanted)


@functools.lru_cache(maxsize=1024)
def _of_cell(field: str, value: object) -> object:
    """A cell's own value; as it is where another package has written it in a way of its own."""
    try:
        return _plain(field, value)
    except InputError:
        return value


def _over_sentences(records: Iterable[Record], figure: str) -> list[float]:
    """A batch's mean, once for each of its sentences."""
    return [
        float(value)
        for record in records
        for value in [getattr(record, figure)] * len(record.sentences)
        if value is not None
    ]


def _row(record: Record) -> dict[str, Any]:
    planted = [one.recovered for sentence in record.sentences for one in sentence.secrets]
    return {
        **dataclasses.asdict(record.cell),
        "client": client_of(record.cell),
        "defense": defense_of(record.cell),
        "weights": record.weights or record.cell.weights,
        "batch": record.batch,
        "status": record.status,
        "error": record.error,
        **{name: getattr(record, name) for name in _COLUMNS},
        "secrets": len(planted),
        SECRETS: sum(planted),
        "references": _listed([sentence.reference for sentence in record.sentences]),
        "recovered": _listed([sentence.recovered for sentence in record.sentences]),
        "versions": _listed(record.versions),
    }


def _row_columns() -> list[str]:
    cell = Cell(data="", batch_size=1, model="")
    return list(_row(Record(identity="", cell=cell, batch=0, status="done")))


def _listed(value: list[str] | Mapping[str, str]) -> str:
    return json.dumps(value, ensure_ascii=False)
