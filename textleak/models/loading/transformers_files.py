"""Which models' files transformers has, remembered between processes.

As it is imported, transformers reads the source of all its models twice (2,258 files, 36 MB in 5.24) to learn what
each file defines: 0.7 seconds of a processor in every process, a seventh of what it takes to have torch and a model
ready. What it learned is kept in the user's cache folder, and taken from there for as long as the files are the same:
none came or went, or has another size or time of change. It is transformers' own answer, and whole.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from textleak import owned

# What reads the files, in transformers 5; where there is no such function, nothing is remembered.
_MODULE, _FUNCTION = "transformers.utils.import_utils", "create_import_structure_from_path"
# By names of files and folders, or by what an object needs; at the ends the names that a file defines.
_Structure = dict[str | frozenset[str], Any]


def import_transformers() -> None:
    """Import transformers where that isn't done yet, with what was read of its models' files before."""
    if "transformers" in sys.modules:
        return
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("transformers.models")
    finally:
        sys.meta_path.remove(finder)
        finder.undo()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the module whose function reads the files, and has that function remember."""

    def __init__(self) -> None:
        self.undo: Callable[[], None] = lambda: None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module as it is found without this, but for what is done once it is there."""
        if fullname != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if (
            spec is None
            or spec.origin is None
            or type(spec.loader) is not importlib.machinery.SourceFileLoader
        ):
            return None
        loader = _Loader(fullname, spec.origin)
        loader.finder = self
        return importlib.util.spec_from_file_location(fullname, spec.origin, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    finder: _Finder

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        read, own = getattr(module, _FUNCTION, None), Path(self.path)
        if read is not None:
            setattr(module, _FUNCTION, remembering(read, own.parents[1] / "models", reader=own))
            self.finder.undo = lambda: setattr(module, _FUNCTION, read)


def remembering(
    read: Callable[[str | Path], _Structure], models: Path, *, reader: Path
) -> Callable[[str | Path], _Structure]:
    """`read`, but what it says of one folder is kept between processes.

    Args:
        read: what the files of a folder define, given the folder or a file in it.
        models: the folder.
        reader: the file that `read` is defined in.
    """

    @functools.cache
    def known() -> bytes | None:
        state = _state_of(models, reader)
        return _kept(state) or _keep(state, read(models))

    def structure(path: str | Path) -> _Structure:
        folder = Path(path).parent if Path(path).is_file() else Path(path)
        body = known() if folder == models else None
        return read(path) if body is None else _decoded(json.loads(body))

    return structure


# What is kept


def cache_path() -> Path:
    """Where it is kept: in the user's cache folder."""
    from platformdirs import user_cache_path

    return user_cache_path("textleak") / "transformers.json"


def _kept(state: str) -> bytes | None:
    """What was kept of files in this state; None where it is of others, or damaged."""
    with contextlib.suppress(OSError):
        head, _, body = cache_path().read_bytes().partition(b"\n")
        if head == _head(state, body):
            return body
    return None


def _keep(state: str, structure: _Structure) -> bytes | None:
    """Keep it; None where it can't be told from what is kept, as that of another version may not be."""
    try:
        body = json.dumps(_encoded(structure)).encode()
        if _decoded(json.loads(body)) != structure:
            return None
    except (AttributeError, TypeError, ValueError):
        return None
    with contextlib.suppress(OSError):  # a folder that can't be written: it is read again next time
        path = cache_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        owned.write(path, _head(state, body) + b"\n" + body)
    return body


def _head(state: str, body: bytes) -> bytes:
    return f"{state} {hashlib.sha256(body).hexdigest()}".encode()


def _state_of(models: Path, reader: Path) -> str:
    """Says whether files are the same: a digest of their names, sizes and times of change."""
    found = [(reader.name, reader.stat()), *_files(str(models))]
    states = sorted((name, status.st_size, status.st_mtime_ns) for name, status in found)
    return hashlib.sha256(repr(states).encode()).hexdigest()


def _files(folder: str, under: str = "") -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{under}/{entry.name}"
            if entry.is_dir():
                if entry.name != "__pycache__":
                    yield from _files(entry.path, name)
            elif entry.name.endswith(".py"):
                yield name, entry.stat()


def _encoded(structure: _Structure) -> list[list[Any]]:
    return [
        [
            key if isinstance(key, str) else sorted(key),
            {"names": sorted(value)} if isinstance(value, set) else _encoded(value),
        ]
        for key, value in structure.items()
    ]


def _decoded(rows: list[list[Any]]) -> _Structure:
    return {
        key if isinstance(key, str) else frozenset(key): set(value["names"])
        if isinstance(value, dict)
        else _decoded(value)
        for key, value in rows
    }
