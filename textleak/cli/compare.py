"""`textleak compare`: how much more one evaluation recovered than another, sentence by sentence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textleak.cli import common, flags
from textleak.words import count_of

if TYPE_CHECKING:
    from rich.table import Table

    from textleak.reports.compare import Comparison, Difference, PairedSetting


@common.guarded
def command(
    first: Annotated[Path, typer.Argument(metavar="DIR", help="One folder.", show_default=False)],
    second: Annotated[
        Path, typer.Argument(metavar="DIR", help="The one to compare with it.", show_default=False)
    ],
    json_: flags.Json = False,
) -> None:
    """Compare two evaluations (or runs) on the sentences that both have: second minus first."""
    from textleak.reports.compare import compare
    from textleak.reports.reading import read

    comparison = compare(read(first), read(second))
    if json_:
        import dataclasses

        common.print_json(dataclasses.asdict(comparison))
        return
    _print(comparison)


def _print(comparison: Comparison) -> None:
    from rich.text import Text

    from textleak.reports.settings import TITLES

    console = common.stdout()
    console.print(Text(comparison.headline, style="bold"), soft_wrap=True)
    for axis, (ours, theirs) in comparison.compared.items():
        words = f"{TITLES.get(axis, axis)}: {', '.join(ours)} → {', '.join(theirs)}"
        console.print(Text(f"compared  {words}"), soft_wrap=True)
    console.print(_table(comparison))
    for line in _remarks(comparison):
        console.print(Text(line, style="bright_black"), soft_wrap=True)


def _table(comparison: Comparison) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting")
    for title in ("sentences", "token match, %", "difference", "word for word, %", "difference"):
        table.add_column(title, justify="right")
    rows = list(comparison.settings)
    if len(rows) > 1:
        rows.append(comparison.overall)
    for row in rows:
        style = "bold" if row is comparison.overall else ""
        table.add_row(*(Text(cell) for cell in _cells(row)), style=style)
    return table


def _cells(row: PairedSetting) -> tuple[str, ...]:
    match, exact = row.figures["token_match_rate"], row.figures["exact_rate"]
    return (row.words, str(row.sentences), *_sides(match), *_sides(exact))


def _sides(one: Difference) -> tuple[str, str]:
    from textleak.reports.compare import points
    from textleak.reports.figures import percent

    change = one.difference
    words = points(change.mean)
    if change.low is not None and change.low == change.high:
        words += " (all alike)"
    elif change.low is not None and change.high is not None:
        words += f" ({points(change.low)} to {points(change.high)})"
    return f"{percent(one.first)} → {percent(one.second)}", words


def _remarks(comparison: Comparison) -> list[str]:
    """What doesn't pair, and what else a reader has to know."""
    from textleak.reports.statistics import FEW_IN_WORDS

    lines = ["Differences in percentage points, with paired 95 % bootstrap intervals over batches."]
    if any(figure.difference.of_few for one in comparison.settings for figure in one.figures.values()):
        lines.append(FEW_IN_WORDS)
    if len(comparison.settings) >= 10:
        lines.append("Of many intervals, one in 20 leaves out the true difference by chance.")
    for which, at in (("first", 0), ("second", 1)):
        left = comparison.unpaired[at]
        if left:
            shown = "; ".join(left[:5]) + (f"; and {len(left) - 5} more" if len(left) > 5 else "")
            lines.append(f"Only in the {which} folder: {shown}.")
        if comparison.overall.alone[at]:
            lines.append(
                f"Only in the {which} folder, though its setting is in both: "
                f"{count_of(comparison.overall.alone[at], 'sentence')}."
            )
        if comparison.failed[at]:
            lines.append(f"Failed in the {which} folder: {count_of(comparison.failed[at], 'batch')}.")
        if comparison.cut_off[at]:
            lines.append(
                f"Cut off in the {which} folder: {count_of(comparison.cut_off[at], 'batch')}; "
                "with more time, more may come back."
            )
    for name, (a, b) in comparison.outside.items():
        lines.append(f"Settings differ: {name.replace('_', ' ')} {a} against {b}.")
    for package, (a, b) in comparison.versions.items():
        lines.append(f"Versions differ: {package} {a} against {b}.")
    return lines
