"""What all settings have in common: frozen, no unknown key, and words for a value that can't be used."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from textleak.errors import InputError, unknown_name

Checked = TypeVar("Checked", bound="Settings")
# What a text among the settings may have (our choice: a path has up to 4096 bytes on Linux).
MOST_LETTERS = 4096
# More threads than any machine has cores; far more end in torch's own errors.
MOST_THREADS = 1024
MOST_LABELS = 100_000  # as in a file of gradients (`shared.public`)
# Our choices: what an attack can hold in memory, and years of steps.
MOST_RESTARTS, MOST_STEPS = 4096, 1_000_000_000
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_LENGTH = re.compile(r"(\d+(?:\.\d+)?)\s*([smh]?)")
Word = Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)]
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]
Threads = Annotated[int, Field(ge=1, le=MOST_THREADS)]
DType = Literal["float32", "float64", "bfloat16"]
# What a model can be trained for; outside packages add heads' losses in the group `textleak.models.losses`.
TASKS = (
    *("auto", "classification", "causal-lm", "masked-lm"),
    *("regression", "multi-label", "token-classification", "question-answering"),
)


def _known_task(value: str) -> str:
    known = (*TASKS, *(point.name for point in entry_points(group="textleak.models.losses")))
    if value not in known:
        raise ValueError(f"it is one of {', '.join(known)}")
    return value


def _seconds(value: object) -> object:
    """A length of time as a person writes it, 90s, 10m or 1h, in seconds."""
    found = _LENGTH.fullmatch(value.strip()) if isinstance(value, str) else None
    return float(found[1]) * _UNITS[found[2]] if found else value


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), BeforeValidator(_seconds)]
TaskName = Annotated[Word, AfterValidator(_known_task)]


class Settings(BaseModel):
    """Settings of one kind.

    Attributes:
        flags: of the settings whose flag has another name than they have; "" where there is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    flags: ClassVar[Mapping[str, str]] = {}


def unknown_setting(key: str, known: Iterable[str], where: str) -> InputError:
    """An error for a key that no setting has, with the nearest names."""
    written = "with its name, -a NAME:KEY=VALUE" if "batch_size" in known else "attack.KEY"
    fix = f"An attack's own options are written {written}; `textleak attacks NAME` lists them."
    return unknown_name(f"setting{where and f' in {where}'}", key, known, fix=fix)


def validated(kind: type[Checked], settings: Mapping[str, Any]) -> Checked:
    """Settings of a kind.

    Raises:
        InputError: an unknown key, or a value that can't be used.
    """
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise unknown_setting(str(first["loc"][-1]), kind.model_fields, "") from None
        value = first.get("input")
        fix = f"Leave {flag(kind, key)} out, or give it a value." if value in ("", ()) else ""
        if first["type"] == "literal_error":
            allowed = re.findall(r"'([^']*)'", str(first.get("ctx", {}).get("expected", "")))
            near = difflib.get_close_matches(str(value), allowed, n=2, cutoff=0.4)
            fix = f"Did you mean {' or '.join(near)}?" if near else ""
        message = str(first["msg"])
        raise InputError(f"{flag(kind, key)} can't be {value!r}.", why=f"{message}.", fix=fix) from None


def flag(kind: type[Settings], key: str) -> str:
    """A setting as a person knows it: the command's flag, where there is one."""
    name = key.partition(".")[0]
    own = f"--{name.replace('_', '-')}" if name in kind.model_fields else ""
    return kind.flags.get(name, own) or f"The setting {key}"
