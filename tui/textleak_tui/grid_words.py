"""A grid in words: how far it is and whether it passes, a cell, a sentence of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from textleak.view import UNICODE
from textleak.words import count_of, printable, seconds_in_words
from textleak_tui.grid import CellRow, Grid, SentenceRow, judged
from textleak_tui.standing import SIGNS
from textleak_tui.widgets.cells import MARK
from textleak_tui.widgets.run_table import short

if TYPE_CHECKING:
    from textleak.evaluation.records import Cell

AGAIN = "Enter attacks it again, live, with the same draws: an evaluation keeps no recordings."
REPLAY = "Enter replays it as it was attacked again; a attacks it once more."


def grid_in_words(
    grid: Grid,
    stands: str,
    *,
    planned: int | None,
    left: float | None,
    limit: float | None,
    blind: bool,
    chosen: Cell | None,
) -> str:
    """How far it is, whether it passes, and the worst leak, in a line.

    Args:
        grid: what there is so far.
        stands: that it is being measured, or was stopped, or the name of its folder.
        planned: how many batches there are to be; None where that isn't known.
        left: seconds until all are there; None where that can't be told.
        limit: that it is held against; None for none.
        blind: nothing that it takes the truth to know.
        chosen: the cell whose sentences are listed; None for the cells.
    """
    rows, batches = grid.rows, grid.batches
    parts = [stands]
    parts += [count_of(len(rows), "cell"), f"{batches:,}" + (f" of {planned:,}" if planned else "")]
    parts[-1] += " batches"
    parts += [f"about {seconds_in_words(left)} left"] if left else []
    failed = grid.failed
    parts += [f"{SIGNS['failed']} {failed} failed"] if failed else []
    if not blind:
        whole = batches == planned and not failed
        parts += [] if limit is None else [judged(rows, limit, whole=whole).words]
        worst = grid.worst
        how = "worst" if batches == planned else "worst so far"
        parts += [f"{how} {worst_in_words(*worst)}"] if worst is not None and chosen is None else []
    if chosen is not None:
        parts.append(f"sentences of {chosen.attack}, {' '.join(chosen.defense) or 'no defense'}")
    return UNICODE.dot.join(parts)


def worst_in_words(row: CellRow, worst: SentenceRow) -> str:
    """The worst leak, in words."""
    how = f"{row.cell.attack}, {' '.join(row.cell.defense) or 'no defense'}"
    text = short(printable(worst.sentence.recovered) or "nothing", 40)
    return f"{worst.sentence.token_match_rate:.2f} ({how}) “{text}”"


def cell_in_words(row: CellRow) -> Text:
    """A cell, and what went wrong in it last."""
    failed, cell = row.records.failed, row.cell
    text = Text(f"{cell.attack} on {cell.model}, {' '.join(cell.defense) or 'no defense'}")
    text.append(f"\n✗ {printable(failed[-1].error)}" if failed else "")
    return text.append("\nEnter lists its sentences." if row.counts.done else "")


def sentence_in_words(one: SentenceRow, *, truth: bool, replayed: bool) -> Text:
    """What came back of a sentence, and what Enter does.

    Args:
        one: the sentence.
        truth: the true sentence too, and what became of its secrets.
        replayed: there is a run of its batch to replay.
    """
    text = Text(f"recovered  {printable(one.sentence.recovered)}")
    if truth:
        text.append(f"\ntrue       {printable(one.sentence.reference)}")
        for secret in one.sentence.secrets:
            text.append(f"\nsecret     {MARK} ", style="bold").append(printable(secret.text))
            text.append(" came back whole" if secret.recovered else " didn't come back whole")
    return text.append(f"\n{one.record.stop}\n{REPLAY if replayed else AGAIN}")
