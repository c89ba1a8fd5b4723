"""What commands share: flags, the two consoles, and how an error becomes three lines and an exit code."""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from textleak.errors import TextleakError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
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
        "else random, which is said loudly.",
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
    list[int] | None,
    typer.Option(
        "--label",
        metavar="INT",
        help="A sentence's class, repeated with --sentence; else drawn from the seed.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="TEXT", help="auto | classification | causal-lm | masked-lm", show_default="auto"
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
        help="How the client trains: name[:key=value,...]; repeat it, kinds are composed in order.",
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
        metavar="TEXT",
        help="lengths,labels,batch-size, or nothing: what the attacker is told; with no-defense or no-client, not what "
        "was done to the gradient, or not how the client trains.",
        show_default="batch-size; lengths when B = 1",
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
    typer.Option("--index", metavar="INT", help="Or its number in --dataset; repeat it.", show_default="0"),
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
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, progress on stderr.")]


def stdout() -> Console:
    """The console for results; on anything but a terminal it neither wraps nor colors."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False)
    _no_crash(sys.stdout)
    return Console(highlight=False, width=10_000, soft_wrap=True)


def stderr() -> Console:
    """The console for progress and errors; where nobody reads it any more, what it says is lost, never the work."""
    from rich.console import Console

    class Commentary(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    _no_crash(sys.stderr)
    return Commentary(stderr=True, highlight=False)


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
    sys.stdout.write(json.dumps(value, ensure_ascii=not unicode, indent=1, default=str) + "\n")
    sys.stdout.flush()


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
_NO_SETTINGS = ("config", "assignments", "json_")


def settings_given(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A command's flags that were given, by the name of their setting.

    Args:
        parameters: all of the command's, by name; a switch that is off wasn't given.
    """
    flags = {
        _SETTINGS.get(name, name): value for name, value in parameters.items() if name not in _NO_SETTINGS
    }
    return given(**{name: None if value is False else value for name, value in flags.items()})


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
            report_bug(error, None)
            raise typer.Exit(1) from None

    return guard


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
        path: where the traceback goes; None for a temporary file.
        redact: leave out the error's message, which may quote the input.

    Returns:
        The error in a line.
    """
    from rich.text import Text

    lines = traceback.format_exception(error)
    message = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if redact:
        lines, message = traceback.format_tb(error.__traceback__), type(error).__name__
        lines.append(f"{message}\n")
    try:
        if path is None:
            handle, name = tempfile.mkstemp(prefix="textleak-traceback-", suffix=".txt")
            os.close(handle)
            path = Path(name)
        path.write_text("".join(lines), "utf-8")
        where = f"The traceback is in {path}."
    except OSError as failure:
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
