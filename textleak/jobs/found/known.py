"""What the server knows of the batch behind an update."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from textleak.errors import InputError
from textleak.settings.audit import AuditConfig

if TYPE_CHECKING:
    from textleak.jobs.telling import Telling
    from textleak.private.secrets import Secret
    from textleak.shared.known import SideInformation


def known_of(config: AuditConfig, secret: Secret | None, telling: Telling) -> SideInformation:
    """What the server knows of the batch: what --know says it is, else the truth of what it names, else what shows.

    Raises:
        InputError: a number that isn't one, or something that nothing says.
    """
    from pydantic import ValidationError

    from textleak import typed
    from textleak.shared.known import UNTOLD, SideInformation

    names, values = _values(config.know)
    if secret is not None:
        told = SideInformation.parse(names, batch_size=len(secret.ids))
        true = SideInformation(
            batch_size=len(secret.ids), lengths=tuple(map(len, secret.ids)), labels=secret.labels
        )
        known = true.only(told)
    else:
        known = UNTOLD if config.know is not None else shown_by(telling)
        told = SideInformation.parse(names, batch_size=0) if config.know is not None else frozenset()
    for kind in sorted(told - {*values} - {*known.told}):
        raise InputError(
            f"--know {kind} can't be told.",
            why="Neither the update nor a truth file says it.",
            fix=f"Say what it is, --know {kind}={'12' if kind == 'batch-size' else '12/9'}, or give --truth FILE.",
        )
    plain = {name.replace("-", "_"): value for name, value in values.items()}
    try:
        return typed.adapter(SideInformation).validate_python({**dataclasses.asdict(known), **plain})
    except ValidationError as error:
        raise InputError(
            f"--know {config.know!r} can't be used.",
            why=f"{error.errors()[0]['msg']}.",
            fix="Write batch-size=2,lengths=12/9,labels=0/1, or names alone with --truth FILE.",
        ) from None


def with_shown(known: SideInformation, telling: Telling) -> SideInformation:
    """What a file says that a server knows, and of the batch's size what the update tells besides."""
    shown = shown_by(telling)
    said = {known.batch_size, *(len(one) for one in (known.lengths, known.labels) if one is not None)}
    if shown.batch_size is None or not said <= {None, shown.batch_size}:  # equal sentences show once
        return known
    return dataclasses.replace(known, batch_size=shown.batch_size, lengths=known.lengths or shown.lengths)


def shown_by(telling: Telling) -> SideInformation:
    """What an update tells of its batch's size."""
    from textleak.shared.known import SideInformation

    one = telling.sentences == 1 and telling.tokens is not None
    return SideInformation(
        batch_size=telling.sentences, lengths=(telling.tokens,) if one and telling.tokens else None
    )


def _values(know: str | None) -> tuple[str | None, Mapping[str, Any]]:
    """The names in a --know text, and the values that it gives to some."""
    if know is None:
        return None, {}
    names, values = [], {}
    for part in know.split(","):
        name, is_given, value = (word.strip() for word in part.partition("="))
        names.append(name)
        if is_given:
            values[name] = value if name == "batch-size" else value.split("/")
    return ",".join(names), values
