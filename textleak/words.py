"""Small words for messages: how many of something."""

from __future__ import annotations


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun, in the plural where it isn't one: "1 token", "1,234 tokens", "2 batches"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
