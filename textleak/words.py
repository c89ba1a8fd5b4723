"""Small words for messages: how many of something, and text of others that a terminal can show."""

from __future__ import annotations

import unicodedata


def count_of(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it isn't one: "1 token", "1,234 tokens", "2 batches"."""
    ending = "" if number == 1 else "es" if noun.endswith("tch") else "s"
    return f"{number:,} {noun}{ending}"


def printable(text: str, *, kept: str = "") -> str:
    """A text with each letter that a terminal would obey written out, but for those in `kept`."""
    return "".join(
        letter
        if letter.isprintable() or letter in kept or unicodedata.category(letter) == "Zs"
        else ascii(letter)[1:-1]
        for letter in text
    )
