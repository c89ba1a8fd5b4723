"""What records add up to: all that a report says, as plain typed values. Draws nothing and writes nothing."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from textleak.evaluation.records import Record
from textleak.jobs.verdict import Word
from textleak.reports.figures import SettingFigures, figures_of, leaked
from textleak.reports.headline import headline
from textleak.reports.quotes import (
    Examples,
    Failure,
    FoundSecret,
    examples_of,
    failures_of,
    notes_of,
    secrets_of,
    unknown_in_words,
    unscored_of,
)
from textleak.reports.reading import ONE_BATCH, Findings
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
from textleak.reports.verdict import proved_in_words, recommendation, threat_model, word_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class DefenseRow:
    """What the strongest attack got through a defense, and what the defense costs.

    Attributes:
        failed: batches without an answer, of all attacks; `cut_off`, those that were ended early.
    """

    defense: tuple[str, ...]
    words: str
    strongest: SettingFigures
    by: str
    failed: int
    cut_off: int
    utility: UtilityRow | None

    @property
    def inconclusive(self) -> bool:
        """Whether more may leak through it than was found."""
        return self.cut_off > 0 and (self.strongest.match is None or self.strongest.match.mean < 1)


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
class Report:
    """All that a page says.

    Attributes:
        verdict: in a word.
        headline: what leaked most under what, and more in a sentence each.
        threat: who is imagined to attack, with what.
        proved: how much is proved without the truth, and of what: "6 of 6", "tokens"; None where nothing can be.
        recommendation: what follows from the defenses that were measured; "" where nothing does.
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
    verdict: Word
    headline: tuple[str, ...]
    threat: str
    proved: tuple[str, str] | None
    recommendation: str
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
    notes += notes_of(groups, axes) if evaluation.kind == "evaluation" else evaluation.records[0].notes
    examples = examples_of(groups, settings)
    if len(examples) < sum(one.sentences > 0 for one in settings):
        notes.append(f"Examples are shown of the {len(examples)} settings that leaked most.")
    secrets, planted = secrets_of(groups, axes)
    common = _common(settings, axes)
    return Report(
        evaluation=evaluation,
        verdict=word_of(evaluation, settings),
        headline=_headline(evaluation, settings, axes),
        threat=threat_model(evaluation, common),
        proved=proved_in_words(evaluation, settings),
        recommendation=recommendation(evaluation, settings),
        common=common,
        axes=axes,
        settings=settings,
        matrix=_matrix(settings, axes),
        defenses=_defenses(settings, axes, utility),
        utility=utility,
        ladders=charts,
        breakdowns=() if evaluation.kind == "run" else breakdowns(groups, settings, axes, seed),
        examples=examples,
        found=unscored_of(evaluation.records),
        secrets=secrets,
        secrets_planted=planted,
        failures=failures_of(groups, axes),
        notes=tuple(notes),
    )


def _headline(
    evaluation: Findings, settings: Sequence[SettingFigures], axes: Sequence[str]
) -> tuple[str, ...]:
    """What leaked most under what; of an audit why its verdict is what it is, of a run its summary first."""
    if evaluation.pictures is not None:
        return (evaluation.summary,)
    sentences = (
        *headline(settings, axes, kind=evaluation.kind, unfinished=evaluation.unfinished),
        *unknown_in_words(evaluation.records),
    )
    scored = any(one.match is not None for one in settings)
    if evaluation.audit is not None:
        return (evaluation.audit.reason, *(sentences if scored else ()))
    if evaluation.summary:
        return (evaluation.summary, *sentences[1 if scored else 0 :])
    return sentences


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
    if same.get("data") == ONE_BATCH:
        del same["data"]
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
                cut_off=sum(one.cut_off for one in found[defense]),
                utility=costs.get(same_defense(defense)),
            )
        )
    return tuple(rows)
