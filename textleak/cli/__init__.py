"""The command line: `textleak COMMAND`, a file a command, each parse → settings → library → render.

stdout carries results, stderr progress and errors. Nothing heavy is imported before a command needs it, so
that `--help` answers at once. Exit codes: 0 done, 1 the run failed, 2 usage, settings or input, 3 above
`--fail-above`, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from typer.models import CommandInfo

from textleak import __version__, allocator
from textleak.cli import (
    audit,
    bench,
    commands,
    common,
    compare,
    doctor,
    evaluate,
    image,
    init,
    look_up,
    models,
    outputs,
    panels,
    registries,
    report,
    run,
    share,
    tui,
)
from textleak.errors import TextleakError

app = typer.Typer(
    name="textleak",
    cls=commands.Group,
    help="Audit how much private text a shared gradient gives away.",
    no_args_is_help=True,
    add_completion=True,
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


# Every command, by the group that it is listed in.
_COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    panels.AUDIT: {
        "run": run.command,
        "audit": audit.command,
        "image": image.command,
        "eval": evaluate.command,
    },
    panels.READ: {
        "tui": tui.command,
        "report": report.command,
        "compare": compare.command,
    },
    panels.MAKE: {
        "share": share.command,
        "init": init.command,
    },
    panels.LOOK_UP: {
        "attacks": registries.attacks,
        "clients": registries.clients,
        "defenses": registries.defenses,
        "models": models.command,
        "settings": look_up.command,
        "bench": bench.command,
        "doctor": doctor.command,
    },
}
for _group, _commands in _COMMANDS.items():
    for _name, _command in _commands.items():
        commands.Group.listed[_name] = CommandInfo(
            _name,
            cls=commands.Command,
            callback=_command,
            rich_help_panel=_group,
            epilog=panels.EPILOGS.get(_name),
        )


def main() -> None:
    """The `textleak` program; a scheduler or a closed terminal that ends it is heard as Ctrl-C is."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(number, signal.default_int_handler)
    allocator.keep_memory()
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
