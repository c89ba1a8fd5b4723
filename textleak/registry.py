"""How attacks and defenses are found by name: a decorator for ours, an entry-point group for everyone's.

A new one is one file in `textleak/attacks/` or `textleak/defenses/` (each module there is imported when the
registry is first asked), or a class that an installed package names in the group `textleak.attacks` or
`textleak.defenses`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict, ValidationError

from textleak import typed
from textleak.errors import InputError, unknown_name

T = TypeVar("T")


class Registry(Mapping[str, type[T]], Generic[T]):
    """Classes by name. Each is a frozen keyword-only dataclass: its fields are its options."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._classes: dict[str, type[T]] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that files the class under `name`."""

        def file_under_name(cls: type[T]) -> type[T]:
            if name in self._classes and self._classes[name].__module__ != cls.__module__:
                raise ValueError(f"two {self.kind}s are called {name!r}: {self._classes[name]} and {cls}")
            cls.name = name  # type: ignore[attr-defined]
            # Read by pydantic: a mistyped option is an error.
            cls.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
            self._classes[name] = cls
            return cls

        return file_under_name

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.package):
            self.register(point.name)(point.load())

    def __getitem__(self, name: str) -> type[T]:
        """The class called `name`; an unknown name is an `InputError` with the nearest ones."""
        self._load()
        try:
            return self._classes[name]
        except KeyError:
            raise unknown_name(
                self.kind, name, self._classes, fix=f"`textleak {self.kind}s` lists them with their options."
            ) from None

    def __iter__(self) -> Iterator[str]:
        """All names, sorted."""
        self._load()
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        """How many there are."""
        self._load()
        return len(self._classes)

    def build(self, name: str, options: Mapping[str, Any]) -> T:
        """The class called `name` with `options`, validated and converted (strings from a command line too).

        Raises:
            InputError: an unknown name, an unknown option (with the nearest), or a value that doesn't fit.
        """
        cls = self[name]
        known = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
        for option in options:
            if option not in known:
                raise unknown_name(f"option of {self.kind} {name}", option, known or ["(it has none)"])
        try:
            return typed.adapter(cls).validate_python(dict(options))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "options"
            raise InputError(
                f"{self.kind} {name}: {where}={first.get('input')!r} can't be used.",
                why=f"{first['msg']}.",
                fix=f"`textleak {self.kind}s {name}` shows what each option takes.",
            ) from None
