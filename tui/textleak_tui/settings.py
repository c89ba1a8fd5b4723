"""What is remembered from one start to the next: the setup's fields and the theme. No sentence is ever kept."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from textleak import foreign
from textleak.runs import write_json


def default_path() -> Path:
    """Where settings lie: the platform's folder for user settings."""
    from platformdirs import user_config_path

    return user_config_path("textleak", appauthor=False) / "tui.json"


class Memory:
    """Values by name, kept in a file; where it can't be read or written, the app goes on without.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._values = _read(path)

    @property
    def themes(self) -> Path | None:
        """The folder of a user's own themes; None where nothing is kept."""
        return None if self._path is None else self._path.parent / "themes"

    def get(self, name: str) -> Any:  # noqa: ANN401 - whatever was kept
        """What was kept under a name; None for nothing."""
        return self._values.get(name)

    def texts(self, name: str) -> dict[str, str]:
        """A form's texts by field, as they were kept under a name."""
        found = self.get(name)
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def keep(self, name: str, value: object) -> None:
        """Keep a value for the next start."""
        if self._values.get(name) == value:
            return
        self._values[name] = value
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_json(self._path, self._values)


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = json.loads(foreign.read(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
