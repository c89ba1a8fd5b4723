"""How a grid is written: a cell's figures, a map's cells, a sentence's line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rich.style import Style
from rich.text import Text
from textual.color import Color

from textleak.words import printable, seconds_in_words
from textleak_tui.grid import CellRow, SentenceRow, cell_text
from textleak_tui.heat import heat_of
from textleak_tui.standing import SIGNS
from textleak_tui.widgets.grid_table import GAP
from textleak_tui.widgets.run_table import rate_bar, within

BAR = 8
# Columns of a cell's figures.
FIGURES = ("batches", "match rate", "95 %", "exact", "verified", "secrets", "s/batch")
# Columns of a cell's figures that are left out one after another where the width has no room for all.
_LEFT_OUT = ("s/batch", "secrets", "exact", "batches", "verified", "95 %")
HIDDEN = "····"
# Letters that a setting has at least, where it is cut (our choice).
LEAST = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """How figures are written.

    Attributes:
        blind: nothing that it takes the truth to know.
        limit: above which a match rate has a sign; None for no limit.
        colors: of the theme, by name.
    """

    blind: bool
    limit: float | None
    colors: Mapping[str, str]

    def figures(self, row: CellRow) -> dict[str, Text]:
        """A cell's figures by their columns."""
        counts = row.counts
        batches = Text(f"{counts.done}" + (f" {SIGNS['failed']}{counts.failed}" if counts.failed else ""))
        rate = exact = interval = Text(HIDDEN if self.blind else "")
        if row.rate is not None and row.exact is not None and not self.blind:
            rate, exact = self._bar(row.rate.mean), Text(f"{row.exact:.2f}")
            if row.rate.low is not None:
                interval = Text(f"{row.rate.low:.2f}–{row.rate.high:.2f}")
            rate.append(f" {self._sign(row.rate.mean)}", style=self.colors["error"])
        elif row.rate is None and counts.failed:
            rate = Text(f"{SIGNS['failed']} failed", style=self.colors["error"])
        untold = "can't tell" if counts.done else ""
        verified = f"{counts.verified} of {counts.verifiable}" if counts.verifiable else untold
        secrets = HIDDEN if self.blind else f"{counts.secrets_recovered} of {counts.secrets}"
        seconds = Text("" if row.seconds is None else seconds_in_words(row.seconds), justify="right")
        found = batches, rate, interval, exact, Text(verified), Text(secrets), seconds
        return dict(zip(FIGURES, found, strict=True))

    def map(self, rows: Sequence[CellRow], pair: tuple[str, str]) -> tuple[tuple[str, ...], list[list[Text]]]:
        """The titles and lines of a map of two settings."""
        heat = heat_of(rows, pair, cell_text)
        columns = [within(printable(column), 16) for column in heat.columns]
        listed = []
        for line in heat.lines:
            rates = [heat.rates.get((line, column)) for column in heat.columns]
            cells = [self._heat(rate, len(name)) for rate, name in zip(rates, columns, strict=True)]
            listed.append([Text(within(printable(line), 30)), *cells])
        return (f"{heat.down} ↓ {heat.across} →", *columns), listed

    def sentences(self, rows: Sequence[SentenceRow], room: int) -> tuple[tuple[str, ...], list[list[Text]]]:
        """The titles and lines of a cell's sentences, in so many columns of the screen."""
        listed = []
        for one in rows:
            rate = Text(HIDDEN) if self.blind else self._bar(one.sentence.token_match_rate)
            text = printable(one.sentence.recovered) or "nothing"
            listed.append([Text(str(one.record.batch + 1)), rate, Text(text)])
        titles = ("batch", "match rate", "recovered")
        before = sum(max(len(titles[at]), *(row[at].cell_len for row in listed), 0) + GAP for at in range(2))
        cut(listed, 2, room - before)
        return titles, listed

    def _heat(self, rate: float | None, width: int) -> Text:
        """A match rate on a ground that is the redder the higher it is."""
        if rate is None or self.blind:
            return Text("" if rate is None else HIDDEN)
        ground = Color.parse(self.colors["background"]).blend(Color.parse(self.colors["error"]), 0.75 * rate)
        words = f" {rate:.2f} {self._sign(rate)}"
        ink = ground.get_contrast_text(0.95)
        return Text(words.ljust(max(8, width)), style=Style(color=ink.rich_color, bgcolor=ground.rich_color))

    def _sign(self, rate: float) -> str:
        return SIGNS["failed"] if self.limit is not None and rate > self.limit else " "

    def _bar(self, rate: float) -> Text:
        return rate_bar(rate, BAR, self.colors)


def fitting(widths: Mapping[str, int], room: int, missing: Sequence[str] = ()) -> tuple[str, ...]:
    """The titles of the columns that fit, in their order.

    Args:
        widths: of all columns by their titles.
        room: columns of the screen for all of them.
        missing: columns that have nothing to show.
    """
    shown = [name for name in widths if name not in missing]
    for name in _LEFT_OUT:
        if sum(widths[one] + GAP for one in shown) - GAP > room and name in shown:
            shown.remove(name)
    return tuple(shown)


def narrowed(widths: Mapping[str, int], over: int) -> dict[str, int]:
    """Widths of some columns that together are narrower: the widest ones are cut first, none below `LEAST`.

    Args:
        widths: of the columns by their titles.
        over: by how many columns of the screen all of them are too wide.
    """
    found = dict(widths)
    for _ in range(over):
        widest = max(found, key=found.__getitem__, default="")
        if not found or found[widest] <= LEAST:
            break
        found[widest] -= 1
    return {name: width for name, width in found.items() if width < widths[name]}


def cut_settings(rows: Sequence[list[Text]], column: int, width: int) -> None:
    """Cut a column's settings to a width, each in its middle."""
    for row in rows:
        row[column] = Text(within(row[column].plain, max(1, width)))


def cut(rows: Sequence[list[Text]], column: int, width: int) -> None:
    """Cut a column's texts to a width, with an ellipsis."""
    for row in rows:
        row[column] = row[column].copy()
        row[column].truncate(max(1, width), overflow="ellipsis")
