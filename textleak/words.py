"""Small words for messages: numbers, times, and text of others that a terminal can show."""

from __future__ import annotations

import unicodedata


def count_of(number: int, noun: str) -> str:
    """A number and its noun, in the plural where it isn't one: "1 token", "1,234 tokens", "2 batches"."""
    ending = "" if number == 1 else "es" if noun.endswith("tch") else "s"
    return f"{number:,} {noun}{ending}"


def seconds_in_words(seconds: float) -> str:
    """A time as a person reads it, with its unit."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02} min"


def loss_in_words(loss: float | None) -> str:
    """A loss in few letters, "?" where there is none."""
    if loss is None:
        return "?"
    # A distance of nothing comes out a rounding error below 0.
    loss = loss if not loss <= 0 else 0.0
    return f"{loss:.3g}" if 0.01 <= loss < 1000 or loss == 0 else f"{loss:.1e}"


def readable(token: str, space: str = "␣") -> str:
    """A token as a person can read it: a leading space as one sign, nothing that moves the cursor."""
    # Byte-level BPE writes a leading space as Ġ and a line break as Ċ, SentencePiece a space as ▁.
    text = token.replace("Ġ", space).replace("▁", space).replace("Ċ", "\\n")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text) or space


def table_cell(text: str) -> str:
    """A text as a cell of a table of others' programs: none of them takes it for a formula.

    https://owasp.org/www-community/attacks/CSV_Injection
    """
    shown = printable(text, kept="\n")
    return f"'{shown}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else shown


def printable(text: str, *, kept: str = "") -> str:
    """A text with each letter that a terminal would obey written out, but for those in `kept`."""
    if text.isprintable():
        return text
    obeyed = {
        ord(letter): ascii(letter)[1:-1]
        for letter in set(text)
        if not (letter.isprintable() or letter in kept or unicodedata.category(letter) == "Zs")
    }
    return text.translate(obeyed)
