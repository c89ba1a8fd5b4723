"""`textleak tui [RUN]`: set up a run and watch it, open old runs, compare them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from textleak.cli import common
from textleak.errors import InputError


@common.guarded
def command(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN]", help="Open this run folder, finished or still going.")
    ] = None,
) -> None:
    """Watch the text come back, token by token, in a terminal app."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            "textleak tui needs a terminal.",
            why="Its input or output is a pipe or a file here.",
            fix="Start it in a terminal, or use `textleak run`, which writes lines and JSON.",
        )
    if run is not None:
        from textleak.runs import read_run

        read_run(run.parent if run.name == "events.jsonl" else run)
    from textleak_tui import settings
    from textleak_tui.app import build_app

    app = build_app(run=run, settings_path=settings.default_path())
    app.run()
    if app.return_code:
        raise typer.Exit(app.return_code)
