"""Two evaluations side by side: the same sentences in the same cells, and how much more the second one recovered.

An axis along which the folders have no value in common is what is compared; all others have to agree. Of a pair of
sentences only the difference counts, so what makes a sentence hard drops out.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from textleak.errors import InputError
from textleak.evaluation.answers import FIGURES, Records
from textleak.evaluation.records import Cell, Record
from textleak.reports.figures import cluster_of, percent, values_of
from textleak.reports.reading import Findings
from textleak.reports.settings import (
    AXES,
    TITLES,
    in_words,
    named,
    setting_of,
    several_in_words,
    strength_order,
    varying,
)
from textleak.reports.statistics import Interval, bootstrap_means
from textleak.words import count_of

_ALL_AXES = (*AXES, "seed")
# Settings of an evaluation that decide its figures and are the same for all of its cells.
_OUTSIDE = ("time_limit", "max_words", "num_labels", "dtype")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure on both sides, over the same sentences.

    Attributes:
        first: the mean in the first folder; likewise `second`.
        difference: second − first, with its paired interval.
    """

    first: float
    second: float
    difference: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedSetting:
    """A setting that both folders have, but for what is compared.

    Attributes:
        words: the setting, told by what varies.
        sentences: that are in both.
        alone: sentences of the first and of the second folder without a partner.
        figures: by name.
    """

    words: str
    sentences: int
    alone: tuple[int, int]
    figures: Mapping[str, Difference]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two folders say about the same sentences.

    Attributes:
        headline: the overall difference in a sentence.
        compared: axes along which the folders differ, with their values.
        settings: those that pair, in the order of the first folder.
        overall: over all of them.
        unpaired: settings that only the first, and only the second folder has.
        failed: failed batches of the first and of the second folder.
        cut_off: batches that were ended, by time or by hand, before the attack was done, likewise.
        versions: packages whose versions differ, as the records say.
        outside: what differs and no cell tells of, such as the time limit of a batch, the device, or the weights
            that were loaded for cells that pair.
    """

    headline: str
    compared: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    settings: tuple[PairedSetting, ...]
    overall: PairedSetting
    unpaired: tuple[tuple[str, ...], tuple[str, ...]]
    failed: tuple[int, int]
    cut_off: tuple[int, int]
    versions: Mapping[str, tuple[str, str]]
    outside: Mapping[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pair:
    """A sentence in both folders: its figures, and the cluster that it is drawn in."""

    first_F: Sequence[float]
    second_F: Sequence[float]
    cluster: Hashable


def compare(first: Findings, second: Findings, *, seed: int = 0) -> Comparison:
    """Paired differences, second − first, per setting and overall.

    Args:
        first: what a folder holds, and
        second: another one.
        seed: of the bootstrap's draws.

    Raises:
        InputError: no sentence is in both, or a folder is of an image run.
    """
    for one in (first, second):
        if one.pictures is not None:
            raise InputError(
                f"{one.path} holds an image run.",
                why="What is compared are sentences that two folders have in common.",
                fix=f"`textleak report {one.path}` has its figures.",
            )
    ours, theirs = _by_cell(first.records), _by_cell(second.records)
    for one, cells in ((first, ours), (second, theirs)):
        if not any(record.sentences for records in cells.values() for record in records):
            raise InputError(
                f"{one.path} has no scored batch.",
                why="Only sentences that both folders have a figure for can be compared.",
                fix="Let `textleak eval` go on there first; `textleak report` says what failed.",
            )
    compared = _compared(ours, theirs)
    common = varying(setting_of(cell) for cell in (*ours, *theirs))
    common = tuple(axis for axis in common if axis not in compared)
    paired = _paired_cells(ours, theirs, compared)
    settings: list[PairedSetting] = []
    every: list[_Pair] = []
    for words, group in _by_words(paired, common, compared).items():
        pairs: list[_Pair] = []
        alone = [0, 0]
        for a, b in group:
            found, left = _pairs(ours[a], theirs[b])
            pairs += found
            alone = [total + more for total, more in zip(alone, left, strict=True)]
        if pairs:
            settings.append(_setting(words, pairs, (alone[0], alone[1]), seed))
            every += pairs
    if not every:
        raise _nothing_pairs((first, ours), (second, theirs), cells_pair=bool(paired))
    alone_overall = (sum(one.alone[0] for one in settings), sum(one.alone[1] for one in settings))
    overall = _setting("overall", every, alone_overall, seed)
    counts = [Records(one.records).counts() for one in (first, second)]
    return Comparison(
        headline=_headline(overall, len(settings), compared),
        compared={axis: (_values(ours, axis), _values(theirs, axis)) for axis in compared},
        settings=tuple(settings),
        overall=overall,
        unpaired=(
            _alone(ours, {a for a, _ in paired}, common),
            _alone(theirs, {b for _, b in paired}, common),
        ),
        failed=(counts[0].failed, counts[1].failed),
        cut_off=(counts[0].cut_off, counts[1].cut_off),
        versions=_differing(
            first.versions_used, second.versions_used, {*first.versions_used, *second.versions_used}
        ),
        outside=_outside(first, second, [(ours[a], theirs[b]) for a, b in paired]),
    )


def _outside(
    first: Findings, second: Findings, paired: Sequence[tuple[Sequence[Record], Sequence[Record]]]
) -> dict[str, tuple[str, str]]:
    """What else differs between two folders, beside what is compared."""
    alike = first.kind == second.kind
    return {
        **(_differing(first.settings, second.settings, _OUTSIDE) if alike else {}),
        **_differing({"device": first.values("device")}, {"device": second.values("device")}, ("device",)),
        **_differing_weights(paired),
    }


def _differing(
    first: Mapping[str, Any], second: Mapping[str, Any], names: Iterable[str]
) -> dict[str, tuple[str, str]]:
    """What isn't the same in both, in words."""

    def in_words(value: object) -> str:
        if isinstance(value, tuple):
            return several_in_words(value)
        return "–" if value is None else str(value)

    def comparable(value: object) -> object:
        return {*value} if isinstance(value, tuple) else value

    return {
        name: (in_words(first.get(name)), in_words(second.get(name)))
        for name in sorted(names)
        if comparable(first.get(name)) != comparable(second.get(name))
    }


def _differing_weights(
    paired: Sequence[tuple[Sequence[Record], Sequence[Record]]],
) -> dict[str, tuple[str, str]]:
    """The weights that were loaded on both sides, by the first side's model, where they aren't the same."""
    loaded: tuple[dict[str, tuple[str, ...]], ...] = ({}, {})
    for sides in paired:
        model = sides[0][0].cell.model
        for found, records in zip(loaded, sides, strict=True):
            weights = (record.weights for record in records if record.weights)
            found[model] = tuple(dict.fromkeys((*found.get(model, ()), *weights)))
    several = len(loaded[0]) > 1
    return {
        f"loaded weights of {model}" if several else "loaded weights": words
        for model, words in _differing(loaded[0], loaded[1], loaded[0]).items()
    }


Cells = dict[Cell, list[Record]]


def _by_cell(records: Iterable[Record]) -> Cells:
    cells: Cells = defaultdict(list)
    for record in sorted(records, key=lambda record: record.batch):
        cells[record.cell].append(record)
    return dict(cells)


def _compared(first: Cells, second: Cells) -> tuple[str, ...]:
    """The axes without a common value; a folder with one value there stands against each of the other's."""
    found = []
    for axis in _ALL_AXES:
        a, b = ({getattr(cell, axis) for cell in cells} for cells in (first, second))
        if not a & b and min(len(a), len(b)) == 1:
            found.append(axis)
    return tuple(found)


def _paired_cells(first: Cells, second: Cells, compared: Sequence[str]) -> list[tuple[Cell, Cell]]:
    """Cells that agree in every axis but those compared."""

    def key(cell: Cell) -> tuple[Any, ...]:
        return tuple(getattr(cell, axis) for axis in _ALL_AXES if axis not in compared)

    partners: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in second:
        partners[key(cell)].append(cell)
    return [(a, b) for a in first for b in partners[key(a)]]


def _pairs(first: Sequence[Record], second: Sequence[Record]) -> tuple[list[_Pair], tuple[int, int]]:
    """The sentences that two cells have in common, and how many are left alone on each side."""
    sides = [_observed(records) for records in (first, second)]
    # Sentences of one batch aren't independent, on either side: the larger batches decide.
    larger = int(second[0].cell.batch_size > first[0].cell.batch_size)
    pairs = [
        _Pair(
            first_F=sides[0][key][0],
            second_F=sides[1][key][0],
            cluster=sides[larger][key][1],
        )
        for key in sides[0]
        if key in sides[1]
    ]
    return pairs, (len(sides[0]) - len(pairs), len(sides[1]) - len(pairs))


def _observed(records: Iterable[Record]) -> dict[tuple[str, int], tuple[Sequence[float], Hashable]]:
    """Figures and cluster of each sentence; one that occurs several times is told by its turn."""
    seen: Counter[str] = Counter()
    found: dict[tuple[str, int], tuple[Sequence[float], Hashable]] = {}
    for record in records:
        if record.status != "done" or not record.sentences:
            continue
        figures = zip(*(values_of(record, figure) for figure in FIGURES), strict=True)
        for sentence, values in zip(record.sentences, figures, strict=True):
            found[sentence.reference, seen[sentence.reference]] = (values, cluster_of(record))
            seen[sentence.reference] += 1
    return found


def _setting(words: str, pairs: Sequence[_Pair], alone: tuple[int, int], seed: int) -> PairedSetting:
    first_NF = np.array([pair.first_F for pair in pairs])
    second_NF = np.array([pair.second_F for pair in pairs])
    intervals = bootstrap_means(second_NF - first_NF, [pair.cluster for pair in pairs], seed=seed)
    means = zip(first_NF.mean(axis=0).tolist(), second_NF.mean(axis=0).tolist(), intervals, strict=True)
    return PairedSetting(
        words=words,
        sentences=len(pairs),
        alone=alone,
        figures={
            figure: Difference(first=a, second=b, difference=interval)
            for figure, (a, b, interval) in zip(FIGURES, means, strict=True)
        },
    )


# Words


def _by_words(
    paired: Iterable[tuple[Cell, Cell]], common: Sequence[str], compared: Sequence[str]
) -> dict[str, list[tuple[Cell, Cell]]]:
    """Pairs of cells by their setting in words, all seeds together, weak defenses first."""
    pairs = sorted(paired, key=lambda pair: strength_order(pair[0].defense))
    changing = [
        axis
        for axis in compared
        if axis in AXES and any(len({getattr(pair[side], axis) for pair in pairs}) > 1 for side in (0, 1))
    ]
    named_pairs: dict[str, list[tuple[Cell, Cell]]] = defaultdict(list)
    for a, b in pairs:
        words = [named(setting_of(a), common)] if common else []
        words += [
            f"{TITLES[axis]} {in_words(axis, getattr(a, axis))} → {in_words(axis, getattr(b, axis))}"
            for axis in changing
        ]
        named_pairs[", ".join(words) or "all"].append((a, b))
    return named_pairs


def _values(cells: Cells, axis: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(in_words(axis, getattr(cell, axis)) for cell in cells))


def _alone(cells: Cells, partners: Collection[Cell], common: Sequence[str]) -> tuple[str, ...]:
    """The settings of cells without a partner; their seeds too where some have one."""
    shown = varying(setting_of(cell) for cell in cells)
    axes = {*common, *shown}
    several = len({cell.seed for cell in cells}) > 1
    return tuple(
        dict.fromkeys(
            ", ".join(filter(None, (named(setting_of(cell), axes), f"seed {cell.seed}" if several else "")))
            for cell in cells
            if cell not in partners
        )
    )


def points(rate: float) -> str:
    """A difference of rates in percentage points, with its sign."""
    size = percent(abs(rate))
    return "0" if rate == 0 else f"{'+' if rate > 0 else '−'}{size}"


def _headline(overall: PairedSetting, settings: int, compared: Sequence[str]) -> str:
    match = overall.figures["token_match_rate"]
    change = match.difference
    over = f"{count_of(overall.sentences, 'paired sentence')} in {count_of(settings, 'setting')}"
    rates = f"{percent(match.first)} % against {percent(match.second)} %"
    if change.low is None or change.high is None:
        return f"Token match {points(change.mean)} points ({rates}) in one batch: no interval can be given."
    ends = f"95 % interval {points(change.low)} to {points(change.high)}"
    if change.low <= 0 <= change.high:
        return (
            f"No clear difference: token match {points(change.mean)} points ({ends}; {rates}), over {over}."
        )
    more = "more" if change.mean > 0 else "less"
    amount = percent(abs(change.mean))
    return (
        f"The second folder leaks {more}: by {amount} points of token match ({ends}; {rates}), over {over}."
    )


def _nothing_pairs(
    first: tuple[Findings, Cells], second: tuple[Findings, Cells], *, cells_pair: bool
) -> InputError:
    ours, theirs = first[1], second[1]
    disjoint = [
        f"{TITLES.get(axis, axis)} ({', '.join(_values(ours, axis))} against {', '.join(_values(theirs, axis))})"
        for axis in _ALL_AXES
        if not {getattr(cell, axis) for cell in ours} & {getattr(cell, axis) for cell in theirs}
    ]
    if cells_pair:
        why = "Their cells agree, but no sentence is in both."
    else:
        why = f"No cell of one agrees with a cell of the other: {'; '.join(disjoint) or 'none is in both'}."
    return InputError(
        f"{first[0].path} and {second[0].path} have nothing to compare.",
        why=why,
        fix="Evaluate the same data, with one setting changed.",
    )
