"""Layers of settings: presets in YAML files, `--set KEY=VALUE`, and how one is laid over another."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from textleak import foreign
from textleak.errors import InputError, unknown_name
from textleak.settings.base import unknown_setting
from textleak.settings.specs import MOST_DEPTH, key_and_value, load_yaml, read

EVALUATIONS, CLIENTS = "evaluations", "clients"
"""Folders of presets that aren't a run's."""
MOST_PRESET = foreign.MIB  # bytes of a file (our choice): no preset is near it
# Where a batch may come from: naming one sets aside what a layer below named.
_SOURCES = frozenset({"sentences", "file", "gradients"})
_PICTURES = frozenset({"images", "indices", "dataset"})  # of one batch, several of them may be named


def lay_over(below: dict[str, Any], above: Mapping[str, Any], default_attack: str) -> None:
    """Put `above` over `below`; an attack's options stay only while the attack does."""
    if _SOURCES & above.keys():
        for key in (_SOURCES | {"truth", "labels"}) - above.keys():
            below.pop(key, None)
    for key in (
        _PICTURES if "gradients" in above else ("gradients", "truth") if _PICTURES & above.keys() else ()
    ):
        below.pop(key, None)
    for key, value in above.items():
        if key != "attack":
            below[key] = value
            continue
        new = read(value)
        old = below.get("attack", {})
        if not isinstance(new, Mapping):
            below[key] = value
            continue
        same = "name" not in new or new["name"] == old.get("name", default_attack)
        options = {**(old.get("options", {}) if same else {}), **new.get("options", {})}
        name = new.get("name", old.get("name", default_attack))
        below[key] = {"name": name, "options": options}


def parse_assignment(text: str) -> dict[str, Any]:
    """`a.b=value` as `{"a": {"b": value}}`; the value is YAML.

    Raises:
        InputError: no equals sign, no key, or a value that isn't YAML.
    """
    dotted, value = key_and_value(text)
    setting: Any = value
    if dotted.count(".") >= MOST_DEPTH:
        raise InputError(
            f"--set {text!r} reaches too deep.", fix="Write KEY=VALUE, for example attack.steps=10."
        )
    for part in reversed(dotted.split(".")):
        if not part:
            raise InputError(f"--set {text!r} has an empty key.", fix="Write KEY=VALUE, for example seed=1.")
        setting = {part: setting}
    assert isinstance(setting, dict)
    return setting


def presets_folder() -> Path:
    """Where presets lie: inside the installed package, else in the checkout beside it."""
    installed = Path(str(files("textleak") / "configs"))
    return installed if installed.is_dir() else installed.parent.parent / "configs"


def preset_names(folder: str = "") -> list[str]:
    """Names that `-c` takes: file names without their ending, with the folder where they lie in one.

    Args:
        folder: "evaluations" for those of `textleak eval`, "clients" for those of `--client`, "" for all others.
    """
    root = presets_folder()
    names = sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    of_their_own = {
        name: name.partition("/")[0] for name in names if name.startswith((f"{EVALUATIONS}/", f"{CLIENTS}/"))
    }
    return [name for name in names if of_their_own.get(name, "") == folder]


def client_kinds(value: object) -> tuple[object, ...]:
    """The kinds of client that a preset's name stands for; anything else is one kind."""
    names = [name.rpartition("/")[2] for name in preset_names(CLIENTS)]
    if value not in names:
        return (value,)
    kinds = read_preset(str(value), CLIENTS)["client"]
    return tuple(kind for kind in kinds if kind != "one-step")


def read_preset(name: str, folder: str = "") -> dict[str, Any]:
    """The settings in a preset.

    Args:
        name: a name of `preset_names`, its last part, or a path to a YAML file.
        folder: as for `preset_names`.

    Raises:
        InputError: unknown (with the nearest names), unreadable, or not a mapping.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        known = preset_names(folder)
        found = [candidate for candidate in known if name in (candidate, candidate.rpartition("/")[2])]
        if not found:
            raise unknown_name(
                "config", name, known or ["(none)"], fix="Give one of the presets, or a path to a YAML file."
            )
        path = presets_folder() / f"{found[0]}.yaml"
    try:
        content = load_yaml(foreign.read(path, most=MOST_PRESET).decode("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"The config {path} can't be read.", why=str(error)) from None
    if not isinstance(content, dict):
        raise InputError(
            f"The config {path} holds no settings.", fix="Write `key: value` lines, for example seed: 1."
        )
    return {str(key): value for key, value in content.items()}


def check_keys(settings: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise for a key that isn't known, and say where it stands."""
    for key in settings:
        if key not in known:
            raise unknown_setting(key, known, where)
