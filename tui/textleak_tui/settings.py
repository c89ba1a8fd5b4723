"""What is remembered from one start to the next: the setup's fields and the theme. No sentence is ever kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from textleak.runs import write_json


def default_path() -> Path:
    """Where settings lie: the platform's folder for user settings."""
    from platformdirs import user_config_path

    return user_config_path("textleak", appauthor=False) / "tui.json"


def read(path: Path | None) -> dict[str, Any]:
    """What was remembered; nothing where there is no file, or none that can be read."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write(path: Path | None, values: Mapping[str, Any]) -> None:
    """Remember these values; where that can't be done, the app goes on without."""
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json(path, values)
        path.chmod(0o600)
