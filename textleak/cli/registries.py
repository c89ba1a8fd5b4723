"""`textleak attacks`, `textleak clients` and `textleak defenses`: what there is, and what options each takes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textleak.cli import common, flags
from textleak.describe import describe

if TYPE_CHECKING:
    from textleak.registry import Registry

Name = Annotated[str | None, typer.Argument(help="Show this one with its options.")]


@common.guarded
def attacks(name: Name = None, json_: flags.Json = False) -> None:
    """List the attacks, or one with its options."""
    from textleak.attacks import ATTACKS

    if name is not None or json_:
        _show(ATTACKS, name, as_json=json_, how="--set attack.OPTION=VALUE")
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from textleak.shared.traits import Trait

    table = Table("attack", "use when", "needs", "paper", "reads", box=box.SIMPLE_HEAD, pad_edge=False)
    for key in ATTACKS:
        attack = ATTACKS[key]
        needs = ", ".join(_NEEDS[trait.name] for trait in Trait if trait in attack.needs) or "nothing"
        reads = ", ".join(sorted(modality.value for modality in attack.reads))
        when = getattr(attack, "when", None) or describe(key, attack)["summary"]
        table.add_row(*map(Text, (key, when, needs, getattr(attack, "paper", "-"), reads)))
    hint = Text("Options: `textleak attacks NAME`. `auto` is the default for text, `dlg` for pictures.")
    common.print_listing(table, hint)


# Traits of a client's procedure, in a word or two.
_NEEDS = {
    "ONE_POINT": "gradients at the public weights",
    "ADDITIVE": "sums over samples",
    "IN_SPAN": "clean inputs",
    "SCALED": "known scale",
    "REPEATABLE": "nothing drawn",
}


@common.guarded
def defenses(name: Name = None, json_: flags.Json = False) -> None:
    """List the defenses, or one with its options."""
    from textleak.defenses import DEFENSES

    _show(DEFENSES, name, as_json=json_, how="--defense NAME:OPTION=VALUE,...")


@common.guarded
def clients(name: Name = None, json_: flags.Json = False) -> None:
    """List how clients may train, or one kind with its options."""
    from textleak.clients import CLIENTS

    if name is not None and name in _presets():
        _show_preset(name, as_json=json_)
        return
    _show(CLIENTS, name, as_json=json_, how="--client NAME:OPTION=VALUE,...")
    if name is None and not json_:
        _show_presets()


def _presets() -> dict[str, tuple[object, ...]]:
    """The kinds of client that each preset stands for."""
    from textleak.settings.presets import CLIENTS, client_kinds, preset_names

    names = [preset.rpartition("/")[2] for preset in preset_names(CLIENTS)]
    return {name: client_kinds(name) for name in names}


def _show_preset(name: str, *, as_json: bool) -> None:
    """What one preset stands for, and where its kinds are explained."""
    from rich.text import Text

    kinds = [str(kind) for kind in _presets()[name]] or ["one-step"]
    if as_json:
        common.print_json({"name": name, "kinds": kinds})
        return
    lines = [Text(name, style="bold"), Text("A preset; it stands for:")]
    lines += [Text(f"  --client {kind}") for kind in kinds]
    known = " ".join(dict.fromkeys(kind.partition(":")[0] for kind in kinds))
    hint = Text(f"Options of a kind: `textleak clients KIND` ({known}).", style="bright_black")
    common.print_listing(*lines, hint)


def _show_presets() -> None:
    """What `--client` takes beside the kinds."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table("preset", "what it stands for", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, found in _presets().items():
        table.add_row(name, Text(" ".join(f"--client {kind}" for kind in found) or "--client one-step"))
    common.print_listing(table)


def _show(registry: Registry[Any], name: str | None, *, as_json: bool, how: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    described = [describe(key, registry[key]) for key in ([name] if name is not None else registry)]
    if as_json:
        common.print_json(described if name is None else described[0])
        return
    if name is None:
        table = Table(registry.kind, "what it does", "options", box=box.SIMPLE_HEAD, pad_edge=False)
        for one in described:
            options = ", ".join(option["name"] for option in one["options"]) or "-"
            table.add_row(*map(Text, (one["name"], one["summary"], options)))
        common.print_listing(table)
        return
    one = described[0]
    parts: list[Any] = [Text(one["name"], style="bold"), Text(one["summary"])]
    if one["options"]:
        table = Table("option", "takes", "default", "what it is", box=box.SIMPLE_HEAD, pad_edge=False)
        for option in one["options"]:
            doc = option["doc"].replace("None for", "null for")  # as --set writes it
            default = _value_in_words(option["default"])
            table.add_row(*map(Text, (option["name"], option["takes"], default, doc)))
        parts += [table, Text(f"Set one with {how}.", style="bright_black")]
    common.print_listing(*parts)


def _value_in_words(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
