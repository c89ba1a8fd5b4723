"""`textleak tui [PATH]`: set up a run and watch it, open old runs and evaluations, audit an update."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from textleak.cli import common
from textleak.errors import InputError


@common.guarded
def command(
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="[PATH]",
            help="Open this folder of a run or an evaluation, also one still going; or audit this update's file.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Watch the text come back, token by token, in a terminal app."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            "textleak tui needs a terminal.",
            why="Its input or output is a pipe or a file here.",
            fix="Start it in a terminal, or use `textleak run`, which writes lines and JSON.",
        )
    run, update = _told_apart(path)
    from textleak_tui import settings
    from textleak_tui.app import build_app
    from textleak_tui.starter import Starter

    app = build_app(run=run, update=update, settings_path=settings.default_path(), starter=Starter())
    app.run()
    if app.return_code:
        raise typer.Exit(app.return_code)


def _told_apart(path: Path | None) -> tuple[Path | None, Path | None]:
    """The folder of a run or of an evaluation, or the file of an update; None for what it isn't.

    Raises:
        InputError: a folder that is neither.
    """
    if path is None or (path.is_file() and path.name != "events.jsonl"):
        return None, path
    from textleak.runs import holds_an_evaluation, read_run

    if holds_an_evaluation(path):
        from textleak.evaluation.store import EvaluationFolder

        EvaluationFolder(path=path).facts()
        return path, None
    read_run(path.parent if path.name == "events.jsonl" else path)
    return path, None
