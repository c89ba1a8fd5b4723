"""What a report quotes of records: texts, secrets, errors, and what attacks noted."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from textleak.evaluation.records import Record, SentenceRecord
from textleak.reports.figures import SettingFigures, leaked, scored_of
from textleak.reports.settings import Setting, named
from textleak.words import count_of

# Our choices, so that a page of a long grid stays readable; whatever they leave out is said.
MOST_EXAMPLES = 40
EXAMPLES_EACH = 3
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[-+]?\d+)?")


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


def examples_of(
    groups: Mapping[Setting, Sequence[Record]], settings: Sequence[SettingFigures]
) -> tuple[Examples, ...]:
    """Of each setting that was scored the sentences that leaked most and least, the setting that leaked most first."""
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


def failures_of(groups: Mapping[Setting, Sequence[Record]], axes: Sequence[str]) -> tuple[Failure, ...]:
    """Batches without an answer, those of a setting with the same error together."""
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


def notes_of(groups: Mapping[Setting, Sequence[Record]], axes: Sequence[str]) -> list[str]:
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


def unknown_in_words(records: Iterable[Record]) -> tuple[str, ...]:
    """How many tokens of the sentences the models' vocabularies lack, in a sentence; nothing where they lack none."""
    lacking = {
        (record.cell.model, sentence.reference): sentence.unknown_tokens
        for record in records
        for sentence in record.sentences
    }
    count = sum(lacking.values())
    if not count:
        return ()
    verb, pronoun = ("has", "it counts") if count == 1 else ("have", "they count")
    return (
        f"{count_of(count, 'token')} of the sentences {verb} no entry in the model's vocabulary: no text can be "
        f"recovered from {'it' if count == 1 else 'them'}, and {pronoun} in no figure.",
    )


def unscored_of(records: Iterable[Record]) -> tuple[str, ...]:
    """What was recovered where nothing could be scored."""
    return tuple(
        text
        for record in records
        if record.status == "done" and not record.sentences
        for text in record.surplus
    )


def secrets_of(
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
