"""A small plot: a bar a rung, as high as its match rate."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from rich.cells import set_cell_size
from rich.text import Text
from textual.widget import Widget

from textleak_tui.widgets.run_table import within

_EIGHTHS = " ▁▂▃▄▅▆▇█"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One rung.

    Attributes:
        name: its strength.
        rate: 0 to 1; None where there is none yet.
        moving: it is still changing.
    """

    name: str
    rate: float | None = None
    moving: bool = False


class Bars(Widget):
    """Bars side by side, each with its figure above and its strength below."""

    DEFAULT_CSS = """
    Bars {
        border: round $border-blurred; border-title-color: $primary; border-title-style: bold; padding: 0 1;
        & .bars--bar { color: $error; }
        & .bars--moving { color: $accent; }
        & .bars--quiet { color: $quiet; }
    }
    """
    COMPONENT_CLASSES: ClassVar[set[str]] = {"bars--bar", "bars--moving", "bars--quiet"}

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._bars: tuple[Bar, ...] = ()
        self._instead = ""

    def show(self, bars: tuple[Bar, ...], *, instead: str = "") -> None:
        """Draw bars, or words in their place."""
        if (bars, instead) != (self._bars, self._instead):
            self._bars, self._instead = bars, instead
            self.refresh()

    def render(self) -> Text:
        """Figures, bars, strengths."""
        quiet = self.get_component_rich_style("bars--quiet", partial=True)
        width, height = self.size
        if self._instead or not self._bars:
            return Text(self._instead or "no run yet", style=quiet)
        room = height - 2
        column = max(4, min(12, (width - 3) // len(self._bars)))
        lines = [
            Text(f"{edge:>2}▕" if column else "", style=quiet, no_wrap=True) for edge in self._edges(height)
        ]
        for bar in self._bars:
            kind = "moving" if bar.moving else "bar"
            style = self.get_component_rich_style(f"bars--{kind}", partial=True)
            filled = 0.0 if bar.rate is None else bar.rate * max(0, room)
            figure = "" if bar.rate is None else f"{bar.rate:.2f}" + ("…" if bar.moving else "")
            top = room - max(0, min(room, -int(-filled // 1)))  # the first row that is filled
            for row in range(height):
                if row == height - 1:
                    lines[row].append(
                        set_cell_size(brief(bar.name, column - 1), column - 1) + " ", style=quiet
                    )
                elif row == top:
                    lines[row].append(set_cell_size(figure, column - 1) + " ", style=style)
                elif row > top:
                    part = max(0.0, min(1.0, filled - (room - row)))
                    lines[row].append(_EIGHTHS[round(part * 8)] * (column - 1) + " ", style=style)
                else:
                    lines[row].append(" " * column)
        return Text("\n").join(lines)

    def _edges(self, height: int) -> list[str]:
        """What stands at the left: 1 at the top, 0 at the bottom of the bars."""
        return [
            "",
            *("1" if row == 1 else "0" if row == height - 2 else "" for row in range(1, height - 1)),
            "",
        ][:height]


def brief(strength: str, most: int) -> str:
    """A strength in so many letters: a number with an exponent where that is shorter, else cut in its middle."""
    if len(strength) <= most:
        return strength
    try:
        mantissa, _, exponent = f"{float(strength):e}".partition("e")
        written = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    except ValueError:
        return within(strength, most)
    return written if len(written) <= most and float(written) == float(strength) else within(strength, most)
