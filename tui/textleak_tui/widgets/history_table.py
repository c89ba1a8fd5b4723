"""The run folders as a table: how each stands, what it was, how much leaked."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Sequence
from pathlib import Path

from rich.text import Text

from textleak.words import seconds_in_words
from textleak_tui.listing import RunRow, when
from textleak_tui.standing import SIGNS
from textleak_tui.widgets.run_table import RunTable, rate_bar, short, within

MARK = "◆"
# As they stand; and below those that are wanted, the first ones first: the others go where not all fit. In the
# narrowest screens the attack is told with the model.
COLUMNS = (
    "mark",
    "state",
    "began",
    "model",
    "attack",
    "share",
    "client",
    "defense",
    "match rate",
    "verified",
    "took",
    "recovered",
)
# And the one that has the rest of the room, with what it has at least.
ALL = ("mark", "state", "began", "model", "match rate", "attack", "recovered", "took", "defense")
WANTED = ((*ALL, "verified", "client", "share"), "recovered", 24)
NARROW, WANTED_NARROW = 70, (("mark", "state", "began", "match rate", "model"), "model", 12)
# Where that has less, it is the last one, unless it has less than this.
SCANT = 10
# Columns of the screen around the table's own, and around a text in one.
AROUND, PADDING = 4, 2
_TONES = {
    "done": "success",
    "running": "accent",
    "interrupted": "warning",
    "stopped": "warning",
    "failed": "error",
    "killed": "error",
    "broken": "error",
}


class HistoryTable(RunTable):
    """A row a folder."""

    def show(
        self, rows: Sequence[RunRow], *, marked: Collection[Path], blind: bool, anew: bool = False
    ) -> None:
        """Draw rows, leaving the cursor on its run.

        Args:
            rows: in order.
            marked: folders with a mark.
            blind: only what an attacker would see.
            anew: colors have changed.
        """
        whole = [self._cells(row, row.path in marked, blind) for row in rows]
        columns = self._fitting(whole)
        cells = [tuple(row[name] for name in columns) for row in whole]
        labels = {"mark": "", "state": "" if "attack" not in columns else "state"}
        self.draw(
            {name: labels.get(name, name) for name in columns},
            {str(row.path): row_cells for row, row_cells in zip(rows, cells, strict=True)},
            anew=anew,
        )

    @property
    def _narrow(self) -> bool:
        return self.screen.size.width < NARROW

    def _fitting(self, rows: Sequence[dict[str, Text]]) -> tuple[str, ...]:
        """The columns that fit; one's texts are cut to what the others leave."""
        left, found = self.screen.size.width - AROUND, []
        wanted, elastic, least = WANTED_NARROW if self._narrow else WANTED
        for name in wanted:
            longest = max((row[name].cell_len for row in rows), default=0)
            width = max(len(name), min(longest, least) if name == elastic else longest) + PADDING
            if name == elastic and SCANT + PADDING <= left < width:
                width, least = left, left - PADDING
            if width > left:
                break
            left -= width
            found.append(name)
        for row in rows:
            row[elastic].truncate(least + left, overflow="ellipsis")
        return tuple(name for name in COLUMNS if name in found)

    def _cells(self, row: RunRow, marked: bool, blind: bool) -> dict[str, Text]:
        colors, narrow = self.app.theme_variables, self._narrow
        now = datetime.datetime.now().astimezone()
        sign = SIGNS.get(row.outcome, "?")
        model = row.model or row.name
        model = f"{short(model.removesuffix(' (random)'), 18)} {row.attack}" if narrow else short(model, 26)
        verified = {True: "✓ yes", False: "✗ no", None: "" if row.told else "can't tell"}[row.verified]
        rate, read = Text(""), row.outcome != "broken"
        if row.psnr is not None:
            rate = Text("····" if blind else f"{row.psnr:.1f} dB")
        elif row.rate is not None and blind:
            rate = Text("····")
        elif row.rate is not None:
            rate = Text(f"{row.rate:.2f}") if narrow else rate_bar(row.rate, 5, colors)
        return {
            "mark": Text(MARK if marked else " ", style=colors["accent"]),
            "state": Text(
                sign if narrow else f"{sign} {row.outcome}",
                style=colors[_TONES.get(row.outcome, "foreground")],
            ),
            "began": Text(when(row.started, now)),
            "model": Text(model),
            "attack": Text(row.attack),
            "share": Text(within(row.share, 14)),
            "client": Text(
                within(row.client, 18) or ("one-step" if read else ""), style="" if row.client else "dim"
            ),
            "defense": Text(
                within(row.defense, 21 if self.screen.size.width < 130 else 26)
                if row.defense
                else "none"
                if read
                else "",
                style="" if row.defense else "dim",
            ),
            "match rate": rate,
            "verified": Text(verified),
            "took": Text("" if row.seconds is None else seconds_in_words(row.seconds), justify="right"),
            "recovered": Text(row.recovered or row.picture, style="dim", no_wrap=True),
        }
