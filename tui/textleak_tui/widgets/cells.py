"""What the token grid draws: a position, a part of a sentence, what stands above it; and words in so many cells."""

from __future__ import annotations

import dataclasses
import functools

from rich.cells import cell_len, set_cell_size

from textleak.view import UNICODE

# Before what a planted secret consists of.
MARK = "◆"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A position as it is drawn; `secret` where a planted secret stands in the truth."""

    word: str
    status: str
    confidence: float
    true: str
    next: tuple[str, ...] = ()
    secret: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
    """A part of a sentence that stands in one row of columns.

    `first` is where its lines begin; `headed` how many of them are the sentence's text.
    """

    sentence: int
    start: int
    stop: int
    first: int
    headed: int

    @property
    def columns(self) -> int:
        """How many positions stand in it."""
        return self.stop - self.start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """What stands above a sentence: its text so far, and words on how it stands."""

    text: str
    words: str

    def lines(self, width: int, most: int) -> tuple[str, ...]:
        """The text in so many columns and lines; the words stand at the end of the first line."""
        return wrapped(self.text, max(1, width - cell_len(self.words) - 2), width, most)


@functools.lru_cache(maxsize=64)
def wrapped(text: str, first: int, width: int, most: int) -> tuple[str, ...]:
    """A text as at most so many lines; the first one has less room, the last one an ellipsis where it is cut."""
    words, lines, used = text.split(), [""], 0
    for at, word in enumerate(words):
        taken = cell_len(word)
        if lines[-1] and used + 1 + taken > (width if len(lines) > 1 else first):
            if len(lines) == most:
                # No more of the rest than shows that there is one.
                lines[-1] = f"{lines[-1]} {' '.join(words[at : at + width])[:width]}"
                break
            lines.append(word)
            used = taken
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
            used += taken + bool(used)
    return tuple(fit(line, first if at == 0 else width).rstrip() for at, line in enumerate(lines))


def lines_of_band(numbered: bool, truth: bool, listed: int) -> tuple[str, ...]:
    """What the lines of a band hold, from its top; a number stands for a candidate's rank."""
    first = ("number", "word", "bar") if numbered else ("word", "bar")
    return (*first, *(("true",) if truth else ()), *map(str, range(listed - truth)))


def flow_width(cell: Cell) -> int:
    """Cells of a token in running text."""
    return 1 + max(1, cell_len(cell.word))


def fit(word: str, width: int) -> str:
    """A word in exactly so many cells, cut with an ellipsis."""
    if cell_len(word) > width:
        return set_cell_size(set_cell_size(word, width - 1).rstrip() + UNICODE.ellipsis, width)
    return set_cell_size(word, width)
