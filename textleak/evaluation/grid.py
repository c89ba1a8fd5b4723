"""From settings to work: the grid's cells, their batches of consecutive sentences, and the hash that names it all."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from textleak import runs
from textleak.data.sentences import Data, Example, load
from textleak.errors import InputError, TextleakError
from textleak.evaluation.records import Cell, Record
from textleak.events import Progress
from textleak.settings import AttackChoice, Choice, EvaluationConfig
from textleak.words import count_of

# Batches from which on a grid is more likely a slip than a wish (our choice: a day at 1 s each).
MANY = 100_000
# Settings that change where and how fast an evaluation runs, not what it gives.
_NOT_IDENTITY = ("out", "threads")

Key = tuple[Cell, int]
"""What makes a batch the same one: its cell and its number."""
Watch = Callable[[Cell, Progress], None]
"""Is told where an attack on a batch of a cell stands."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """One batch of one cell: the unit that engines hand out."""

    cell: Cell
    batch: int
    examples: tuple[Example, ...]

    @property
    def key(self) -> Key:
        """Which batch this is."""
        return self.cell, self.batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Order:
    """What a worker is told beside the batch itself.

    Attributes:
        identity: of the evaluation.
        config: its settings; the device in it is this worker's own.
        threads: CPU threads of this worker; None for the cores at hand.
        worker: its name in the records.
    """

    identity: str
    config: EvaluationConfig
    threads: int | None = None
    worker: str = "local"


class EvaluationError(TextleakError):
    """What stops every batch, so that going on would only collect failures."""


def failed(work: Work, order: Order, error: str) -> Record:
    """The record of a batch without an answer."""
    return Record(
        identity=order.identity,
        cell=work.cell,
        batch=work.batch,
        status="failed",
        error=error,
        worker=order.worker,
        versions=runs.versions(),
    )


def key_of(record: Record) -> Key:
    """Which batch a record is of."""
    return record.cell, record.batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """All that an evaluation has to do.

    Attributes:
        config: the settings.
        data: the sentences, by name.
    """

    config: EvaluationConfig
    data: Mapping[str, Data]

    def settings(self) -> dict[str, Any]:
        """What decides the results, as plain values: the settings and the sentences' hashes."""
        config = self.config
        plain = config.model_dump(mode="json", exclude=set(_NOT_IDENTITY))
        plain["attack"] = [choice.spec for choice in config.attack]
        plain["limits"] = [self._limit(choice) for choice in config.attack]
        plain["defense"] = ["+".join(c.spec for c in several) or "none" for several in config.defense]
        if any(config.client):  # folders of before clients were told apart have none
            plain["client"] = ["+".join(c.spec for c in several) or "one-step" for several in config.client]
        else:
            del plain["client"]
        most = max((self._limit(choice) for choice in config.attack), default=0)
        plain["sentences"] = {name: data.digest(most) for name, data in self.data.items()}
        return plain

    @property
    def identity(self) -> str:
        """Hash of `settings`."""
        text = json.dumps(self.settings(), sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def cells(self) -> Iterator[tuple[Cell, int]]:
        """Each cell of the grid and how many batches it has; those of one model follow each other."""
        config = self.config
        for model, seed, data, share, client, (defense, know), size, attack in itertools.product(
            config.model,
            config.seed,
            self.data,
            config.share,
            config.client,
            self._told(),
            config.batch_size,
            config.attack,
        ):
            cell = Cell(
                data=data,
                batch_size=size,
                model=model,
                weights=config.weights,
                task=config.task,
                attack=attack.spec,
                share=share,
                client=tuple(choice.spec for choice in client),
                defense=tuple(choice.spec for choice in defense),
                know=know,
                seed=seed,
            )
            yield cell, self._batches(data, attack, size)

    def batches(self) -> int:
        """How many batches there are, counted without listing the grid."""
        config = self.config
        others = (config.model, config.seed, config.share, config.client, self._told())
        return math.prod(map(len, others)) * sum(
            self._batches(data, attack, size)
            for data in self.data
            for attack in config.attack
            for size in config.batch_size
        )

    def works(self) -> Iterator[Work]:
        """Every batch: a model after the other, in it the first batch of each cell first, then the second ones."""
        for _, group in itertools.groupby(self.cells(), lambda one: (one[0].model, one[0].seed)):
            cells = list(group)
            for batch in range(max(count for _, count in cells)):
                for cell, count in cells:
                    if batch < count:
                        first = batch * cell.batch_size
                        examples = self.data[cell.data].examples[first : first + cell.batch_size]
                        yield Work(cell=cell, batch=batch, examples=examples)

    def notes(self) -> list[str]:
        """Sentences for a person: what is left out of the data."""
        found = [note for data in self.data.values() for note in data.notes]
        for name, data in self.data.items():
            for size in self.config.batch_size:
                for limit in sorted({self._limit(attack) for attack in self.config.attack}):
                    count = min(limit, len(data.examples))
                    if rest := count % size:
                        found.append(
                            f"{name}: the last {count_of(rest, 'sentence')} of {count:,} left out in batches of {size}."
                        )
        return found

    def _told(self) -> list[tuple[tuple[Choice, ...], str | None]]:
        """Defenses with what the server knows; without a defense there is none to keep from it, where it knows more."""
        from textleak.shared.known import hides_defense

        return [
            (defense, know)
            for defense, know in itertools.product(self.config.defense, self.config.know)
            if defense or not hides_defense(know) or all(map(hides_defense, self.config.know))
        ]

    def _limit(self, attack: AttackChoice) -> int:
        return min(self.config.limit, attack.limit or self.config.limit)

    def _batches(self, data: str, attack: AttackChoice, batch_size: int) -> int:
        return min(self._limit(attack), len(self.data[data].examples)) // batch_size


def plan(config: EvaluationConfig, *, here: bool = True) -> Plan:
    """Read the sentences and check all that can be checked before a model is loaded.

    Args:
        config: the settings.
        here: batches are computed on this machine, which must have the device.

    Raises:
        InputError: data that can't be had, an unknown model, attack, client, defense, option, device or kind of
            knowledge, an expression that is none, or a cell without a batch.
    """
    from textleak.attacks import ATTACKS
    from textleak.defenses import DEFENSES, check_order
    from textleak.jobs.parts import chosen_client
    from textleak.models.loading.catalog import BY_HUB_ID, CATALOG
    from textleak.models.loading.places import find_place
    from textleak.models.loading.request import DTYPES, find_device
    from textleak.shared.choice import share_expression
    from textleak.shared.known import SideInformation

    if here:
        find_device(config.device, DTYPES[config.dtype])
    for model in config.model:
        find_place(model, CATALOG.get(model) or BY_HUB_ID.get(model), "random")
    for attack in config.attack:
        ATTACKS.build(attack.name, attack.options)
    for several in config.client:
        chosen_client(several)
    for several in config.defense:
        defenses = [DEFENSES.build(choice.name, choice.options) for choice in several]
        check_order(defenses)
        for defense in defenses:
            defense.epsilon()
    for share in config.share:
        share_expression(share)
    for know in config.know:
        SideInformation.parse(know, batch_size=1)
    found = Plan(config=config, data={name: load(name, config) for name in config.data})
    for cell, count in found.cells() if found.batches() <= MANY else ():
        if not count:
            raise InputError(
                f"There is no batch of {count_of(cell.batch_size, 'sentence')} for {cell.attack} on {cell.data}.",
                why=f"{count_of(len(found.data[cell.data].examples), 'sentence')} there; the limit is "
                f"{config.limit}, an attack's own may be less.",
                fix="Raise --limit, or lower --batch-size.",
            )
    return found
