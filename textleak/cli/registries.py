"""`textleak attacks`, `textleak clients` and `textleak defenses`: what there is, and what options each takes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textleak.cli import common
from textleak.describe import describe

if TYPE_CHECKING:
    from textleak.registry import Registry

Name = Annotated[str | None, typer.Argument(help="Show this one with its options.")]


@common.guarded
def attacks(name: Name = None, json_: common.Json = False) -> None:
    """List the attacks, or one with its options."""
    from textleak.attacks import ATTACKS

    _show(ATTACKS, name, as_json=json_, how="--set attack.OPTION=VALUE")


@common.guarded
def defenses(name: Name = None, json_: common.Json = False) -> None:
    """List the defenses, or one with its options."""
    from textleak.defenses import DEFENSES

    _show(DEFENSES, name, as_json=json_, how="--defense NAME:OPTION=VALUE,...")


@common.guarded
def clients(name: Name = None, json_: common.Json = False) -> None:
    """List how clients may train, or one kind with its options."""
    from textleak.clients import CLIENTS

    _show(CLIENTS, name, as_json=json_, how="--client NAME:OPTION=VALUE,...")
    if name is None and not json_:
        _show_presets()


def _show_presets() -> None:
    """What `--client` takes beside the kinds."""
    from rich import box
    from rich.table import Table

    from textleak.settings.presets import CLIENTS, client_kinds, preset_names

    table = Table("preset", "what it stands for", box=box.SIMPLE_HEAD, pad_edge=False)
    for preset in preset_names(CLIENTS):
        known = preset.rpartition("/")[2]
        kinds = [f"--client {kind}" for kind in client_kinds(known)]
        table.add_row(known, " ".join(kinds) or "--client one-step")
    common.stdout().print(table)


def _show(registry: Registry[Any], name: str | None, *, as_json: bool, how: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    described = [describe(key, registry[key]) for key in ([name] if name is not None else registry)]
    if as_json:
        common.print_json(described if name is None else described[0])
        return
    console = common.stdout()
    if name is None:
        table = Table(registry.kind, "what it does", "options", box=box.SIMPLE_HEAD, pad_edge=False)
        for one in described:
            table.add_row(one["name"], one["summary"], ", ".join(o["name"] for o in one["options"]) or "-")
        console.print(table)
        return
    one = described[0]
    console.print(Text(one["name"], style="bold"))
    console.print(Text(one["summary"]))
    if one["options"]:
        table = Table("option", "takes", "default", "what it is", box=box.SIMPLE_HEAD, pad_edge=False)
        for option in one["options"]:
            default = Text(_value_in_words(option["default"]))
            table.add_row(option["name"], _type_in_words(option["type"]), default, Text(option["doc"]))
        console.print(table)
        console.print(Text(f"Set one with {how}.", style="bright_black"))


_TYPES = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text", "None": "null"}


def _type_in_words(name: str) -> str:
    """What an option takes, as it is written behind --set."""
    choices = re.fullmatch(r"Literal\[(.*)\]", name)
    if choices:
        return " | ".join(choice.strip().strip("'\"") for choice in choices[1].split(","))
    return " or ".join(_TYPES.get(part, part) for part in name.split(" | "))


def _value_in_words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
