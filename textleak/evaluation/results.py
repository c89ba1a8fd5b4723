"""What `eval --json` prints, as a type; the records themselves are `textleak.evaluation.records.Record`."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic can't read typing's before Python 3.12

from textleak.jobs.results import CLOSED, Count, MeanScores


class CellResult(MeanScores):
    """One cell of the grid: its settings, how many batches came to what, and means over sentences (null: none yet)."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]

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
    named_rate: float | None
    seconds: float | None


class EvaluationResult(TypedDict):
    """What `textleak eval --json` prints; the records are in `out`."""

    __pydantic_config__ = CLOSED  # type: ignore[misc]

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
