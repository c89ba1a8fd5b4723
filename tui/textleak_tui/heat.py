"""A grid's cells as a map of two of its settings: a line a value of one, a column a value of the other."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from textleak_tui.grid import CellRow

if TYPE_CHECKING:
    from textleak.evaluation.records import Cell

# Settings in the order in which they are likely to be asked about, columns first.
SETTINGS = ("defense", "client", "attack", "share", "model", "data", "know", "batch_size", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heat:
    """The map of two settings.

    Attributes:
        down: the setting whose values are lines.
        across: the one whose values are columns.
        lines: values of `down`.
        columns: values of `across`.
        rates: the mean token match rate by line and column, over all cells that have both; none where there is none.
    """

    down: str
    across: str
    lines: tuple[str, ...]
    columns: tuple[str, ...]
    rates: Mapping[tuple[str, str], float]


def pairs_of(rows: Sequence[CellRow], text: Callable[[Cell, str], str]) -> list[tuple[str, str]]:
    """The settings that differ, two by two: the one with more values is down.

    Args:
        rows: the cells.
        text: a cell's value of a setting.
    """
    counts = {name: len({text(row.cell, name) for row in rows}) for name in SETTINGS}
    several = [name for name in SETTINGS if counts[name] > 1]
    return [
        (one, other) if counts[one] >= counts[other] else (other, one)
        for one, other in itertools.combinations(several, 2)
    ]


def heat_of(rows: Sequence[CellRow], pair: tuple[str, str], text: Callable[[Cell, str], str]) -> Heat:
    """The map of a pair of settings; values in the order in which they came."""
    down, across = pair
    rates: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row.rate is not None:
            rates.setdefault((text(row.cell, down), text(row.cell, across)), []).append(row.rate.mean)
    return Heat(
        down=down,
        across=across,
        lines=tuple(dict.fromkeys(text(row.cell, down) for row in rows)),
        columns=tuple(dict.fromkeys(text(row.cell, across) for row in rows)),
        rates={place: sum(found) / len(found) for place, found in rates.items()},
    )
