"""What `eval --json` prints, as a type; the records themselves are `textleak.evaluation.records.Record`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic can't read typing's before Python 3.12

_CLOSED = ConfigDict(extra="forbid")
Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class CellResult(TypedDict):
    """One cell of the grid: its settings, how many batches came to what, and means over sentences (null: none yet)."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]

    data: str
    batch_size: Count
    model: str
    weights: str
    task: str
    attack: str
    share: str
    client: list[str]
    defense: list[str]
    know: str | None
    seed: Count
    batches: Count
    done: Count
    failed: Count
    verified: Count
    verifiable: Count
    cut_off: Count
    secrets: Count
    secrets_recovered: Count
    tokens_per_hidden: float | None
    token_match_rate: Rate | None
    token_recall: Rate | None
    exact_rate: Rate | None
    rouge1: Rate | None
    rouge2: Rate | None
    rougeL: Rate | None
    rouge1_words: Rate | None
    rouge2_words: Rate | None
    rougeL_words: Rate | None
    seconds: float | None


class EvaluationResult(TypedDict):
    """What `textleak eval --json` prints; the records are in `out`."""

    __pydantic_config__ = _CLOSED  # type: ignore[misc]

    schema_version: Count
    identity: str
    outcome: Literal["done", "interrupted"]
    out: str
    settings: dict[str, Any]
    batches: Count
    done: Count
    failed: Count
    errors: list[str]
    cells: list[CellResult]
