"""A field of a form: what it is called, what it may hold, and what can be chosen in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from textleak.errors import InputError, unknown_name
from textleak_tui.catalog import Catalog


@dataclasses.dataclass(frozen=True, kw_only=True)
class Option:
    """A name that can be chosen, and what it is in a few words."""

    name: str
    words: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
    """One field of the setup.

    Attributes:
        name: as the settings are called.
        title: as it is written before the field.
        flag: on the command line.
        words: what it is, in a sentence.
        default: what it holds at first; such a value is left out of the command line.
        options: names to choose from, given the catalog; any other text that passes `check` will do.
        check: raises an `InputError` for a text that can't be used.
        empty: words in the empty field.
        rare: whether it stands below the others.
        private: whether it tells of the batch: it isn't remembered.
    """

    name: str
    title: str
    flag: str
    words: str
    default: str = ""
    options: Callable[[Catalog], Sequence[Option]] = lambda _: ()
    check: Callable[[str, Catalog], None] = lambda text, catalog: None
    empty: str = ""
    rare: bool = False
    private: bool = False


def known(kind: str, names: Sequence[str]) -> Callable[[str, Catalog], None]:
    """A check that lets only names through."""

    def check(text: str, _: Catalog) -> None:
        if text not in names:
            raise unknown_name(kind, text, names, fix=f"Choose one of {', '.join(names)}.")

    return check


def whole(least: int, what: str) -> Callable[[str, Catalog], None]:
    """A check that lets only whole numbers through, or nothing at all."""

    def check(text: str, _: Catalog) -> None:
        if text and not (text.isascii() and text.isdigit() and int(text) >= least):
            raise InputError(f"{text!r} is not {what}.", fix=f"Write a whole number from {least} on.")

    return check


def fixed(**words: str) -> Callable[[Catalog], Sequence[Option]]:
    """Names with their words, whatever the catalog; an underscore stands for a hyphen."""
    found = [Option(name=name.replace("_", "-"), words=text) for name, text in words.items()]
    return lambda _: found
