"""A grid's cells as ladders: what leaks past one defense in growing strength."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from textleak_tui.grid import CellRow
from textleak_tui.ladder import NONE, Knob, verdict

if TYPE_CHECKING:
    from textleak.evaluation.records import Cell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ladder:
    """One defense's option against one attack.

    Attributes:
        knob: the option.
        attack: the attack's name.
        rates: the mean match rate at each strength, the undefended cells' first; over all cells of a strength.
    """

    knob: Knob
    attack: str
    rates: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """Which ladder it is."""
        return f"{self.knob.name} against {self.attack}"

    @property
    def words(self) -> str:
        """What it says, in a sentence."""
        return verdict(self.knob, self.rates)


def ladders_of(rows: Iterable[CellRow]) -> list[Ladder]:
    """The ladders of a grid: of each defense with one option, where two strengths or more have a match rate."""
    plain: dict[str, list[float]] = {}
    found: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row.rate is None:
            continue
        if not row.cell.defense:
            plain.setdefault(row.cell.attack, []).append(row.rate.mean)
        elif (rung := _rung(row.cell)) is not None:
            defense, option, strength = rung
            rates = found.setdefault((defense, option, row.cell.attack), {})
            rates.setdefault(strength, []).append(row.rate.mean)
    ladders = []
    for (defense, option, attack), rates in found.items():
        rungs = [(strength, _mean(rates[strength])) for strength in _ordered(rates)]
        first = [(NONE, _mean(plain[attack]))] if attack in plain else []
        if len(first + rungs) > 1:
            knob = Knob(defense=defense, option=option, numeric=all(map(_is_number, rates)))
            ladders.append(Ladder(knob=knob, attack=attack, rates=(*first, *rungs)))
    return ladders


def _rung(cell: Cell) -> tuple[str, str, str] | None:
    """The only defense of a cell, its only option and that one's value."""
    if len(cell.defense) != 1:
        return None
    defense, _, options = cell.defense[0].partition(":")
    option, _, strength = options.partition("=")
    return (defense, option, strength) if strength and "," not in strength else None


def _ordered(strengths: Iterable[str]) -> list[str]:
    listed = list(strengths)
    return sorted(listed, key=float) if all(map(_is_number, listed)) else listed


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _mean(rates: Sequence[float]) -> float:
    return sum(rates) / len(rates)
