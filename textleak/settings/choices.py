"""A named attack or defense with its own options, as settings hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from textleak.errors import InputError
from textleak.settings import specs
from textleak.settings.base import Settings
from textleak.settings.presets import client_kinds


class Choice(Settings):
    """A named attack or defense with its own options; also written as a text, `name[:key=value,...]`."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _from_text_or_flat_mapping(cls, value: Any) -> Any:  # noqa: ANN401 - pydantic hands over anything
        return _named(specs.read(value))

    @property
    def spec(self) -> str:
        """As it is written on a command line, where it is read as the same choice again."""
        return specs.written(self.name, self.options)


class AttackChoice(Choice):
    """An attack of an evaluation; `limit`, written among its options, gives it fewer sentences than the others."""

    limit: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_text_or_flat_mapping(cls, value: Any) -> Any:  # noqa: ANN401 - as above
        chosen = _named(specs.read(value))
        if not isinstance(chosen, Mapping):
            return chosen
        options = dict(chosen["options"])
        return {**chosen, "options": options, "limit": options.pop("limit", None)}


def composition(value: object, kind: str) -> object:
    """One cell's clients or defenses, in order, from `a:x=1+b`, `none`, `one-step`, one mapping or a list."""
    if value is None or value in ("none", "one-step"):
        return ()
    if isinstance(value, str):
        parts: tuple[object, ...] = specs.split_composition(value, kind)
        return parts if kind != "client" else tuple(k for part in parts for k in client_kinds(part))
    return (value,) if isinstance(value, Mapping | Choice) else value


def _named(chosen: Any) -> Any:  # noqa: ANN401 - what `specs.read` gives
    """Refuse options without a name."""
    if isinstance(chosen, Mapping) and "name" not in chosen:
        options = chosen["options"]
        raise InputError(
            f"{options!r} has no name of an attack or defense.",
            fix="Write NAME:KEY=VALUE, or {name: NAME, KEY: VALUE}.",
        )
    return chosen
