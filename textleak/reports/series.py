"""Token match rates as series for charts: against a defense's strength, sentence length and token frequency."""

from __future__ import annotations

import dataclasses
import statistics as plain_statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import numpy as np

from textleak.evaluation.records import Record
from textleak.reports.figures import SettingFigures, cluster_of, leaked, scored_of, values_of
from textleak.reports.settings import (
    OPPONENT,
    Setting,
    in_words,
    informed,
    named,
    opponent_of,
    opponents,
    strength_of,
    strength_order,
    value_of,
    without,
)
from textleak.reports.statistics import Interval, bootstrap_mean

# Our choices, so that a page of a long grid stays readable; whatever they leave out is said.
MOST_SERIES = 6
MOST_CHARTS = 24
LENGTH_BINS = 5
# How often a token occurs in the evaluated sentences.
FREQUENCY_BINS = ((1, 1), (2, 3), (4, 9), (10, 29), (30, None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
    """One line of a chart: a point or nothing for each category."""

    name: str
    points: tuple[Interval | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chart:
    """Token match rates over categories.

    Attributes:
        title: what it shows.
        axis: what the categories are.
        categories: from left to right.
        series: those that leaked most, the strongest first.
        note: what was left out or pooled.
    """

    title: str
    axis: str
    categories: tuple[str, ...]
    series: tuple[Series, ...]
    note: str = ""


def ladders(settings: Sequence[SettingFigures], axes: Sequence[str]) -> tuple[tuple[Chart, ...], int]:
    """A chart for each kind of defense and each context, and how many were left out."""
    contexts: dict[Setting, list[SettingFigures]] = defaultdict(list)
    for one in settings:
        if one.match is not None:
            contexts[without(one.setting, "defense", *OPPONENT)].append(one)
    charts = []
    for group in contexts.values():
        where = named(group[0].setting, [axis for axis in axes if axis not in ("defense", *OPPONENT)])
        kinds: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for defense in sorted({value_of(one.setting, "defense") for one in group}, key=strength_order):
            if defense:
                kinds[strength_of(defense).kind].append(defense)
        for kind, defenses in kinds.items():
            chart = _ladder(kind, where, defenses, group, axes)
            if chart is not None:
                charts.append(chart)
    return tuple(charts[:MOST_CHARTS]), max(0, len(charts) - MOST_CHARTS)


def _ladder(
    kind: str,
    where: str,
    defenses: list[tuple[str, ...]],
    group: Sequence[SettingFigures],
    axes: Sequence[str],
) -> Chart | None:
    """Match rate against the strength of one kind of defense; None where there is no more than one point."""
    at = {(value_of(one.setting, "defense"), opponent_of(one.setting)): one.match for one in group}
    attackers = opponents((one.setting for one in group), axes)
    steps = [(), *defenses] if any(defense == () for defense, _ in at) else defenses
    if len(steps) < 2:
        return None
    levels = [dict(strength_of(defense).levels) for defense in defenses]
    told = dict.fromkeys(name for level in levels for name in level)
    names = [name for name in told if len({str(level.get(name)) for level in levels}) > 1] or list(told)
    labels = [", ".join(_level(level.get(name)) for name in names) or kind for level in levels]
    series = []
    for opponent, name in attackers.items():
        points = [at.get((defense, opponent)) for defense in steps]
        if steps[0] == () and points[0] is None:  # with no defense there is none to be told of
            points[0] = at.get(((), informed(opponent)))
        series.append(Series(name=name, points=tuple(points)))
    chosen, note = _strongest(series)
    return Chart(
        title=f"{kind}{f' ({where})' if where else ''}",
        axis=f"{kind} {', '.join(names)}".strip(),
        categories=(*(["none"] if steps[0] == () else []), *labels),
        series=chosen,
        note=note,
    )


def _level(value: float | str | None) -> str:
    return f"{value:g}" if isinstance(value, int | float) else value or "–"


def _strongest(series: Iterable[Series]) -> tuple[tuple[Series, ...], str]:
    """The series that leaked most, and a note where some were left out."""

    def mean(one: Series) -> float:
        means = [point.mean for point in one.points if point is not None]
        return plain_statistics.fmean(means) if means else -1.0

    ordered = sorted(series, key=mean, reverse=True)
    note = f"The {MOST_SERIES} strongest of {len(ordered)} are drawn." if len(ordered) > MOST_SERIES else ""
    return tuple(ordered[:MOST_SERIES]), note


Observation = tuple[str, float, Hashable]
"""A category, a value and the cluster that it was drawn in."""


def breakdowns(
    groups: Mapping[Setting, Sequence[Record]],
    settings: Sequence[SettingFigures],
    axes: Sequence[str],
    seed: int,
) -> tuple[Chart, ...]:
    """Match rate by sentence length and by token frequency, under the defense that leaked most."""
    scored = [one for one in settings if one.match is not None]
    texts = [
        s for group in groups.values() for r in scored_of(group) for s in r.sentences if s.reference_tokens
    ]
    if not scored or not texts:
        return ()
    undefended = any(value_of(one.setting, "defense") == () for one in scored)
    defense = () if undefended else value_of(max(scored, key=leaked).setting, "defense")
    others = [axis for axis in axes if axis != "defense"]
    chosen = {
        named(one.setting, others) or str(value_of(one.setting, "attack")): scored_of(groups[one.setting])
        for one in scored
        if value_of(one.setting, "defense") == defense
    }
    if "defense" not in axes:
        under = ""
    else:
        under = "No defense. " if undefended else f"Behind {in_words('defense', defense)}. "
    bins = _length_bins([len(sentence.reference_tokens) for sentence in texts])
    counts = _token_counts(groups)

    def by_length(record: Record) -> Iterable[Observation]:
        for sentence, value in zip(record.sentences, values_of(record, "token_match_rate"), strict=True):
            if sentence.reference_tokens:
                yield _bin_of(len(sentence.reference_tokens), bins), value, cluster_of(record)

    def by_frequency(record: Record) -> Iterable[Observation]:
        for sentence in record.sentences:
            for at, token in enumerate(sentence.reference_tokens):
                right = at < len(sentence.recovered_tokens) and sentence.recovered_tokens[at] == token
                count = counts[record.cell.model, token]
                yield _bin_of(count, FREQUENCY_BINS), float(right), cluster_of(record)

    return (
        _breakdown("By sentence length", "tokens in the sentence", bins, chosen, by_length, under, seed),
        _breakdown(
            "By token frequency",
            "how often the token occurs in the evaluated sentences",
            FREQUENCY_BINS,
            chosen,
            by_frequency,
            under,
            seed,
        ),
    )


Bins = Sequence[tuple[int, int | None]]


def _breakdown(
    title: str,
    axis: str,
    bins: Bins,
    chosen: Mapping[str, Sequence[Record]],
    observe: Callable[[Record], Iterable[Observation]],
    note: str,
    seed: int,
) -> Chart:
    found: list[tuple[str, dict[str, list[tuple[float, Hashable]]]]] = []
    for name, records in chosen.items():
        seen: dict[str, list[tuple[float, Hashable]]] = defaultdict(list)
        for record in records:
            for category, value, cluster in observe(record):
                seen[category].append((value, cluster))
        found.append((name, seen))
    categories = [words for words in map(_bin_words, bins) if any(seen[words] for _, seen in found)]
    drawn, left_out = _strongest(
        Series(
            name=name,
            points=tuple(
                bootstrap_mean(*zip(*seen[category], strict=True), seed=seed) if seen[category] else None
                for category in categories
            ),
        )
        for name, seen in found
    )
    return Chart(
        title=title, axis=axis, categories=tuple(categories), series=drawn, note=f"{note}{left_out}".strip()
    )


def _length_bins(lengths: Sequence[int]) -> Bins:
    """Up to five bins with about as many sentences each."""
    ends = np.quantile(lengths, np.linspace(0, 1, LENGTH_BINS + 1)[1:], method="lower")
    uppers = sorted({int(end) for end in ends})
    lowers = [min(lengths), *(upper + 1 for upper in uppers[:-1])]
    return list(zip(lowers, uppers, strict=True))


def _bin_of(number: int, bins: Bins) -> str:
    return next(
        _bin_words((low, high)) for low, high in bins if number >= low and (high is None or number <= high)
    )


def _bin_words(edges: tuple[int, int | None]) -> str:
    low, high = edges
    if high is None:
        return f"{low}+"
    return f"{low}" if low == high else f"{low}–{high}"


def _token_counts(groups: Mapping[Setting, Sequence[Record]]) -> Counter[tuple[str, str]]:
    """How often each model's token occurs in the evaluated sentences, each sentence counted once."""
    sentences = {
        (record.cell.model, sentence.reference): sentence.reference_tokens
        for group in groups.values()
        for record in scored_of(group)
        for sentence in record.sentences
    }
    return Counter((model, token) for (model, _), tokens in sentences.items() for token in tokens)
