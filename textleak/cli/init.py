"""`textleak init`: a script that audits a training loop, to be filled with one's own model and data."""

from __future__ import annotations

import enum
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from textleak.cli import common, flags


class Loop(enum.StrEnum):
    """The kinds of loop that there is a script for."""

    TRAINER = "trainer"
    PEFT = "peft"
    FLOWER = "flower"
    OPACUS = "opacus"
    PLAIN = "plain"


@common.guarded
def command(
    kind: Annotated[
        Loop,
        typer.Argument(metavar="KIND", help="trainer | peft | flower | opacus | plain: your kind of loop."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The script.", show_default="audit_KIND.py here"),
    ] = None,
    json_: flags.Json = False,
) -> None:
    """Write a script that trains, records what leaves the client, and audits it.

    It runs as it is, on a small model and two sentences; put your own model and data in their place.
    """
    path = out or Path(f"audit_{kind}.py")
    _write(path, script(kind))
    if json_:
        common.print_json({"kind": str(kind), "out": str(path)})
        return
    from rich.text import Text

    console = common.stdout()
    console.print(Text(f"Written: {path}. Run it: python {path}"))
    if missing := absent(kind):
        console.print(Text(f"First: pip install {shlex.join(missing)}"))


# What each script imports beside textleak: the module, and what pip calls it.
_NEEDS = {
    Loop.TRAINER: {"accelerate": "accelerate>=1.1"},
    Loop.PEFT: {"accelerate": "accelerate>=1.1", "peft": "peft"},
    Loop.FLOWER: {"flwr": "flwr[simulation]"},
    Loop.OPACUS: {"opacus": "opacus"},
    Loop.PLAIN: {},
}


def absent(kind: Loop) -> list[str]:
    """What a script needs and this Python hasn't, as pip takes it."""
    return [package for module, package in _NEEDS[kind].items() if find_spec(module) is None]


def script(kind: Loop) -> str:
    """The script for a kind of loop."""
    from importlib.resources import files

    return (files("textleak.cli") / "scripts" / f"{kind}.txt").read_text("utf-8")


def _write(path: Path, text: str) -> None:
    from textleak import owned
    from textleak.errors import InputError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        owned.create(path, text.encode())
    except FileExistsError:
        raise InputError(
            f"{path} is there already.", why="It may be yours.", fix="Name another file: --out FILE."
        ) from None
    except OSError as error:
        raise InputError(
            f"{path} can't be written.", why=owned.why_not(error), fix="Name another file: --out FILE."
        ) from None
