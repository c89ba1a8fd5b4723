"""What a registered attack, client or defense is in plain values, for listings, forms and documents."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from typing import Annotated, Any, Literal


def describe(name: str, cls: type[Any]) -> dict[str, Any]:
    """A registered class in plain values: its name, first line, and options with type, default and words."""
    words = inspect.getdoc(cls) or ""
    docs: dict[str, str] = {}
    for kind in reversed(cls.__mro__):  # an option that several share is described where it is
        docs |= attribute_docs(kind)
    hints = typing.get_type_hints(cls, include_extras=True)
    options = [
        {
            "name": field.name,
            "type": _type_name(hints[field.name]),
            "takes": type_in_words(hints[field.name]),
            "default": _default(field),
            "doc": docs.get(field.name, ""),
        }
        for field in dataclasses.fields(cls)
        if field.init
    ]
    return {"name": name, "summary": words.partition("\n")[0], "options": options}


def catalog() -> dict[str, list[dict[str, Any]]]:
    """All that a run can be set up with: attacks, clients, defenses and image models, described."""
    from textleak.attacks import ATTACKS
    from textleak.clients import CLIENTS
    from textleak.defenses import DEFENSES
    from textleak.models.loading.images import ALIASES

    return {
        "attacks": [
            {**describe(name, ATTACKS[name]), "reads": sorted(kind.value for kind in ATTACKS[name].reads)}
            for name in ATTACKS
        ],
        "clients": [describe(name, CLIENTS[name]) for name in CLIENTS],
        "defenses": [describe(name, DEFENSES[name]) for name in DEFENSES],
        "image_models": [
            {"name": name, "summary": one.summary, "options": []} for name, one in ALIASES.items()
        ],
    }


def _default(field: dataclasses.Field[Any]) -> Any:  # noqa: ANN401
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


_WORDS = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
}
_WORDS |= {"Path": "path"}


def type_in_words(hint: object) -> str:
    """What an option takes, as it is written behind --set: no alias of this code's own, no module."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return type_in_words(inside[0])
    if origin is Literal:
        return " | ".join("null" if one is None else str(one) for one in inside)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(type_in_words, inside)))
    if origin in (tuple, list):
        return f"list of {type_in_words(inside[0])}" if inside else "list"
    name = getattr(hint, "__name__", str(hint))
    return _WORDS.get(name, "name with options" if name.endswith("Choice") else name)


def _type_name(hint: object) -> str:
    """A type as code has it, aliases and modules resolved."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _type_name(inside[0])
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inside))}]"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type_name, inside))
    name = str(getattr(hint, "__name__", hint))
    return "None" if name == "NoneType" else name


def attribute_docs(cls: type[Any]) -> dict[str, str]:
    """The `Attributes:` section of a class's own docstring, by name."""
    return _attribute_docs(inspect.cleandoc(cls.__doc__ or ""))


def _attribute_docs(words: str) -> dict[str, str]:
    """The `Attributes:` section of a docstring, by name."""
    docs: dict[str, str] = {}
    _, _, section = words.partition("Attributes:\n")
    current = ""
    for line in section.splitlines():
        if line.strip() and not line.startswith(" "):
            break
        start = re.match(r"    (\w+): (.*)", line)
        if start:
            current = start.group(1)
            docs[current] = start.group(2).strip()
        elif current and line.strip():
            docs[current] += " " + line.strip()
    return docs
