"""An evaluation from its settings to its records: what is left to do, who does it, where it goes, how long it takes."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from pathlib import Path

from textleak import runs
from textleak.errors import InputError
from textleak.evaluation.answers import Records
from textleak.evaluation.engines import Engine
from textleak.evaluation.grid import MANY, Key, Order, Plan, Work, key_of, plan
from textleak.evaluation.records import Cell, Record
from textleak.evaluation.store import EvaluationFolder, Store, check_same, read_records
from textleak.settings import EvaluationConfig

# Rule of thumb where nothing has been measured yet: seconds a sentence on minilm with one thread (README's tables; a
# guess for what isn't in them).
_RULE = {"embedding": 0.5, "span": 1.0, "auto": 1.0, "match": 6.0}
_RULE_OTHERS = 60.0


class Evaluation:
    """An evaluation that can go.

    Args:
        plan: what there is to do.
        store: where records go; None keeps them in memory only.
    """

    def __init__(self, plan: Plan, store: Store | None) -> None:
        self.plan = plan
        self.store = store
        self._records: dict[Key, Record] = {} if store is None else store.records

    def records(self) -> Records:
        """All records there are, those of earlier calls too."""
        return Records(self._records.values())

    def left(self, *, retry_failed: bool = False) -> Iterator[Work]:
        """The batches without a record; looked at anew before each, as other processes may work on the same folder.

        A second process begins at the other end, so that the two meet.
        """

        def open_(work: Work) -> bool:
            there = self._records.get(work.key)
            return there is None or (retry_failed and there.status == "failed")

        works = self.plan.works()
        if self.store is not None and not self.store.first():
            works = reversed(list(works))
        for work in works:
            if open_(work):
                if self.store is not None:
                    self.store.refresh()
                if open_(work):
                    yield work

    def run(self, engine: Engine, *, retry_failed: bool = False) -> Iterator[Record]:
        """Compute what is left; each record is on the disk before it is yielded.

        Raises:
            TextleakError: the records can't be written, or the engine can't work.
        """
        order = Order(identity=self.plan.identity, config=self.plan.config, threads=self.plan.config.threads)
        for record in engine.run(self.left(retry_failed=retry_failed), order):
            if self.store is None:
                self._records[key_of(record)] = record
            elif not self.store.add(record):
                continue
            yield record


def folder_of(found: Plan, name: str) -> Path:
    """Where an evaluation's records go: `out`, else a folder beside the run folders, named by its identity.

    Args:
        found: the plan.
        name: words to tell it by, for example the preset's name.
    """
    words = runs.as_file_name(name)[:40]
    return found.config.out or runs.runs_folder() / f"evaluation-{words}-{found.identity[:8]}"


def begin(
    config: EvaluationConfig,
    *,
    name: str = "eval",
    stored: bool = True,
    many: bool = False,
    here: bool = True,
) -> Evaluation:
    """Read the data, check the settings, and open the folder.

    Args:
        config: the settings.
        name: for a folder without `out`.
        stored: whether records are written to a folder.
        many: a huge grid is meant.
        here: batches are computed on this machine.

    Raises:
        InputError: whatever the caller can mend.
    """
    found = plan(config, here=here)
    check_size(found, many=many)
    if not stored:
        return Evaluation(found, None)
    store = Store.open(
        folder_of(found, name), identity=found.identity, settings=found.settings(), batches=found.batches()
    )
    return Evaluation(found, store)


def look(found: Plan, folder: Path) -> Evaluation:
    """An evaluation with the records that a folder has of it; nothing is written there.

    Raises:
        InputError: the folder belongs to another evaluation.
    """
    evaluation = Evaluation(found, None)
    there = EvaluationFolder(path=folder)
    if there.settings_path.exists():
        check_same(there, found.identity, found.settings())
        evaluation._records = {key_of(record): record for record in read_records(folder)}
    return evaluation


def check_size(found: Plan, *, many: bool) -> None:
    """Raise for a grid that nobody means."""
    count = found.batches()
    if count > MANY and not many:
        raise InputError(
            f"This grid has {count:,} batches.",
            why=f"More than {MANY:,} are more likely a slip than a wish.",
            fix="Lower --limit or leave values out; --dry-run shows the size, --yes (in a script: yes=True) means it.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a grid takes.

    Attributes:
        batches: left to do.
        seconds: for all of them, one after the other.
        measured: share of the batches whose cell, or one like it, has been measured; the others go by a rule of thumb.
    """

    batches: int
    seconds: float
    measured: float


def estimate(evaluation: Evaluation) -> Estimate:
    """How long what is left takes, from the records that are there, else by a rule of thumb."""
    found = evaluation.plan
    there: dict[Cell, int] = {}
    taken: dict[tuple[str, str, int], list[float]] = {}
    for record in evaluation.records():
        there[record.cell] = there.get(record.cell, 0) + 1
        if record.status == "done":
            taken.setdefault(_kind(record.cell), []).append(record.seconds)
    seconds, batches, measured = 0.0, 0, 0
    for cell, count in found.cells():
        count = max(0, count - there.get(cell, 0))
        batches += count
        known = taken.get(_kind(cell))
        if known:
            measured += count
            seconds += count * statistics.fmean(known)
        else:
            name = cell.attack.partition(":")[0]
            rule = cell.batch_size * _RULE.get(name, _RULE_OTHERS)
            seconds += count * min(rule, found.config.time_limit or rule)
    return Estimate(batches=batches, seconds=seconds, measured=measured / batches if batches else 1.0)


def _kind(cell: Cell) -> tuple[str, str, int]:
    """What decides most of a batch's time."""
    return cell.model, cell.attack, cell.batch_size
