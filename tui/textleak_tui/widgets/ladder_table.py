"""The rungs of a ladder as a table: how each stands, what it recovered, how long it took."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from textleak.words import loss_in_words, seconds_in_words
from textleak_tui.climb import Rung
from textleak_tui.widgets.run_table import RunTable, rate_bar, short

# From these widths of the screen on, more columns fit.
COLUMNS = {"strength": 0, "state": 0, "match rate": 0, "verified": 70, "loss": 84, "took": 70, "text": 140}
# What the table has of the screen's width where it has a column of texts, and the columns that the others take of it.
_SHARE, _OTHERS, _LEAST = 0.6, 80, 10
SIGNS = {
    "waiting": "·",
    "loading": "◌",
    "running": "●",
    "done": "✓",
    "stopped": "■",
    "interrupted": "■",
    "failed": "✗",
    "not run": "–",
}
_TONES = {"done": "success", "running": "accent", "loading": "accent", "failed": "error"}


class LadderTable(RunTable):
    """A row a rung."""

    def show(self, rungs: Sequence[Rung], *, blind: bool, anew: bool = False) -> None:
        """Draw the rungs, leaving the cursor on its row.

        Args:
            rungs: the ladder's, in order.
            blind: only what an attacker would see.
            anew: colors have changed.
        """
        columns = tuple(name for name, width in COLUMNS.items() if self.screen.size.width >= width)
        self.draw(
            {name: name for name in columns},
            {str(number): self._cells(rung, columns, blind) for number, rung in enumerate(rungs)},
            anew=anew,
        )

    def _cells(self, rung: Rung, columns: Sequence[str], blind: bool) -> list[Text]:
        colors = self.app.theme_variables
        progress, result = rung.state.progress, rung.result
        phase = progress.phase if rung.status == "running" and progress else ""
        status = f"{SIGNS.get(rung.status, '?')} {phase or rung.status}"
        rate = Text("")
        if rung.rate is not None:
            rate = Text("····") if blind else rate_bar(rung.rate, 8, colors)
        verified = {True: "✓ yes", False: "✗ no", None: "can't be told"}
        loss = progress.loss if progress else None
        shown = progress.sentences if progress else ()
        room = max(_LEAST, int(_SHARE * self.screen.size.width) - _OTHERS)
        cells = {
            "strength": Text(rung.strength, style="bold"),
            "state": Text(f"{status:<13}", style=colors[_TONES.get(rung.status, "foreground")]),
            "match rate": rate,
            "verified": Text(verified[result.get("verified")] if result else ""),
            "loss": Text("" if loss is None else loss_in_words(loss)),
            "took": Text("" if rung.took is None else seconds_in_words(rung.took)),
            "text": Text(short(" / ".join(sentence.text for sentence in shown), room), style="dim"),
        }
        return [cells[name] for name in columns]
