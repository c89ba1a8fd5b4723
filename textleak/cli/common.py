"""What commands share: the two consoles, what was given, and how an error becomes three lines and an exit code."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer

from textleak.errors import InputError, TextleakError, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
# A full disk, a full quota, a limit on a file's size, a place that can only be read.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
ABOVE = 3


def stdout() -> Console:
    """The console for results; on anything but a terminal it neither wraps nor colors."""
    from textleak.view.consoles import ReadableConsole

    if sys.stdout.isatty():
        return ReadableConsole(highlight=False)
    _no_crash(sys.stdout)
    return ReadableConsole(highlight=False, width=10_000, soft_wrap=True)


def print_listing(*parts: Any) -> None:  # noqa: ANN401 - what rich prints
    """Tables and texts on stdout, wrapped to the terminal's width, or to 100 columns where there is none."""
    import shutil

    from textleak.view.consoles import ReadableConsole

    console = stdout()
    if sys.stdout.isatty():
        console.print(*parts, sep="\n")
        return
    width = shutil.get_terminal_size(fallback=(100, 24)).columns  # COLUMNS, where it is set
    drawn = ReadableConsole(highlight=False, width=width, color_system=None, file=io.StringIO())
    drawn.print(*parts, sep="\n")
    for line in drawn.file.getvalue().splitlines():  # type: ignore[attr-defined]
        console.print(line.rstrip(), markup=False)


def stderr() -> Console:
    """The console for progress and errors; where nobody reads it any more, what it says is lost, never the work."""
    from textleak.view.consoles import Commentary

    _no_crash(sys.stderr)
    return Commentary()


def starting(model: str | None, *, default: str) -> None:
    """Say on stderr at once what is being loaded and why it takes a while: the first imports take seconds."""
    why = "" if model else ", the default: small"
    _no_crash(sys.stderr)
    sys.stderr.write(f"textleak: loading torch and the model {shown(model or default)}{why}\n")
    sys.stderr.flush()


def loading() -> Status:
    """What a person sees on a terminal's stderr while the model is loaded."""
    return stderr().status("loading the model and computing the gradient…")


def _no_crash(stream: object) -> None:
    """Let a stream that can't write a letter write something else for it."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def print_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """The one JSON document on stdout."""
    unicode = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    text = json.dumps(value, ensure_ascii=not unicode, indent=1, default=str)
    sys.stdout.write(_UNSHOWN.sub(_escaped, text) + "\n")
    sys.stdout.flush()


# What JSON leaves as it is and a terminal may obey: such letters stand in texts alone, where they can be escaped.
_UNSHOWN = re.compile(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def given(**flags: Any) -> dict[str, Any]:  # noqa: ANN401
    """The flags that were given, by the name of their setting."""
    return {name: value for name, value in flags.items() if value is not None and value != []}


# Flags whose setting has another name, as several may be given; and those that are no settings.
_SETTINGS = {
    "sentence": "sentences",
    "image": "images",
    "index": "indices",
    "label": "labels",
    "defense": "defenses",
}
_NO_SETTINGS = ("config", "assignments", "json_", "film")


def settings_given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A command's flags that were given, by the name of their setting.

    Args:
        parameters: all of the command's, by name; a switch that is off wasn't given.
    """
    flags = {
        _SETTINGS.get(name, name): value for name, value in parameters.items() if name not in _NO_SETTINGS
    }
    return given(**{name: None if value is False else value for name, value in flags.items()})


def check_target(path: Path, flag: str) -> None:
    """Make sure that a file can be written: better now than when all is computed.

    Args:
        path: the file.
        flag: that names it.

    Raises:
        InputError: it can't.
    """
    from textleak import owned, runs
    from textleak.errors import unwritten

    with unwritten(f"{flag} {path} can't be written.", fix="Name another file."):
        owned.check(path)
    runs.check_writable(path.parent)


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose errors become words on stderr and an exit code, never a bare traceback."""

    @functools.wraps(command)
    def guard(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except TextleakError as error:
            print_error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            stderr().print("Interrupted.", style="yellow")
            raise typer.Exit(INTERRUPTED) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except BrokenPipeError:
            # Whoever read stdout has gone, as `| head` does; keep Python from complaining at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            known = _of_the_system(error)
            if known is None:
                report_bug(error, None, redact=bool(kwargs.get("redact")))
                raise typer.Exit(1) from None
            print_error(known)
            raise typer.Exit(known.exit_code) from None

    return guard


def _of_the_system(error: Exception) -> TextleakError | None:
    """What a person can mend of a system's error, wherever it was met; None where it is a bug."""
    if not isinstance(error, OSError):
        return None
    where = f"{error.filename} can't be used" if error.filename else "A file can't be used"
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"{where}.", why="Its name is too long for this system.", fix="Name another file.")
    if error.errno in _NO_ROOM:
        return TextleakError(
            f"{where}: {error.strerror}.", fix="Make room, or name another place, and run it again."
        )
    return None


def print_error(error: TextleakError) -> None:
    """What is wrong, why it matters, what to do: a line each."""
    from rich.text import Text

    console = stderr()
    console.print(Text.assemble(("Error: ", "bold red"), error.what), soft_wrap=True)
    if error.why:
        console.print(Text(f"  {error.why}"), soft_wrap=True)
    if error.fix:
        console.print(Text(f"  {error.fix}", style="green"), soft_wrap=True)


def report_bug(error: Exception, path: Path | None, *, redact: bool = False) -> str:
    """Say on stderr that something went wrong that should not have, and keep the traceback in a file.

    Args:
        error: what was raised.
        path: where the traceback goes; None for a new file beside the run folders.
        redact: leave out the error's message, which may quote the input.

    Returns:
        The error in a line.
    """
    from rich.text import Text

    from textleak import owned
    from textleak.runs import runs_folder

    lines = traceback.format_exception(error)
    message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if redact:
        lines, message = traceback.format_tb(error.__traceback__), type(error).__name__
        lines.append(f"{message}\n")
    try:
        if path is None:
            # Not in the temporary folder, which all share: it may quote the private text.
            folder = runs_folder() / "tracebacks"
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / f"traceback-{secrets.token_hex(8)}.txt"
        owned.write(path, "".join(lines).encode("utf-8", "replace"))
        where = f"The traceback is in {path}."
    except (OSError, TextleakError) as failure:
        where = f"The traceback could not be written: {failure}."
    console = stderr()
    console.print(
        Text.assemble(("Error: ", "bold red"), "something went wrong inside textleak."), soft_wrap=True
    )
    console.print(Text(f"  {message}"), soft_wrap=True)
    console.print(Text(f"  {where} TEXTLEAK_DEBUG=1 prints it.", style="green"), soft_wrap=True)
    if os.environ.get("TEXTLEAK_DEBUG") == "1":
        sys.stderr.write("".join(lines))
    return message


def say_weights(weights: str, source: str, model: str, *, console: Console | None = None) -> None:
    """Say loudly where weights are random, all of them or a head's, on stderr or the console that a live view has."""
    from rich.text import Text

    from textleak.jobs.files import drawn_parts

    console = console or stderr()
    if weights == "random":
        console.print(
            Text.assemble(
                ("RANDOM WEIGHTS", "bold black on yellow"),
                (f" {model}: {source}. ", "yellow"),
                "What leaks depends on the weights: take pretrained ones for figures about a real model.",
            ),
            soft_wrap=True,
        )
    elif (drawn := drawn_parts(source)) is not None:
        names, seed = drawn
        console.print(
            Text(
                f"FRESH HEAD {model}: {names} are in no checkpoint and were drawn (seed {seed}), as a client draws "
                "them before its first step.",
                style="yellow",
            ),
            soft_wrap=True,
        )
