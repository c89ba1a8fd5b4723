"""Records of an evaluation: one a batch of one cell of the grid, a JSON line each.

The typed form is the contract between who computes (`engines`), who stores (`store`), and who answers (`answers`,
`textleak.reports`). Figures that several rooms share keep the names of `run --json`.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from textleak.events import EARLY, Label
from textleak.words import count_of

FORMAT_VERSION = 1
# What a file's figures can be; a record with others is none.
_Rate = Annotated[float, Field(ge=0, le=1)]
_Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
# A cosine distance comes out below 0 by rounding, and one with a prior may be anywhere.
_Loss = Annotated[float, Field(allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0, le=1 << 63)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of the grid: all that decides what its batches give, but for the sentences themselves.

    Attributes:
        data: name of the data set, or the file as it was given.
        batch_size: sentences in a batch, B.
        model: alias, hub id or folder.
        weights: "auto", "pretrained" or "random", as asked for.
        task: as asked for.
        attack: name and options as `name:key=value,...`.
        share: what the client shares.
        client: specs of how it trains, empty for one plain step.
        defense: specs in order, empty for none.
        know: what the attacker is told; None for the default.
        seed: of everything that is drawn.
    """

    data: str
    batch_size: _Count
    model: str
    weights: str = "auto"
    task: str = "auto"
    attack: str = "match"
    share: str = "all"
    client: tuple[str, ...] = ()
    defense: tuple[str, ...] = ()
    know: str | None = None
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlantedSecret:
    """A made-up secret (number, address, ...) that stood in a sentence.

    Attributes:
        text: the secret itself.
        recovered: whether an output of its batch contains it whole.
    """

    text: str
    recovered: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceRecord:
    """One reference of a batch beside the output assigned to it; the fields mean what `SentenceScore` says."""

    reference: str
    recovered: str
    reference_tokens: tuple[str, ...]
    recovered_tokens: tuple[str, ...]
    token_match_rate: _Rate
    token_recall: _Rate
    exact: bool
    rouge1: _Rate
    rouge2: _Rate
    rougeL: _Rate
    rouge1_words: _Rate
    rouge2_words: _Rate
    rougeL_words: _Rate
    label: Label | None
    recovered_label: Label | None
    unknown_tokens: _Count = 0
    secrets: tuple[PlantedSecret, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What one batch gave.

    Attributes:
        identity: hash of the evaluation's settings; a folder holds records of one identity only.
        cell: the settings of its cell.
        batch: number of the batch in its cell, from 0.
        status: "done", or "failed" with `error`.
        error: what went wrong, "" otherwise; a failed record has no figures (None) and no sentences.
        tokens: n, all tokens of the batch, special ones counted.
        hidden_size: D.
        tokens_per_hidden: n/D.
        gradient_distance: relative, of the recovered batch's own gradient; None where it can't be formed.
        verified: as in `run --json`.
        named_rate: likewise.
        stop: why the attack ended, a sentence.
        seconds: the attack's wall time; likewise `cpu_seconds`.
        weights: "pretrained" or "random", as loaded.
        fingerprint: of the model as it was loaded, "" in records of before it was kept.
        labels_given: whether the data said the classes, else they were drawn; None in records of before it was kept.
        worker: who computed it, for example "local" or a ray node's name; no host name, no path.
        versions: of Python and the packages that decide a result.
    """

    identity: str
    cell: Cell
    batch: _Count
    status: Literal["done", "failed"]
    error: str = ""
    sentences: tuple[SentenceRecord, ...] = ()
    surplus: tuple[str, ...] = ()
    tokens: _Count | None = None
    hidden_size: _Count | None = None
    tokens_per_hidden: _Size | None = None
    token_match_rate: _Rate | None = None
    token_recall: _Rate | None = None
    exact_rate: _Rate | None = None
    rouge1: _Rate | None = None
    rouge2: _Rate | None = None
    rougeL: _Rate | None = None
    rouge1_words: _Rate | None = None
    rouge2_words: _Rate | None = None
    rougeL_words: _Rate | None = None
    final_loss: _Loss | None = None
    gradient_distance: _Size | None = None
    verified: bool | None = None
    named_rate: _Rate | None = None
    channel: str = ""
    stop: str = ""
    notes: tuple[str, ...] = ()
    steps: _Count = 0
    evaluations: _Count = 0
    seconds: _Size = 0.0
    cpu_seconds: _Size = 0.0
    weights: str = ""
    fingerprint: str = ""
    device: str = ""
    dtype: str = ""
    threads: _Count = 1
    epsilon: _Size | None = None
    labels_given: bool | None = None
    worker: str = "local"
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    format: int = FORMAT_VERSION

    @property
    def cut_off(self) -> bool:
        """Whether it was ended, by time or by hand, before it had an answer that is known to be right."""
        return self.stop in EARLY and self.verified is not True


def cut_off_in_words(cut_off: int, done: int) -> str:
    """A sentence for a person: how many of the batches that have an answer were ended before they were done."""
    many = "was" if cut_off == 1 else "were"
    return (
        f"{cut_off} of {count_of(done, 'batch')} {many} cut off before the attack was done: "
        "with more time, more may leak."
    )


_RECORD = TypeAdapter(Record)


def to_json(record: Record) -> dict[str, Any]:
    """The record as plain JSON values."""
    plain: dict[str, Any] = _RECORD.dump_python(record, mode="json")
    return plain


def from_json(plain: dict[str, Any]) -> Record:
    """The record that `to_json` wrote.

    Raises:
        pydantic.ValidationError: something else.
    """
    return _RECORD.validate_python(plain)
