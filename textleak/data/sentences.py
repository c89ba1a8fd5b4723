"""Sentences to evaluate on: the bundled sample, a data set of the hub, or a file.

A column named `secrets` marks what must not leak: made-up secrets that stand in the sentence, separated by "|"
or in a list.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

from textleak import foreign
from textleak.data.hub import load_dataset
from textleak.data.planted import holds
from textleak.errors import InputError, unknown_name
from textleak.settings import EvaluationConfig
from textleak.words import count_of

SAMPLE = "sample"
# Hub id, configuration, and split: the papers draw their sentences from these (LAMP, Balunović et al. 2022, sec. 6).
_HUB: dict[str, tuple[str, str | None, str]] = {
    "cola": ("nyu-mll/glue", "cola", "train"),
    "sst2": ("stanfordnlp/sst2", None, "train"),
    "rotten_tomatoes": ("cornell-movie-review-data/rotten_tomatoes", None, "train"),
}
NAMES = (SAMPLE, *_HUB)
ENDINGS = (".txt", ".csv", ".tsv", ".jsonl")
_COLUMNS = ("sentence", "text")
_SECRETS = "secrets"
# What other encodings of Unicode begin with; the longer ones first.
_OTHER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A sentence with its class (None: drawn from the seed) and the secrets that were planted in it."""

    sentence: str
    label: int | None = None
    secrets: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The sentences of an evaluation.

    Attributes:
        name: of the data set, or the file as it was given.
        examples: in their order, blank and over-long ones left out.
        notes: sentences for a person: what was left out.
    """

    name: str
    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()

    def digest(self, count: int) -> str:
        """Hash of the first `count` examples."""
        plain = [dataclasses.astuple(example) for example in self.examples[:count]]
        return hashlib.blake2b(json.dumps(plain).encode(), digest_size=8).hexdigest()


def load(name: str, config: EvaluationConfig) -> Data:
    """The sentences of a data set or file.

    Args:
        name: one of `NAMES`, or a file with one of `ENDINGS`.
        config: says which columns, and from how many words on a sentence is left out.

    Raises:
        InputError: an unknown name, a data set that can't be had here, or a file that can't be read as one.
    """
    kept: list[Example] = []
    passed = _Passed()
    for example in _examples(name, config, passed):
        if name in _HUB and len(kept) == config.limit:
            break  # tens of thousands of others
        words = len(example.sentence.split())
        if not words:
            passed.blank += 1
        elif config.max_words is not None and words > config.max_words:
            passed.long += 1
        else:
            kept.append(dataclasses.replace(example, sentence=example.sentence.strip()))
    notes = [f"{name}: {note}" for note in passed.notes(config.max_words)]
    if not kept:
        raise InputError(f"{name} has no sentence in it.", why=" ".join(notes), fix="Give another --data.")
    return Data(name=name, examples=tuple(kept), notes=tuple(notes))


@dataclasses.dataclass(kw_only=True)
class _Passed:
    """How many lines or rows were passed over, or lost their class.

    Attributes:
        blank: without a sentence; `lacking` of them, as they have no such `column`.
        column: of the sentences; "" where there are no columns.
        long: with more words than are wanted.
        unlabeled: with something else than a class, such as `label`.
    """

    blank: int = 0
    lacking: int = 0
    column: str = ""
    long: int = 0
    unlabeled: int = 0
    label: str = ""

    def notes(self, max_words: int | None) -> Iterator[str]:
        """A sentence for each kind."""
        if blank := self.blank - self.lacking:
            line = (
                f"{count_of(blank, 'row')} without a sentence"
                if self.column
                else count_of(blank, "blank line")
            )
            yield f"{line} left out."
        if self.lacking:
            yield f"{count_of(self.lacking, 'row')} without a column {self.column!r} left out."
        if self.long:
            yield f"{count_of(self.long, 'sentence')} of more than {max_words} words left out."
        if self.unlabeled:
            yield (
                f"{count_of(self.unlabeled, 'label')} without the number of a class, such as {self.label!r}: "
                "drawn from the seed."
            )


def _examples(name: str, config: EvaluationConfig, passed: _Passed) -> Iterator[Example]:
    if name == SAMPLE:
        text = files("textleak.data").joinpath("samples", "sample.tsv").read_text("utf-8")
        return _from_rows(name, _split_rows(name, text, "\t"), "sentence", "label", passed)
    if name in _HUB:
        return _from_rows(name, _hub_rows(name), config.column, config.label_column, passed)
    path = Path(name)
    if path.suffix.lower() not in ENDINGS:
        if path.exists():
            raise InputError(
                f"{name} can't be read as a data set.",
                why=f"Its ending {path.suffix!r} is none of {', '.join(ENDINGS)}.",
                fix="Rename or convert it.",
            )
        raise unknown_name("data set", name, NAMES, fix=f"Or name a file: {', '.join(ENDINGS)}.")
    text = _read_text(path)
    if path.suffix.lower() == ".txt":
        if config.column is not None:
            raise InputError(f"{name} has no columns.", fix="Leave --column out: each line is a sentence.")
        return (Example(sentence=line) for line in io.StringIO(text, newline=None))
    if path.suffix.lower() == ".jsonl":
        rows = _json_rows(name, text)
    else:
        rows = _split_rows(name, text, "," if path.suffix.lower() == ".csv" else "\t")
    return _from_rows(name, rows, config.column, config.label_column, passed)


def _read_text(path: Path) -> str:
    """A file's text; the error names the line that isn't UTF-8."""
    try:
        content = foreign.read(path, most=foreign.MOST_ROWS)
    except OSError as error:
        raise InputError(f"{path} can't be read.", why=f"{error.strerror or error}.") from None
    for mark, encoding in _OTHER_MARKS:
        if content.startswith(mark):
            raise InputError(
                f"{path} is {encoding.upper()}, not UTF-8.",
                why="Its first bytes say so.",
                fix=f"Convert it, for example with `iconv -f {encoding} -t utf-8`.",
            )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, at = error.object[: error.start], error.object[error.start]  # without the byte order mark
        line = before.count(b"\n") + 1
        raise InputError(
            f"{path} is not UTF-8 in line {line}.",
            why=f"The byte 0x{at:02x} there belongs to another encoding.",
            fix="Convert it, for example with `iconv -f latin1 -t utf-8`.",
        ) from None


def _split_rows(name: str, text: str, separator: str) -> Iterator[dict[str, Any]]:
    """Rows of a .csv or .tsv file by column; in a .tsv file a quotation mark is a letter like any other."""
    tabs = separator == "\t"
    csv.field_size_limit(max(len(text) + 1, 131_072))
    reader = csv.DictReader(
        io.StringIO(text, newline=""),  # a cell may hold what str.splitlines() takes for the end of a line
        delimiter=separator,
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=not tabs,
    )
    try:
        for row in reader:
            yield {
                key: _unquoted(value) if tabs and isinstance(value, str) else value
                for key, value in row.items()
            }
    except csv.Error as error:
        raise InputError(
            f"{name} can't be read as a table in line {reader.line_num}.",
            why=f"{error}.",
            fix="Mend its quotation marks, or convert it to .jsonl.",
        ) from None


def _unquoted(cell: str) -> str:
    """What a program meant that puts a cell into quotation marks and doubles those within."""
    inner = cell[1:-1]
    if len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return cell


def _json_rows(name: str, text: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError("it is no object")
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text for a record
        except (ValueError, TypeError, RecursionError) as error:
            raise InputError(
                f"{name} can't be read in line {number}.", why=f"It isn't a JSON object: {error}."
            ) from None
        yield row


def _hub_rows(name: str) -> Iterable[dict[str, Any]]:
    hub_id, configuration, split = _HUB[name]
    rows: Iterable[dict[str, Any]] | None
    rows, why = load_dataset(hub_id, configuration, split=split)
    if rows is None:
        raise InputError(
            f"The data set {name} can't be had.",
            why=f"{why[0].upper()}{why[1:]}.",
            fix=f"Load it once online, or give --data a file ({', '.join(ENDINGS)}) or `{SAMPLE}`.",
        )
    return rows


def _from_rows(
    name: str,
    rows: Iterable[dict[str, Any]],
    column: str | None,
    label_column: str | None,
    passed: _Passed,
) -> Iterator[Example]:
    text_key, label_key = "", "label"
    for number, row in enumerate(rows, 1):
        if not text_key:
            text_key = passed.column = _column(name, row, column, _COLUMNS, "--column")
            if label_column is not None:
                label_key = _column(name, row, label_column, (), "--label-column")
        passed.lacking += text_key not in row
        where = f"In row {number} of {name}, "
        sentence = _text(row.get(text_key), f"{where}{text_key!r}")
        yield Example(
            sentence=sentence,
            label=_label(name, row.get(label_key), label_column is not None, passed),
            secrets=_secrets(row.get(_SECRETS), sentence, where),
        )


def _column(name: str, row: dict[str, Any], wanted: str | None, usual: tuple[str, ...], flag: str) -> str:
    """The column to read."""
    columns = [str(key) for key in row if key is not None]
    for candidate in usual if wanted is None else (wanted,):
        if candidate in columns:
            return candidate
    if wanted is None:
        raise InputError(
            f"{name} has no column {' or '.join(map(repr, usual))}.",
            why=f"Its columns: {', '.join(columns)}.",
            fix=f"Name one with {flag}.",
        )
    raise unknown_name(f"column of {name}", wanted, columns, fix=f"Name one with {flag}.")


def _text(value: object, where: str) -> str:
    """A cell as a text; "" where there is nothing in it."""
    if isinstance(value, list | dict):
        raise InputError(f"{where} can't be {value!r}.", fix="Write one sentence a row.")
    return "" if value is None else str(value)


def _secrets(value: object, sentence: str, where: str) -> tuple[str, ...]:
    """The secrets of a sentence, which has to hold them: what isn't there would count as never recovered."""
    parts = "" if value is None else value
    if isinstance(parts, str | int | float):
        parts = str(parts).split("|")
    if not isinstance(parts, list) or not all(isinstance(part, str | int | float) for part in parts):
        raise InputError(
            f"{where}{_SECRETS!r} can't be {value!r}.",
            fix='Write a list of texts, or one text with "|" between them.',
        )
    found = tuple(text for part in parts if (text := str(part).strip()))
    for secret in found if sentence.strip() else ():
        if not holds(sentence, secret):
            raise InputError(
                f"{where}the secret {secret!r} isn't in its sentence.",
                why="It would count as not recovered, whatever leaks.",
                fix="Write it as it stands there, as whole words.",
            )
    return found


def _label(name: str, value: object, demanded: bool, passed: _Passed) -> int | None:
    """A class; None for data sets that hide theirs (-1), and where a column called label holds something else."""
    text = "" if value is None else str(value).strip()
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if number.is_integer():  # as 1.0 too, which is how pandas writes a column that lacks some
        return int(number) if number >= 0 else None
    if demanded:
        raise InputError(f"{name} has the label {text!r}.", why="A label is the number of a class, from 0.")
    if text:
        passed.label = passed.label or text
        passed.unlabeled += 1
    return None
