"""Small words for messages: how many of something."""

from __future__ import annotations


def count_of(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it isn't one: "1 token", "1,234 tokens", "2 batches"."""
    ending = "" if number == 1 else "es" if noun.endswith("tch") else "s"
    return f"{number:,} {noun}{ending}"
