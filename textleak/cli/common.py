"""What commands share: flags, the two consoles, and how an error becomes three lines and an exit code."""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import io
import json
import os
import re
import secrets
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, ParamSpec, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandInfo

from textleak.cli import panels
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

# Flags. Those of settings default to None, "not given", so that a preset can say otherwise.

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="TEXT",
        help="Alias (bert-base, bert-tiny, gpt2, …), hub id, folder, or folder and .gguf file.",
        show_default="bert-tiny",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="TEXT",
        help="auto | pretrained | random. auto: pretrained if in the cache, an installed package or the hub; "
        "else random, with a warning.",
        show_default="auto",
    ),
]
Sentences = Annotated[
    list[str] | None,
    typer.Option(
        "--sentence", "-s", metavar="TEXT", help="A private sentence; repeat it for one batch of several."
    ),
]
File = Annotated[
    Path | None, typer.Option("--file", metavar="PATH", help="A text file, one sentence a line.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="INT",
        help="A sentence's class, repeated with --sentence; else drawn from the seed. What another loss takes: 3.5 "
        "(regression), 0,1,1 (one answer a class, one class a token), 2,4 (an answer's first and last token).",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="TEXT",
        help="auto | classification | causal-lm | masked-lm | regression | multi-label | token-classification | "
        "question-answering",
        show_default="auto",
    ),
]
Share = Annotated[
    str | None,
    typer.Option(
        "--share",
        metavar="TEXT",
        help="all | no-embeddings (without every embedding, the output head and what is tied to them) | "
        "attention (query, key, value) | a regular expression on parameter names.",
        show_default="all",
    ),
]
Clients = Annotated[
    list[str] | None,
    typer.Option(
        "--client",
        metavar="SPEC",
        help="How the client trains: name[:key=value,...] or a preset; repeat it, kinds are composed in order.",
        show_default="one-step",
    ),
]
Defenses = Annotated[
    list[str] | None,
    typer.Option(
        "--defense", metavar="SPEC", help="name[:key=value,...]; repeat it, they are applied in order."
    ),
]
Know = Annotated[
    str | None,
    typer.Option(
        "--know",
        metavar="WORDS",
        help="What the server is told beside the gradient: lengths, labels, batch-size (with commas), or nothing. "
        "no-defense and no-client keep from it what was done to the gradient, and how the client trains.",
        show_default="batch-size; lengths of one sentence",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="INT", help="Weights, client, defense and attack draw from it.", show_default="0"
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="TEXT", help="auto | cpu | cuda[:N] | mps", show_default="auto"),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="INT", help="CPU threads.", show_default="the cores at hand"),
]
Config = Annotated[
    str | None, typer.Option("--config", "-c", metavar="TEXT", help="Preset name or path to a YAML file.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, also an attack's own (attack.KEY=VALUE); repeat it. Wins over everything.",
    ),
]
Gradients = Annotated[
    Path | None,
    typer.Option(
        "--gradients",
        metavar="FILE",
        help="Attack the gradient in a file instead; --model names its model, unless that is an alias.",
    ),
]
TruthFile = Annotated[
    Path | None,
    typer.Option("--truth", metavar="FILE", help="Score it against this file; without it scores are null."),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", "-i", metavar="FILE", help="A private picture; repeat it for one batch."),
]
Indices = Annotated[
    list[int] | None,
    typer.Option("--index", metavar="INT", help="Picture number in --dataset; repeat it.", show_default="0"),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="TEXT",
        help="cifar100 | cifar10 | mnist (local cache or hub) | a folder of pictures.",
        show_default="sample pictures that ship with textleak",
    ),
]
Restarts = Annotated[
    int | None,
    typer.Option(
        "--restarts", "-k", metavar="INT", help="Candidates attacked at once.", show_default="the attack's"
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run folder.", show_default="a new one under $TEXTLEAK_RUNS"),
]
SaveGradients = Annotated[
    bool, typer.Option("--save-gradients", help="Keep the shared gradient in the run folder.")
]
FailAbove = Annotated[
    float | None,
    typer.Option(
        "--fail-above", metavar="FLOAT", help="Exit 3 when the token match rate is above it (for CI)."
    ),
]
Redact = Annotated[bool, typer.Option("--redact", help="No text in any record, nor on the screen.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, progress on stderr.")]


class Command(TyperCommand):
    """A command that is given no empty value and no text of no encoding: a shell's unset variable is no wish.

    Its options stand in the panels that `panels` has for them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as typer's
        super().__init__(*args, **kwargs)
        options = [one for one in self.params if getattr(one, "rich_help_panel", None) is None]
        for option in options:
            if option.param_type_name == "option":
                option.rich_help_panel = panels.PANELS.get(str(option.name))  # type: ignore[attr-defined]
                if getattr(option, "is_flag", False):
                    option.metavar = ""  # it takes nothing
        # A page shows panels in the order of their first options.
        self.params.sort(key=lambda one: _place(getattr(one, "rich_help_panel", None)))

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - click's, wherever typer has it
        """The option --help, after all others of commands that have panels."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
            if any(getattr(one, "rich_help_panel", None) for one in self.params):
                option.rich_help_panel = panels.SCRIPTS
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's, wherever typer has it
        """Refuse such values before anything is made of them.

        Raises:
            typer.Exit: there is one, and has been told.
        """
        problem = _unusable(args)
        if problem is not None:
            print_error(problem)
            raise typer.Exit(problem.exit_code)
        with _shown_shortly():
            return super().parse_args(ctx, args)


def _place(panel: str | None) -> int:
    return panels.ORDER.index(panel) + 1 if panel in panels.ORDER else 0


class Group(TyperGroup):
    """The program: which command it is. A command's options are made when it is used; the page that lists all
    commands needs none.
    """

    listed: ClassVar[dict[str, CommandInfo]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as typer's
        super().__init__(*args, **kwargs)
        self.commands = _Commands(self.listed, _made)  # type: ignore[assignment]  # click only reads it

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - click's, wherever typer has it
        """The page that lists all commands."""
        made, self.commands = self.commands, _Commands(self.listed, _entry)  # type: ignore[assignment]
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = made

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - likewise
        """The command that the arguments name."""
        with _shown_shortly():
            return super().resolve_command(ctx, args)


class _Commands(Mapping[str, TyperCommand]):
    """Commands by name, each made when it is asked for."""

    def __init__(self, infos: Mapping[str, CommandInfo], make: Callable[[CommandInfo], TyperCommand]) -> None:
        self._infos = infos
        self._make = functools.cache(make)

    def __getitem__(self, name: str) -> TyperCommand:
        return self._make(self._infos[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)


def _made(info: CommandInfo) -> TyperCommand:
    """A command with its options."""
    return typer.main.get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode="rich")  # type: ignore[return-value]


def _entry(info: CommandInfo) -> TyperCommand:
    """A command as the page that lists all has it: a name, a line of help, a panel."""
    return TyperCommand(info.name, help=inspect.getdoc(info.callback), rich_help_panel=info.rich_help_panel)


@contextlib.contextmanager
def _shown_shortly() -> Iterator[None]:
    """Let an error of usage quote a value as all errors do."""
    try:
        yield
    except Exception as error:
        if isinstance(getattr(error, "message", None), str):
            error.message = shown(error.message)  # type: ignore[attr-defined]
        raise


def _unusable(args: Sequence[str]) -> InputError | None:
    """What is wrong with the first value that can't be meant; None where there is none."""
    before = ""
    for arg in args:
        empty = arg == "" or (arg.startswith("--") and arg.endswith("=") and arg.count("=") == 1)
        name = before if before.startswith("-") else "An argument"
        if empty:
            return InputError(
                f"{arg[:-1] or name} was given an empty value.",
                why="That is what a shell makes of a variable that isn't set.",
                fix="Leave it out, or give it a value.",
            )
        try:
            arg.encode()
        except UnicodeEncodeError:
            return InputError(
                f"{name} was given {arg!r}, which is not UTF-8.",
                why="It could be shown and recorded by no name that leads back to it.",
                fix="Write it in UTF-8; a file can be renamed.",
            )
        before = arg
    return None


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
    """Say loudly where there was nothing but random weights, on stderr or the console that a live view has."""
    from rich.text import Text

    if weights == "random":
        (console or stderr()).print(
            Text.assemble(
                ("RANDOM WEIGHTS", "bold black on yellow"),
                (f" {model}: {source}. ", "yellow"),
                "What leaks depends on the weights: take pretrained ones for figures about a real model.",
            ),
            soft_wrap=True,
        )
