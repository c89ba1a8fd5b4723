"""Running text: which token of a batch stands where, and where words are cut."""

from __future__ import annotations

import pytest
from rich.console import Console
from rich.text import Text

from textleak_tui.widgets.flow import Piece, flowed, nearest
from textleak_tui.widgets.words import cut_to


def test_each_sentence_begins_a_line_and_wraps_between_tokens() -> None:
    lines = flowed([[3, 4, 2], [], [5]], room=12, indent=2)
    assert [[piece.position for piece in line] for line in lines] == [[0, 1], [2], [], [0]]
    assert lines[0] == [Piece(0, 0, 2, 3), Piece(0, 1, 6, 4)]
    assert all(piece.x + piece.width <= 12 for line in lines for piece in line)


def test_a_token_longer_than_a_line_is_cut_and_one_of_no_width_left_out() -> None:
    ((cut,), (last,)) = flowed([[50, 0, 1]], room=10, indent=2)
    assert (cut.width, last.position) == (8, 2)


def test_the_nearest_token_of_a_line_is_the_one_below_the_pointer() -> None:
    line = [Piece(0, 0, 2, 3), Piece(0, 1, 6, 4)]
    assert [nearest(line, x).position for x in (0, 2, 4, 6, 9, 60)] == [0, 0, 0, 1, 1, 1]
    assert nearest([], 3) is None


@pytest.mark.parametrize("width", [7, 8, 9, 14])
def test_words_that_are_cut_keep_their_beginning_and_end_in_an_ellipsis(width: int) -> None:
    text = Text("one two three", style="bold").append(" four five six seven", style="dim")
    console = Console(width=width)
    cut = cut_to(text, width, 2, console)
    lines = cut.wrap(console, width)
    assert len(lines) <= 2
    assert cut.plain.startswith("one")
    assert cut.plain.endswith("…")
    assert all(span.start < len(cut.plain) for span in cut.spans), "what is drawn after the end ends the app"
    assert cut_to(Text("one"), width, 2, console).plain == "one"
