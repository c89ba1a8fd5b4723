"""The command line: `textleak COMMAND`, a file a command, each parse → settings → library → render.

stdout carries results, stderr progress and errors. Nothing heavy is imported before a command needs it, so
that `--help` answers at once. Exit codes: 0 done, 1 the run failed, 2 usage, settings or input, 3 above
`--fail-above`, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from textleak import __version__
from textleak.cli import (
    audit,
    bench,
    common,
    compare,
    doctor,
    evaluate,
    image,
    init,
    models,
    outputs,
    registries,
    report,
    run,
    share,
    tui,
)
from textleak.errors import TextleakError

app = typer.Typer(
    name="textleak",
    cls=common.Group,
    help="Audit how much private text a shared gradient gives away.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"textleak {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Audit how much private text a shared gradient gives away."""


app.command("run", cls=common.Command)(run.command)
app.command("audit", cls=common.Command)(audit.command)
app.command("image", cls=common.Command)(image.command)
app.command("eval", cls=common.Command)(evaluate.command)
app.command("share", cls=common.Command)(share.command)
app.command("tui", cls=common.Command)(tui.command)
app.command("init", cls=common.Command)(init.command)
app.command("models", cls=common.Command)(models.command)
app.command("attacks", cls=common.Command)(registries.attacks)
app.command("clients", cls=common.Command)(registries.clients)
app.command("defenses", cls=common.Command)(registries.defenses)
app.command("report", cls=common.Command)(report.command)
app.command("compare", cls=common.Command)(compare.command)
app.command("bench", cls=common.Command)(bench.command)
app.command("doctor", cls=common.Command)(doctor.command)


def main() -> None:
    """The `textleak` program; a scheduler or a closed terminal that ends it is heard as Ctrl-C is."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, signal.default_int_handler)
    outputs.prepare()
    sys.exit(_run())


def _run() -> int:
    """Run the command that was given; the exit code."""
    try:
        try:
            app()
        except SystemExit as end:
            outputs.finish()
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    except TextleakError as error:
        common.print_error(error)
        return error.exit_code
    except BrokenPipeError:
        outputs.forget()
        return 1
    return 0
