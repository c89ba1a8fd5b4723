"""A batch in little room: each sentence as running text, a line a sentence where it fits, wrapped where it doesn't."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Piece(NamedTuple):
    """A token in running text: which it is, where it begins in its line, and how many cells it takes."""

    sentence: int
    position: int
    x: int
    width: int


def flowed(widths: Sequence[Sequence[int]], room: int, indent: int) -> list[list[Piece]]:
    """Tokens as lines, each sentence beginning one; lines of none where a sentence has no tokens.

    Args:
        widths: cells of each token of each sentence; 0 for one that isn't shown.
        room: cells of a line.
        indent: cells before the tokens of every line.
    """
    lines: list[list[Piece]] = []
    for sentence, tokens in enumerate(widths):
        line: list[Piece] = []
        x = indent
        for position, wanted in enumerate(tokens):
            width = min(wanted, max(1, room - indent))
            if not width:
                continue
            if line and x + width > room:
                lines.append(line)
                line, x = [], indent
            line.append(Piece(sentence, position, x, width))
            x += width + 1
        lines.append(line)
    return lines


def nearest(line: Sequence[Piece], x: int) -> Piece | None:
    """The token of a line that is nearest to a column; None where it has none."""
    return min(line, key=lambda piece: max(piece.x - x, x - piece.x - piece.width + 1, 0), default=None)
