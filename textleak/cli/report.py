"""`textleak report`: what an evaluation or a run found, as a page to read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textleak.cli import common
from textleak.errors import InputError, unwritten

if TYPE_CHECKING:
    from textleak.reports.analysis import Report


@common.guarded
def command(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The folder of an evaluation or of a run.", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="A page (.html) or Markdown (.md).",
            show_default="report.html and report.md in DIR",
        ),
    ] = None,
    utility: Annotated[
        Path | None,
        typer.Option(
            "--utility", metavar="FILE", help="Accuracy and MCC that defenses cost, for the same table."
        ),
    ] = None,
    redact: Annotated[
        bool, typer.Option("--redact", help="Leave out every text: sentences, secrets, errors.")
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; files only with --out.")
    ] = False,
) -> None:
    """Write what an evaluation or a run found as a page to read: HTML and Markdown."""
    if out is not None and out.suffix.lower() not in (".html", ".htm", ".md"):
        raise InputError(
            f"--out {out} is neither a page nor Markdown.",
            why="Its ending says what is written.",
            fix="Name a file that ends in .html or .md.",
        )
    from textleak.reports.analysis import analyze
    from textleak.reports.pages import to_json
    from textleak.reports.reading import read
    from textleak.reports.utility import read_utility

    costs = None if utility is None else read_utility(utility)
    report = analyze(read(folder), utility=costs)
    targets = [out] if out is not None else [folder / "report.html", folder / "report.md"]
    if json_:
        if out is not None:
            write_page(report, out, redact=redact)
        common.print_json(to_json(report, redact=redact))
        return
    console = common.stdout()
    for target in targets:
        write_page(report, target, redact=redact)
    console.print(f"{report.verdict.value}: {' '.join(report.headline)}", markup=False, soft_wrap=True)
    for target in targets:
        console.print(str(target), markup=False, soft_wrap=True)


def write_page(report: Report, path: Path, *, redact: bool) -> None:
    """Write one file, readable by its owner only: it quotes private text.

    Raises:
        InputError: it can't be written.
    """
    from textleak import owned
    from textleak.reports.pages import to_html, to_markdown

    render = to_markdown if path.suffix.lower() == ".md" else to_html
    page = render(report, redact=redact)
    with unwritten(f"{path} can't be written.", fix="Choose another file with --out."):
        owned.write(path, page.encode("utf-8", "replace"))
