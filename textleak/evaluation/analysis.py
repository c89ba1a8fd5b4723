"""What records add up to: every figure of a report as plain typed values. Draws nothing and writes nothing.

A *setting* is a cell without its seed. The figures of a setting are means over its sentences; the intervals
come from drawing its batches, all seeds of a batch together.
"""

from __future__ import annotations

import dataclasses
import statistics as plain_statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from textleak.evaluation.reading import Findings
from textleak.evaluation.records import Record, SentenceRecord
from textleak.evaluation.settings import (
    AXES,
    Setting,
    in_words,
    named,
    same_defense,
    setting_of,
    strength_of,
    strength_order,
    value_of,
    varying,
    without,
)
from textleak.evaluation.statistics import Interval, bootstrap_mean, bootstrap_means
from textleak.evaluation.utility import Utility, UtilityRow
from textleak.words import count_of

# By the name that a record has for the mean, and the one that a sentence has for its own.
FIGURES: Mapping[str, str] = {
    "token_match_rate": "token_match_rate",
    "token_recall": "token_recall",
    "exact_rate": "exact",
    "rouge1": "rouge1",
    "rouge2": "rouge2",
    "rougeL": "rougeL",
    "rouge1_words": "rouge1_words",
    "rouge2_words": "rouge2_words",
    "rougeL_words": "rougeL_words",
}

# Our choices, so that a page of a long grid stays readable; whatever they leave out is said.
MOST_SERIES = 6
MOST_CHARTS = 24
MOST_EXAMPLES = 40
EXAMPLES_EACH = 3
LENGTH_BINS = 5
# How often a token occurs in the evaluated sentences.
FREQUENCY_BINS = ((1, 1), (2, 3), (4, 9), (10, 29), (30, None))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingFigures:
    """What one setting gave.

    Attributes:
        setting: its values along the axes.
        words: the setting told by what varies in the evaluation.
        seeds: that were pooled.
        batches: that were done; `failed`, that weren't.
        sentences: scored, over all seeds.
        tokens: n, the mean over batches; `hidden_size`, D.
        tokens_per_hidden: n/D: mean, least and most over batches.
        figures: each figure's mean and interval; empty where nothing was scored.
        secrets: share of the planted secrets that were recovered in full; None where none was planted.
        secrets_recovered: how many, of `secrets_planted`.
        verified: batches whose answer reproduces the shared gradient, of `verifiable`.
        seconds: median of a batch; likewise `cpu_seconds`.
        epsilon: of `dpsgd`.
    """

    setting: Setting
    words: str
    seeds: tuple[int, ...]
    batches: int
    failed: int
    sentences: int
    tokens: float | None
    hidden_size: int | None
    tokens_per_hidden: tuple[float, float, float] | None
    figures: Mapping[str, Interval]
    secrets: Interval | None
    secrets_recovered: int
    secrets_planted: int
    verified: int
    verifiable: int
    seconds: float | None
    cpu_seconds: float | None
    epsilon: float | None
    weights: str

    @property
    def match(self) -> Interval | None:
        """The token match rate."""
        return self.figures.get("token_match_rate")

    @property
    def exact(self) -> Interval | None:
        """The share of sentences that were recovered word for word."""
        return self.figures.get("exact_rate")


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseRow:
    """What the strongest attack got through a defense, and what the defense costs."""

    defense: tuple[str, ...]
    words: str
    strongest: SettingFigures
    by: str
    utility: UtilityRow | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """The settings that differ only in the attack."""

    words: tuple[str, ...]
    cells: tuple[SettingFigures | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """Every setting at a glance: rows by `axes`, a column an attack."""

    axes: tuple[str, ...]
    attacks: tuple[str, ...]
    rows: tuple[MatrixRow, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A sentence and what was recovered of it."""

    sentence: SentenceRecord
    batch: int
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Of one setting, the sentences of which most and least was recovered."""

    words: str
    rate: float
    most: tuple[Example, ...]
    least: tuple[Example, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FoundSecret:
    """A planted secret that was recovered, and in which settings."""

    text: str
    settings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """A batch without an answer."""

    words: str
    batch: int
    seed: int
    error: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """All that a page says.

    Attributes:
        headline: what leaked most under what, and more in a sentence each.
        common: what is the same in all settings, by axis.
        axes: along which settings differ.
        settings: in the order of the grid.
        matrix: None where there is only one setting.
        defenses: from none over each kind, weak to strong; empty where no defense was evaluated.
        utility: how the costs were measured.
        ladders: match rate against a defense's strength.
        breakdowns: match rate against sentence length and token frequency.
        examples: by setting, the one that leaked most first.
        found: what an unscored run recovered: nobody knows whether it is right.
        secrets: that were recovered at least once; `secrets_planted`, how many there are in all.
        failures: batches without an answer.
        notes: of the attacks and of this report.
    """

    evaluation: Findings
    headline: tuple[str, ...]
    common: Mapping[str, str]
    axes: tuple[str, ...]
    settings: tuple[SettingFigures, ...]
    matrix: Matrix | None
    defenses: tuple[DefenseRow, ...]
    utility: Utility | None
    ladders: tuple[Chart, ...]
    breakdowns: tuple[Chart, ...]
    examples: tuple[Examples, ...]
    found: tuple[str, ...]
    secrets: tuple[FoundSecret, ...]
    secrets_planted: int
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]


def analyze(evaluation: Findings, *, utility: Utility | None = None, seed: int = 0) -> Report:
    """Every figure of a report.

    Args:
        evaluation: what a folder holds.
        utility: what defenses cost, where that was measured.
        seed: of the bootstrap's draws.
    """
    by_setting: dict[Setting, list[Record]] = defaultdict(list)
    for record in evaluation.records:
        by_setting[setting_of(record.cell)].append(record)
    groups = {setting: by_setting[setting] for setting in _in_order(by_setting)}
    axes = varying(groups)
    settings = tuple(_figures(setting, group, axes, seed) for setting, group in groups.items())
    ladders, left_out = _ladders(settings, axes)
    notes = [f"{left_out} more charts of defenses are left out; --json has every figure."] if left_out else []
    if evaluation.torn:
        notes.append(f"{evaluation.torn} torn or unknown line of records was passed over.")
    notes += dict.fromkeys(note for record in evaluation.records for note in record.notes)
    examples = _examples(groups, settings)
    if len(examples) < sum(one.sentences > 0 for one in settings):
        notes.append(f"Examples are shown of the {len(examples)} settings that leaked most.")
    secrets, planted = _secrets(groups, axes)
    return Report(
        evaluation=evaluation,
        headline=headline(settings, axes, kind=evaluation.kind),
        common=_common(settings, axes),
        axes=axes,
        settings=settings,
        matrix=_matrix(settings, axes),
        defenses=_defenses(settings, axes, utility),
        utility=utility,
        ladders=ladders,
        breakdowns=() if evaluation.kind == "run" else _breakdowns(groups, settings, axes, seed),
        examples=examples,
        found=_found(evaluation.records),
        secrets=secrets,
        secrets_planted=planted,
        failures=tuple(
            Failure(words=named(setting, axes), batch=record.batch, seed=record.cell.seed, error=record.error)
            for setting, group in groups.items()
            for record in group
            if record.status == "failed"
        ),
        notes=tuple(notes),
    )


def _common(settings: Sequence[SettingFigures], axes: Sequence[str]) -> dict[str, str]:
    """What is the same in all settings, the weights as they were loaded."""
    if not settings:
        return {}
    same = {axis: in_words(axis, value_of(settings[0].setting, axis)) for axis in AXES if axis not in axes}
    loaded = {one.weights for one in settings if one.weights}
    if "weights" in same and len(loaded) == 1:
        same["weights"] = loaded.pop()
    return same


def _in_order(settings: Iterable[Setting]) -> list[Setting]:
    """Settings as they came, but for defenses, which go from none to strong, and batch sizes."""
    seen: dict[str, dict[Any, int]] = {axis: {} for axis in AXES}
    listed = list(settings)
    for setting in listed:
        for axis, value in zip(AXES, setting, strict=True):
            seen[axis].setdefault(value, len(seen[axis]))

    def key(setting: Setting) -> tuple[Any, ...]:
        ranks: list[Any] = []
        for axis, value in zip(AXES, setting, strict=True):
            if axis == "defense":
                ranks.append(strength_order(value))
            else:
                ranks.append(value if axis == "batch_size" else seen[axis][value])
        return tuple(ranks)

    return sorted(listed, key=key)


# Figures


def cluster_of(record: Record) -> Hashable:
    """What makes two batches the same draw: their sentences (under another seed they are no new ones)."""
    return tuple(sentence.reference for sentence in record.sentences) or (record.cell.seed, record.batch)


def values_of(record: Record, figure: str) -> list[float]:
    """A figure of each sentence of a batch, so that their mean is the batch's.

    Outputs that no sentence was assigned to lower a batch's token match rate: each sentence carries its share.
    """
    own = [float(getattr(sentence, FIGURES[figure])) for sentence in record.sentences]
    if figure != "token_match_rate" or record.token_match_rate is None or not record.surplus or not sum(own):
        return own
    scale = record.token_match_rate * len(own) / sum(own)
    return [value * scale for value in own]


def _scored(group: Iterable[Record]) -> list[Record]:
    return [record for record in group if record.status == "done" and record.sentences]


def _figures(setting: Setting, group: Sequence[Record], axes: Sequence[str], seed: int) -> SettingFigures:
    done = [record for record in group if record.status == "done"]
    scored = _scored(done)
    clusters = [cluster_of(record) for record in scored for _ in record.sentences]
    figures: dict[str, Interval] = {}
    if clusters:
        columns = [[x for record in scored for x in values_of(record, figure)] for figure in FIGURES]
        intervals = bootstrap_means(np.array(columns).T, clusters, seed=seed)
        figures = dict(zip(FIGURES, intervals, strict=True))
    secrets = [
        (float(secret.recovered), cluster_of(record))
        for record in scored
        for sentence in record.sentences
        for secret in sentence.secrets
    ]
    ratios = [record.tokens_per_hidden for record in done if record.tokens_per_hidden is not None]
    tokens = [record.tokens for record in done if record.tokens is not None]
    return SettingFigures(
        setting=setting,
        words=named(setting, axes) or named(setting, ("attack", "model")),
        seeds=tuple(sorted({record.cell.seed for record in group})),
        batches=len(done),
        failed=len(group) - len(done),
        sentences=len(clusters),
        tokens=plain_statistics.fmean(tokens) if tokens else None,
        hidden_size=next((record.hidden_size for record in done if record.hidden_size), None),
        tokens_per_hidden=(plain_statistics.fmean(ratios), min(ratios), max(ratios)) if ratios else None,
        figures=figures,
        secrets=bootstrap_mean(*zip(*secrets, strict=True), seed=seed) if secrets else None,
        secrets_recovered=sum(value > 0 for value, _ in secrets),
        secrets_planted=len(secrets),
        verified=sum(record.verified is True for record in done),
        verifiable=sum(record.verified is not None for record in done),
        seconds=plain_statistics.median(record.seconds for record in done) if done else None,
        cpu_seconds=plain_statistics.median(record.cpu_seconds for record in done) if done else None,
        epsilon=next((record.epsilon for record in done if record.epsilon is not None), None),
        weights=next((record.weights for record in done if record.weights), ""),
    )


def leaked(one: SettingFigures) -> tuple[float, float, int]:
    """A key by which the setting that leaked most is the greatest; unscored ones come last."""
    if one.match is None or one.exact is None:
        return (-1.0, 0.0, 0)
    return (one.match.mean, one.exact.mean, one.sentences)


# Words


def percent(rate: float) -> str:
    """A rate in percent as few digits as are honest: 0 and 100 only where they are exact."""
    hundredfold = 100 * rate
    if rate in (0, 1) or 9.5 <= hundredfold < 99.5:
        return f"{hundredfold:.0f}"
    shown = f"{hundredfold:.1f}"
    return {"0.0": "<0.1", "100.0": ">99.9"}.get(shown, shown)


def headline(settings: Sequence[SettingFigures], axes: Sequence[str], *, kind: str) -> tuple[str, ...]:
    """What leaked most under what, in a sentence, and what else a hurried reader has to know."""
    scored = [one for one in settings if one.match is not None]
    if not scored:
        return (_nothing_scored(settings, kind),)
    most = max(scored, key=leaked)
    assert most.match is not None
    assert most.exact is not None
    attack, defense = (value_of(most.setting, axis) for axis in ("attack", "defense"))
    behind = f"Behind {in_words('defense', defense)}" if defense else "With no defense"
    amount = "nothing" if most.match.mean == 0 else f"{percent(most.match.mean)} % of the tokens"
    exactly = round(most.exact.mean * most.sentences)
    others = dict.fromkeys(("model", "batch_size", *axes))
    context = named(most.setting, [axis for axis in others if axis not in ("attack", "defense")])
    rank = f", the most of {len(scored)} settings" if len(scored) > 1 else ""
    sentences = [
        f"{behind}, {attack} recovered {amount}{in_range(most.match)} and {exactly} of "
        f"{count_of(most.sentences, 'sentence')} word for word{rank} ({context})."
    ]
    random = sum(one.weights == "random" for one in scored)
    if random:
        which = "The weights" if random == len(scored) else f"The weights of {count_of(random, 'setting')}"
        sentences.append(f"{which} were random: take pretrained ones for figures about a real model.")
    as_much = sum(leaked(one)[:2] == leaked(most)[:2] for one in scored) - 1
    if as_much and most.match.mean:
        sentences.append(f"As much leaked in {count_of(as_much, 'more setting')}.")
    defended = {value_of(one.setting, "defense") for one in scored} - {()}
    if defended:
        strongest = {
            defense: max((o for o in scored if value_of(o.setting, "defense") == defense), key=leaked)
            for defense in defended
        }
        best = min(sorted(strongest, key=strength_order), key=lambda defense: leaked(strongest[defense])[:2])
        held = strongest[best].match
        assert held is not None
        sentences.append(
            f"The defense that held best was {in_words('defense', best)}: "
            f"the strongest attack got {percent(held.mean)} % of the tokens through it{in_range(held)}."
        )
    return tuple(sentences)


def in_range(interval: Interval) -> str:
    """A rate's interval as a sentence says it."""
    if interval.low is None or interval.high is None:
        return " (one batch, so no interval)"
    if interval.low == interval.high:
        return " (in every batch)"
    return f" (95 % interval {percent(interval.low)} to {percent(interval.high)} %)"


def _nothing_scored(settings: Sequence[SettingFigures], kind: str) -> str:
    batches, failed = sum(one.batches for one in settings), sum(one.failed for one in settings)
    if batches:
        return "The truth isn't known, so nobody can say how much of what was found is right."
    if failed:
        return (
            "The run has no result."
            if kind == "run"
            else f"Every batch failed ({failed} of {failed}): nothing can be said about what leaks."
        )
    return "No batch has been evaluated yet."


# Tables


def _matrix(settings: Sequence[SettingFigures], axes: Sequence[str]) -> Matrix | None:
    if len(settings) < 2:
        return None
    attacks = tuple(dict.fromkeys(value_of(one.setting, "attack") for one in settings))
    rows: dict[Setting, dict[str, SettingFigures]] = defaultdict(dict)
    for one in settings:
        rows[without(one.setting, "attack")][value_of(one.setting, "attack")] = one
    shown = tuple(axis for axis in axes if axis != "attack")
    return Matrix(
        axes=shown,
        attacks=attacks,
        rows=tuple(
            MatrixRow(
                words=tuple(
                    in_words(axis, value_of(next(iter(row.values())).setting, axis)) for axis in shown
                ),
                cells=tuple(row.get(attack) for attack in attacks),
            )
            for row in rows.values()
        ),
    )


def _defenses(
    settings: Sequence[SettingFigures], axes: Sequence[str], utility: Utility | None
) -> tuple[DefenseRow, ...]:
    found: dict[tuple[str, ...], list[SettingFigures]] = defaultdict(list)
    for one in settings:
        found[value_of(one.setting, "defense")].append(one)
    if not any(found):
        return ()
    costs = {same_defense(row.defense): row for row in utility.rows} if utility else {}
    rows = []
    for defense in sorted(found, key=strength_order):
        strongest = max(found[defense], key=leaked)
        others = [axis for axis in axes if axis != "defense"]
        rows.append(
            DefenseRow(
                defense=defense,
                words=in_words("defense", defense),
                strongest=strongest,
                by=named(strongest.setting, others or ("attack",)),
                utility=costs.get(same_defense(defense)),
            )
        )
    return tuple(rows)


# Charts


def _ladders(settings: Sequence[SettingFigures], axes: Sequence[str]) -> tuple[tuple[Chart, ...], int]:
    """A chart for each kind of defense and each context, and how many were left out."""
    contexts: dict[Setting, list[SettingFigures]] = defaultdict(list)
    for one in settings:
        if one.match is not None:
            contexts[without(one.setting, "defense", "attack")].append(one)
    charts = []
    for group in contexts.values():
        where = named(group[0].setting, [axis for axis in axes if axis not in ("defense", "attack")])
        kinds: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for defense in sorted({value_of(one.setting, "defense") for one in group}, key=strength_order):
            if defense:
                kinds[strength_of(defense).kind].append(defense)
        for kind, defenses in kinds.items():
            chart = _ladder(kind, where, defenses, group)
            if chart is not None:
                charts.append(chart)
    return tuple(charts[:MOST_CHARTS]), max(0, len(charts) - MOST_CHARTS)


def _ladder(
    kind: str, where: str, defenses: list[tuple[str, ...]], group: Sequence[SettingFigures]
) -> Chart | None:
    """Match rate against the strength of one kind of defense; None where there is no more than one point."""
    at = {(value_of(o.setting, "defense"), value_of(o.setting, "attack")): o.match for o in group}
    attacks = tuple(dict.fromkeys(attack for _, attack in at))
    steps = [(), *defenses] if any(defense == () for defense, _ in at) else defenses
    if len(steps) < 2:
        return None
    levels = [dict(strength_of(defense).levels) for defense in defenses]
    names = [name for name in levels[0] if len({str(level.get(name)) for level in levels}) > 1] or list(
        levels[0]
    )
    labels = [", ".join(_level(level.get(name)) for name in names) or kind for level in levels]
    series = [Series(name=a, points=tuple(at.get((defense, a)) for defense in steps)) for a in attacks]
    chosen, note = _strongest(series)
    return Chart(
        title=f"{kind}{f' ({where})' if where else ''}",
        axis=f"{kind} {', '.join(names)}",
        categories=(*(["none"] if steps[0] == () else []), *labels),
        series=chosen,
        note=note,
    )


def _level(value: float | str | None) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value or "")


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


def _breakdowns(
    groups: Mapping[Setting, Sequence[Record]],
    settings: Sequence[SettingFigures],
    axes: Sequence[str],
    seed: int,
) -> tuple[Chart, ...]:
    """Match rate by sentence length and by token frequency, under the defense that leaked most."""
    scored = [one for one in settings if one.match is not None]
    texts = [
        s for group in groups.values() for r in _scored(group) for s in r.sentences if s.reference_tokens
    ]
    if not scored or not texts:
        return ()
    undefended = any(value_of(one.setting, "defense") == () for one in scored)
    defense = () if undefended else value_of(max(scored, key=leaked).setting, "defense")
    others = [axis for axis in axes if axis != "defense"]
    chosen = {
        named(one.setting, others) or str(value_of(one.setting, "attack")): _scored(groups[one.setting])
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
        for record in _scored(group)
        for sentence in record.sentences
    }
    return Counter((model, token) for (model, _), tokens in sentences.items() for token in tokens)


# Texts


def _examples(
    groups: Mapping[Setting, Sequence[Record]], settings: Sequence[SettingFigures]
) -> tuple[Examples, ...]:
    found = []
    for one in sorted((one for one in settings if one.match is not None), key=leaked, reverse=True):
        shown = [
            Example(sentence=sentence, batch=record.batch, seed=record.cell.seed)
            for record in _scored(groups[one.setting])
            for sentence in record.sentences
            if sentence.reference_tokens
        ]
        # Of two that leaked alike, the longer one says more.
        shown.sort(
            key=lambda e: (e.sentence.token_match_rate, len(e.sentence.reference_tokens)), reverse=True
        )
        if not shown or one.match is None:
            continue
        most = shown[:EXAMPLES_EACH]
        rest = [e for e in shown if e.sentence.token_match_rate < most[-1].sentence.token_match_rate]
        found.append(
            Examples(
                words=one.words,
                rate=one.match.mean,
                most=tuple(most),
                least=tuple(reversed(rest[-EXAMPLES_EACH:])),
            )
        )
    return tuple(found[:MOST_EXAMPLES])


def _found(records: Iterable[Record]) -> tuple[str, ...]:
    """What was recovered where nothing could be scored."""
    return tuple(
        text
        for record in records
        if record.status == "done" and not record.sentences
        for text in record.surplus
    )


def _secrets(
    groups: Mapping[Setting, Sequence[Record]], axes: Sequence[str]
) -> tuple[tuple[FoundSecret, ...], int]:
    """The secrets that were recovered, those found in most settings first, and how many were planted."""
    settings: dict[str, dict[str, None]] = {}
    for setting, group in groups.items():
        for record in _scored(group):
            for secret in (secret for sentence in record.sentences for secret in sentence.secrets):
                where = settings.setdefault(secret.text, {})
                if secret.recovered:
                    where[named(setting, axes) or named(setting, ("attack",))] = None
    found = [FoundSecret(text=text, settings=tuple(where)) for text, where in settings.items() if where]
    return tuple(sorted(found, key=lambda one: -len(one.settings))), len(settings)
