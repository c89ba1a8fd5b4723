"""`textleak tui [PATH]`: set up a run and watch it, open old runs and evaluations, audit an update."""

from __future__ import annotations

import contextlib
import os
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
    serve: Annotated[
        bool, typer.Option("--serve", help="Show the app in a browser on this machine; Ctrl+C ends it.")
    ] = False,
    port: Annotated[
        int, typer.Option("--port", min=1, max=65535, help="Of localhost, with --serve.", metavar="INT")
    ] = 8000,
) -> None:
    """Watch the text come back, token by token, in a terminal app."""
    if serve:
        _serve(path, port)
        return
    # In a browser, pipes lead to textual-serve, which names the driver that speaks with it.
    if "TEXTUAL_DRIVER" not in os.environ and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            "textleak tui needs a terminal.",
            why="Its input or output is a pipe or a file here.",
            fix="Start it in a terminal, or use `textleak run`, which writes lines and JSON.",
        )
    run, update = _told_apart(path)
    from textleak_tui.starter import Starter

    starter = Starter()
    with contextlib.suppress(OSError):  # attacks start cold then
        starter.begin()  # before the app itself is loaded, which takes as long as half of torch
    from textleak_tui import settings
    from textleak_tui.app import build_app

    app = build_app(run=run, update=update, settings_path=settings.default_path(), starter=starter)
    app.run()
    if app.return_code:
        raise typer.Exit(app.return_code)


def _serve(path: Path | None, port: int) -> None:
    _told_apart(path)
    from textleak_tui.serve import served

    command = [
        sys.executable,
        "-m",
        "textleak.cli",
        "tui",
        *([] if path is None else ["--", str(path.resolve())]),
    ]
    served(command, port, told=lambda address: typer.echo(f"The app is at {address}\nCtrl+C ends it."))


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
