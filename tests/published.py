"""What a command prints, held against its published schema."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from textleak.schemas import KINDS


def fitting(kind: str, document: Any) -> dict[str, Any]:
    """The document, which has every field of its kind's schema and no other.

    Raises:
        pydantic.ValidationError: it hasn't.
    """
    TypeAdapter(KINDS[kind]).validate_python(document)
    return dict(document)
