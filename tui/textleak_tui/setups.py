"""The kinds of run, on sentences, pictures or an update that was found: their fields, their batch, what they amount to.

A form's texts become settings by the names that configurations have, which is what an attack's process is given, or
the command line that says the same.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from textleak import foreign
from textleak.errors import InputError
from textleak_tui.catalog import Catalog
from textleak_tui.field import Field
from textleak_tui.fields import AUDIT_FIELDS, FIELDS, IMAGE_FIELDS
from textleak_tui.grid_fields import GRID_FIELDS, SEVERAL, check_data
from textleak_tui.rare_fields import REDACT, YES

# What a batch's settings are on the command line.
_FLAGS = {
    "sentences": "--sentence",
    "indices": "--index",
    "images": "--image",
    "gradients": "",  # by its place
    "before": "--before",
    "after": "--after",
    "data": "--data",
}


def check_sentences(sentences: Sequence[str]) -> None:
    """At least one.

    Raises:
        InputError: there is none.
    """
    if not sentences:
        raise InputError("There is nothing to attack yet.", fix="Type a sentence.")


def check_pictures(pictures: Sequence[str]) -> None:
    """Numbers or files, but not both; none at all is the first sample.

    Raises:
        InputError: both, or a file that isn't there.
    """
    files = [one for one in pictures if not one.isdigit()]
    if files and len(files) < len(pictures):
        raise InputError("Numbers and files are mixed.", fix="Give the numbers of pictures, or files.")
    for file in files:
        if not foreign.expanded(file).is_file():
            raise InputError(
                f"{file} is no file.", fix="Give a picture file, or a sample's number (0 to 19)."
            )


def check_update(paths: Sequence[str]) -> None:
    """A file, or two checkpoints; the weights before may be an alias or a hub id.

    Raises:
        InputError: neither, or a file that isn't there.
    """
    if not 1 <= len(paths) <= 2:
        raise InputError(
            "There is nothing to audit yet." if not paths else "An audit is of one update.",
            fix="Type the file of an update, or two lines: the weights before and those after.",
        )
    if not foreign.expanded(paths[-1]).exists():
        raise InputError(f"{paths[-1]} isn't there.", fix="Type the path of a file or of a folder.")


def sentences_of(text: str) -> list[str]:
    """One sentence a line, blank ones left out."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _of_sentences(sentences: Sequence[str]) -> dict[str, list[str]]:
    return {"sentences": list(sentences)}


def _of_pictures(pictures: Sequence[str]) -> dict[str, list[str]]:
    numbers = [one for one in pictures if one.isdigit()]
    files = [str(foreign.expanded(one)) for one in pictures if not one.isdigit()]
    return {name: found for name, found in (("indices", numbers), ("images", files)) if found}


def _of_update(paths: Sequence[str]) -> dict[str, str]:
    found = [str(foreign.expanded(path)) for path in paths]
    names = ("gradients",) if len(found) < 2 else ("before", "after")
    return dict(zip(names, found, strict=False))


def _of_data(names: Sequence[str]) -> dict[str, list[str]]:
    return {"data": list(names)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What one kind of run is set up with.

    Attributes:
        command: of `textleak`.
        place: where it stands in the app.
        loading: what is done before an attack begins.
        title: of the private batch.
        several: what several are, with their number.
        invitation: words in its empty field.
        intro: a question and what to do.
        fields: the settings.
        check: raises an `InputError` for a batch that can't be used.
        batch: the settings that the batch is.
        lists: fields that may hold several names, with blanks between them.
    """

    command: str
    place: str
    loading: str
    title: str
    several: str
    invitation: str
    intro: tuple[str, str]
    fields: tuple[Field, ...]
    check: Callable[[Sequence[str]], None]
    batch: Callable[[Sequence[str]], Mapping[str, list[str] | str]]
    lists: tuple[str, ...] = ("client", "defenses", "labels", "assignments")


TEXT = Setup(
    command="run",
    place="run",
    loading="Loading the model and computing the gradient",
    title="Sentence",
    several="one batch of {} sentences",
    invitation="type a sentence, then Enter (Ctrl+N: another)",
    intro=(
        "What does a shared gradient give away?",
        "Type a sentence, press Enter, watch.",
    ),
    fields=FIELDS,
    check=check_sentences,
    batch=_of_sentences,
)
IMAGE = Setup(
    command="image",
    place="pictures",
    loading="Loading the model and computing the gradient",
    title="Picture",
    several="one batch of {} pictures",
    invitation="0 to 19 or a file, Enter (Ctrl+N: another)",
    intro=(
        "And a picture?",
        "Give a sample's number or a file, press Enter, and watch an attack draw it.",
    ),
    fields=IMAGE_FIELDS,
    check=check_pictures,
    batch=_of_pictures,
)


AUDIT = Setup(
    command="audit",
    place="audit",
    loading="Loading the model and the update, and asking what it tells",
    title="Update",
    several="{} checkpoints, before and after",
    invitation="a file, then Enter (Ctrl+N: before and after)",
    intro=(
        "What does an update of your own training give away?",
        "Type its file (a gradient, a state dict), or two lines: the checkpoints before and after.",
    ),
    fields=AUDIT_FIELDS,
    check=check_update,
    batch=_of_update,
)


GRID = Setup(
    command="eval",
    place="grid",
    loading="Reading the data and loading the model",
    title="Data",
    several="{} data sets",
    invitation="sample, cola or a file (Ctrl+N: another)",
    intro=(
        "How much leaks over a data set?",
        "Name data (sample, cola, a file): each combination is a cell.",
    ),
    fields=GRID_FIELDS,
    check=check_data,
    batch=_of_data,
    lists=SEVERAL,
)


def settings_of(batch: Sequence[str], values: Mapping[str, str], setup: Setup = TEXT) -> dict[str, Any]:
    """A run's settings: every field that differs from its default, and the batch."""
    found: dict[str, Any] = {}
    for field in setup.fields:
        value = values.get(field.name, field.default).strip()
        if value and value != field.default:
            found[field.name] = value.split() if field.name in setup.lists else value
    return {**found, **setup.batch(batch)}


def values_of(settings: Mapping[str, Any], catalog: Catalog) -> dict[str, str]:
    """A recorded run on text as the texts of its form; of the attack's options those that aren't its own.

    Args:
        settings: as in run.json.
        catalog: what attacks there are, and their options.
    """
    attack = str(settings.get("attack") or "")
    options = {
        name: value
        for name, value in (settings.get("attack_options") or {}).items()
        if name != "time_limit" and value is not None and str(value) != catalog.option_default(attack, name)
    }
    of_their_own = {name: str(options.pop(name, "")) for name in ("restarts", "steps")}
    plain = ("model", "weights", "task", "share", "seed", "device", "threads")
    several = {"client": "client", "defenses": "defense", "labels": "labels"}
    limit = settings.get("time_limit")
    return {
        **{name: str(value) for name in plain if (value := settings.get(name)) is not None},
        **{field: " ".join(map(str, settings.get(name) or ())) for field, name in several.items()},
        **of_their_own,
        "attack": attack,
        "know": ",".join(settings.get("know") or ()) or "nothing",
        "time_limit": "" if limit is None else f"{limit:g}s",
        "assignments": " ".join(f"attack.{name}={json.dumps(value)}" for name, value in options.items()),
    }


def layers(settings: Mapping[str, Any]) -> tuple[str | None, dict[str, Any], Sequence[str]]:
    """A preset's name, settings and assignments by name, which `textleak.settings` lays over each other."""
    rest = dict(settings)
    return rest.pop("preset", None), rest, rest.pop("assignments", ())


def remembered(values: Mapping[str, str], setup: Setup = TEXT) -> dict[str, str]:
    """A form's texts that may be kept: nothing of the private batch."""
    private = {field.name for field in setup.fields if field.private}
    return {name: value for name, value in values.items() if name not in private}


def command_line(batch: Sequence[str], values: Mapping[str, str], setup: Setup = TEXT) -> str:
    """The same run on a command line, ready to copy."""
    flags = {field.name: field.flag for field in setup.fields} | _FLAGS
    words = ["textleak", setup.command]
    for name, value in settings_of(batch, values, setup).items():
        if (name, value) == (REDACT.name, YES):
            words.append(REDACT.flag)
            continue
        for part in value if isinstance(value, list) else [value]:
            # A text that begins with a dash would be taken for a flag.
            flag = flags[name]
            words += [f"{flag}={part}"] if flag and part.startswith("-") else [*filter(None, [flag]), part]
    return shlex.join(words)
