"""`textleak settings`: what `--set` takes, and a preset may hold."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textleak.cli import common, flags
from textleak.describe import attribute_docs, type_in_words

if TYPE_CHECKING:
    from pydantic import BaseModel

# Settings of each command, by the words that head them.
_KINDS = {"run": "RunConfig", "image": "ImageConfig", "eval": "EvaluationConfig"}


@common.guarded
def command(
    name: Annotated[str | None, typer.Argument(help="Show this one, in every command that has it.")] = None,
    json_: flags.Json = False,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema",
            metavar="NAME",
            help="Print the JSON schema of a document instead: run | audit | image | share | eval | record.",
        ),
    ] = None,
) -> None:
    """List what --set KEY=VALUE takes and a preset may hold: every setting of run, image and eval."""
    if schema is not None:
        from textleak import schemas

        common.print_json(schemas.schema(schema))
        return
    found = settings(name)
    if json_:
        common.print_json(found)
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("of", "setting", "takes", "default", "what it is", box=box.SIMPLE_HEAD, pad_edge=False)
    for one in found:
        default = one["default"] if isinstance(one["default"], str) else json.dumps(one["default"])
        table.add_row(
            *(Text(str(part)) for part in (one["of"], one["name"], one["type"], default, one["doc"]))
        )
    hint = "An attack's own options: --set attack.KEY=VALUE; `textleak attacks NAME` lists them."
    common.print_listing(table, Text(hint, style="bright_black"))


def settings(name: str | None = None) -> list[dict[str, Any]]:
    """Every setting in plain values, or those of one name.

    Raises:
        InputError: there is none of that name.
    """
    import textleak.settings as kinds
    from textleak.errors import unknown_name

    every = [one for of, kind in _KINDS.items() for one in _of(of, getattr(kinds, kind), kinds.RunConfig)]
    found = [one for one in every if name in (None, one["name"])]
    if not found:
        raise unknown_name("setting", str(name), {one["name"] for one in every})
    return found


def _of(command_name: str, kind: type[BaseModel], meant: type[BaseModel]) -> list[dict[str, Any]]:
    """The settings of a command; what a kind leaves unsaid means what it does in `meant`."""
    docs: dict[str, str] = {}
    for base in (*reversed(meant.__mro__), *reversed(kind.__mro__)):
        docs |= attribute_docs(base)
    return [
        {
            "of": command_name,
            "name": name,
            "type": type_in_words(field.annotation),
            "default": _plain(field.get_default(call_default_factory=True)),
            "doc": docs.get(name, "").replace("None for", "null for"),  # as --set writes it
        }
        for name, field in kind.model_fields.items()
    ]


def _plain(value: object) -> Any:  # noqa: ANN401 - what JSON holds
    """A default as `--set` would write it."""
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    spec = getattr(value, "spec", None)
    return spec if spec is not None else value if isinstance(value, str | int | float | None) else str(value)
