"""What a registered attack, client or defense is in plain values, for listings, forms and documents."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any


def describe(name: str, cls: type[Any]) -> dict[str, Any]:
    """A registered class in plain values: its name, first line, and options with type, default and words."""
    words = inspect.getdoc(cls) or ""
    docs: dict[str, str] = {}
    for kind in reversed(cls.__mro__):  # an option that several share is described where it is
        docs |= _attribute_docs(inspect.cleandoc(kind.__doc__ or ""))
    options = [
        {
            "name": field.name,
            "type": _type_name(field.type),
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


def _type_name(annotation: object) -> str:
    """An annotation as a person reads it: what is inside Annotated, without modules."""
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    while match := re.search(r"Annotated\[((?:[^\[\],]|\[[^\[\]]*\])+),", text):
        depth, end = 0, len(text)
        for index in range(match.start() + len("Annotated"), len(text)):
            depth += {"[": 1, "]": -1}.get(text[index], 0)
            if depth == 0:
                end = index + 1
                break
        text = text[: match.start()] + match.group(1).strip() + text[end:]
    return text


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
