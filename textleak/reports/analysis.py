"""What records add up to: all that a report says, as plain typed values. Draws nothing and writes nothing."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from textleak.evaluation.records import Record, SentenceRecord, cut_off_in_words
from textleak.reports.figures import (
    SettingFigures,
    figures_of,
    in_range,
    leaked,
    percent,
    scored_of,
)
from textleak.reports.reading import Findings
from textleak.reports.series import Chart, breakdowns, ladders
from textleak.reports.settings import (
    AXES,
    OPPONENT,
    Setting,
    in_words,
    named,
    opponent_of,
    opponents,
    same_defense,
    setting_of,
    several_in_words,
    strength_order,
    told,
    value_of,
    varying,
    without,
)
from textleak.reports.utility import Utility, UtilityRow
from textleak.words import count_of

# Our choices, so that a page of a long grid stays readable; whatever they leave out is said.
MOST_EXAMPLES = 40
EXAMPLES_EACH = 3
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseRow:
    """What the strongest attack got through a defense, how many batches failed, and what the defense costs."""

    defense: tuple[str, ...]
    words: str
    strongest: SettingFigures
    by: str
    failed: int
    utility: UtilityRow | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatrixRow:
    """The settings that differ only in who attacks."""

    words: tuple[str, ...]
    cells: tuple[SettingFigures | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matrix:
    """Every setting at a glance: rows by `axes`, a column an attack (and what it is told)."""

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
    """Batches of one setting that ended with the same error.

    Attributes:
        words: the setting.
        error: what went wrong.
        batches: the numbers of the batches, by seed.
    """

    words: str
    error: str
    batches: Mapping[int, tuple[int, ...]]

    @property
    def listed(self) -> str:
        """The batches in words: "0–3, 7", with their seeds where these aren't all 0."""
        by_seed = {seed: ranges(numbers) for seed, numbers in self.batches.items()}
        if set(by_seed) == {0}:
            return by_seed[0]
        return "; ".join(f"seed {seed}: {numbers}" for seed, numbers in by_seed.items())


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
        failures: batches without an answer, those with the same error together.
        notes: of this report and of the attacks, those that differ in their numbers together.
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
    by_setting = _by_setting(evaluation.records)
    groups = {setting: by_setting[setting] for setting in _in_order(by_setting)}
    axes = _told_by(varying(groups))
    settings = tuple(figures_of(setting, group, axes, seed) for setting, group in groups.items())
    charts, left_out = ladders(settings, axes)
    notes = [f"{left_out} more charts of defenses are left out; --json has every figure."] if left_out else []
    notes += _notes(groups, axes) if evaluation.kind == "evaluation" else evaluation.records[0].notes
    examples = _examples(groups, settings)
    if len(examples) < sum(one.sentences > 0 for one in settings):
        notes.append(f"Examples are shown of the {len(examples)} settings that leaked most.")
    secrets, planted = _secrets(groups, axes)
    return Report(
        evaluation=evaluation,
        headline=headline(settings, axes, kind=evaluation.kind, unfinished=evaluation.unfinished),
        common=_common(settings, axes),
        axes=axes,
        settings=settings,
        matrix=_matrix(settings, axes),
        defenses=_defenses(settings, axes, utility),
        utility=utility,
        ladders=charts,
        breakdowns=() if evaluation.kind == "run" else breakdowns(groups, settings, axes, seed),
        examples=examples,
        found=_found(evaluation.records),
        secrets=secrets,
        secrets_planted=planted,
        failures=_failures(groups, axes),
        notes=tuple(notes),
    )


def _by_setting(records: Sequence[Record]) -> dict[Setting, list[Record]]:
    """Records by their settings, with weights as loaded; a failed batch goes where others of its kind are."""
    of_cell = {record.cell: record.weights for record in records if record.weights}
    of_model = {record.cell.model: record.weights for record in records if record.weights}
    found: dict[Setting, list[Record]] = defaultdict(list)
    for record in records:
        weights = record.weights or of_cell.get(record.cell) or of_model.get(record.cell.model, "")
        found[setting_of(record.cell, weights)].append(record)
    return found


def _told_by(axes: Sequence[str]) -> tuple[str, ...]:
    """Axes that a reader is told of: weights stand in the model's name."""
    shown = {"model" if axis == "weights" else axis for axis in axes}
    return tuple(axis for axis in AXES if axis in shown)


def _common(settings: Sequence[SettingFigures], axes: Sequence[str]) -> dict[str, str]:
    """What is the same in all settings; of the weights, whichever were loaded."""
    if not settings:
        return {}
    same = {axis: told(settings[0].setting, axis) for axis in AXES if axis not in axes}
    if loaded := [one.weights for one in settings if one.weights]:
        same["weights"] = several_in_words(loaded)
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


# Words


def headline(
    settings: Sequence[SettingFigures], axes: Sequence[str], *, kind: str, unfinished: int = 0
) -> tuple[str, ...]:
    """What leaked most under what, in a sentence, and what else a hurried reader has to know.

    Args:
        settings: with their figures.
        axes: along which they differ.
        kind: "evaluation" or "run".
        unfinished: batches without a record.
    """
    scored = [one for one in settings if one.match is not None]
    if not scored:
        return (_nothing_scored(settings, kind),)
    done, failed = sum(one.batches for one in scored), sum(one.failed for one in settings)
    missing = []
    if unfinished:
        there = count_of(done + failed + unfinished, "batch")
        missing.append(f"Unfinished: {unfinished:,} of {there} are still to be evaluated.")
    if failed:
        missing.append(f"{count_of(failed, 'batch')} failed and {'is' if failed == 1 else 'are'} in no mean.")
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
    random = [one for one in scored if one.weights == "random"]
    if random:
        which = "" if len(random) == len(scored) else f" of {count_of(len(random), 'setting')}"
        sentences.append(
            f"The weights{which} were random: take pretrained ones for figures about a real model."
        )
    cut_off = sum(one.cut_off for one in scored)
    if cut_off:
        sentences.append(cut_off_in_words(cut_off, done))
    as_much = sum(leaked(one)[:2] == leaked(most)[:2] for one in scored) - 1
    if as_much and most.match.mean:
        sentences.append(f"As much leaked in {count_of(as_much, 'more setting')}.")
    return (sentences[0], *missing, *sentences[1:], *_held_best(settings))


def _held_best(settings: Sequence[SettingFigures]) -> tuple[str, ...]:
    """Which defense let least through to its strongest attack; nothing where there is none to compare it with.

    A defense behind which all batches of a setting failed is none to call the best: that attack may be the strongest.
    """
    strongest: dict[tuple[str, ...], SettingFigures] = {}
    failed: Counter[tuple[str, ...]] = Counter()
    unknown = set()
    for one in settings:
        defense = value_of(one.setting, "defense")
        failed[defense] += one.failed
        if one.match is not None:
            strongest[defense] = max(one, strongest.get(defense, one), key=leaked)
        elif one.failed:
            unknown.add(defense)
    defenses = sorted(
        (defense for defense in strongest if defense and defense not in unknown), key=strength_order
    )
    if not defenses or len(strongest) < 2:
        return ()
    best = min(defenses, key=lambda defense: leaked(strongest[defense])[:2])
    held, undefended = strongest[best].match, strongest[()].match if () in strongest else None
    assert held is not None
    if undefended is not None and held.mean >= undefended.mean:
        return () if unknown else ("No defense held anything back.",)
    one = strongest[best]
    late = f", though its time was up in {one.cut_off} of {one.batches}" if one.cut_off else ""
    if failed[best]:
        late += f", though {count_of(failed[best], 'batch')} behind it failed"
    return (
        f"The defense that held best was {in_words('defense', best)}: "
        f"the strongest attack got {percent(held.mean)} % of the tokens through it{in_range(held)}{late}.",
    )


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
    columns = opponents((one.setting for one in settings), axes)
    rows: dict[Setting, dict[Setting, SettingFigures]] = defaultdict(dict)
    for one in settings:
        rows[without(one.setting, *OPPONENT)][opponent_of(one.setting)] = one
    shown = tuple(axis for axis in axes if axis not in OPPONENT)
    return Matrix(
        axes=shown,
        attacks=tuple(columns.values()),
        rows=tuple(
            MatrixRow(
                words=tuple(told(next(iter(row.values())).setting, axis) for axis in shown),
                cells=tuple(row.get(column) for column in columns),
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
        others = {"attack", *axes} - {"defense"}
        rows.append(
            DefenseRow(
                defense=defense,
                words=in_words("defense", defense),
                strongest=strongest,
                by=named(strongest.setting, others),
                failed=sum(one.failed for one in found[defense]),
                utility=costs.get(same_defense(defense)),
            )
        )
    return tuple(rows)


# Texts


def _examples(
    groups: Mapping[Setting, Sequence[Record]], settings: Sequence[SettingFigures]
) -> tuple[Examples, ...]:
    found = []
    for one in sorted((one for one in settings if one.match is not None), key=leaked, reverse=True):
        shown = [
            Example(sentence=sentence, batch=record.batch, seed=record.cell.seed)
            for record in scored_of(groups[one.setting])
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


def _failures(groups: Mapping[Setting, Sequence[Record]], axes: Sequence[str]) -> tuple[Failure, ...]:
    found: dict[tuple[str, str], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for setting, group in groups.items():
        for record in group:
            if record.status == "failed":
                found[named(setting, axes), record.error][record.cell.seed].append(record.batch)
    return tuple(
        Failure(
            words=words,
            error=error,
            batches={seed: tuple(sorted(numbers)) for seed, numbers in sorted(by_seed.items())},
        )
        for (words, error), by_seed in found.items()
    )


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers with runs drawn together: "0–3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _notes(groups: Mapping[Setting, Sequence[Record]], axes: Sequence[str]) -> list[str]:
    """What attacks noted, each note once, whatever its numbers, with where it was noted and how often."""
    noted: dict[str, dict[Setting, list[str]]] = defaultdict(lambda: defaultdict(list))
    for setting, group in groups.items():
        for record in group:
            for pattern, note in {_NUMBER.sub("#", note): note for note in record.notes}.items():
                noted[pattern][setting].append(note)
    found = []
    for where in noted.values():
        notes = [note for several in where.values() for note in several]
        words = [count_of(len(notes), "batch")]
        if len(groups) > 1:
            words.insert(
                0, named(next(iter(where)), axes) if len(where) == 1 else count_of(len(where), "setting")
            )
        if len({*notes}) > 1:
            words.append("with other numbers in some")
        found.append(f"{', '.join(words)}: {notes[0]}")
    return found


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
        for record in scored_of(group):
            for secret in (secret for sentence in record.sentences for secret in sentence.secrets):
                where = settings.setdefault(secret.text, {})
                if secret.recovered:
                    where[named(setting, axes) or named(setting, ("attack",))] = None
    found = [FoundSecret(text=text, settings=tuple(where)) for text, where in settings.items() if where]
    return tuple(sorted(found, key=lambda one: -len(one.settings))), len(settings)
