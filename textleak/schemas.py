"""The published form of what `--json` prints and files hold: JSON schemas (2020-12), made from the code's types."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from textleak.errors import unknown_name
from textleak.evaluation.records import Record
from textleak.evaluation.results import EvaluationResult
from textleak.jobs.results import AuditResult, ImageResult, RunResult, ShareResult

# Each document, by the command that prints it; a record is a line of an evaluation's records.jsonl.
KINDS: dict[str, Any] = {
    "run": RunResult,
    "audit": AuditResult,
    "image": ImageResult,
    "share": ShareResult,
    "eval": EvaluationResult,
    "record": Record,
}
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(kind: str) -> dict[str, Any]:
    """The JSON schema of one kind of document.

    Args:
        kind: one of `KINDS`.

    Raises:
        InputError: there is no such kind.
    """
    if kind not in KINDS:
        raise unknown_name("document", kind, KINDS)
    found = TypeAdapter(KINDS[kind]).json_schema(mode="serialization")
    for one in (found, *found.get("$defs", {}).values()):
        if "properties" in one:  # a dataclass says nothing of others, and has none
            one.setdefault("additionalProperties", False)
    return {"$schema": DIALECT, **found}
