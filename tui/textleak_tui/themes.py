"""The two themes, and those of a user's own. States are told by signs too, so no color carries a meaning alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from textual.color import Color, ColorParseError
from textual.theme import Theme

from textleak import foreign
from textleak.errors import InputError, unknown_name

# What is said in a low voice; a color of its own, as widgets draw with it over backgrounds they don't know.
QUIET = "#8a95a6"

DARK = Theme(
    name="textleak-dark",
    dark=True,
    primary="#5fb3f6",
    secondary="#c297f7",
    accent="#3ddbc2",
    foreground="#dce3ee",
    background="#0d1117",
    surface="#131922",
    panel="#1b2330",
    success="#6fdd8b",
    warning="#f3c969",
    error="#ff7a85",
    variables={"footer-key-foreground": "#3ddbc2", "border-blurred": "#2a3546", "quiet": QUIET},
)
LIGHT = Theme(
    name="textleak-light",
    dark=False,
    primary="#1769c2",
    secondary="#7b3fc9",
    accent="#00796b",
    foreground="#1d2733",
    background="#f6f7f9",
    surface="#ffffff",
    panel="#e7ebf1",
    success="#167a37",
    warning="#8f5b00",
    error="#c0243c",
    variables={"footer-key-foreground": "#00796b", "border-blurred": "#c3ccd8", "quiet": "#5d6978"},
)
# What a theme's file may say, beside "dark": colors as CSS writes them.
_COLORS = (
    "primary",
    "secondary",
    "accent",
    "foreground",
    "background",
    "surface",
    "panel",
    "success",
    "warning",
    "error",
)
MOST_BYTES = 1 << 16


def own_themes(folder: Path) -> tuple[list[Theme], list[str]]:
    """A user's own themes, a JSON file each, named like the file; and what is wrong with those that can't be used.

    Args:
        folder: where they lie; none where there is no such folder.
    """
    found, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(_read(path))
        except InputError as error:
            problems.append(" ".join(filter(None, (f"{path.name}:", error.what, error.why, error.fix))))
        except (OSError, ValueError, RecursionError) as error:
            problems.append(f"{path.name} can't be read: {error}")
    return found, problems


def _read(path: Path) -> Theme:
    told: Any = json.loads(foreign.read(path, most=MOST_BYTES))
    if not isinstance(told, dict):
        raise InputError(
            "It is no table of colors.", fix='Write for example {"dark": true, "accent": "#3ddbc2"}.'
        )
    dark = told.pop("dark", True)
    if not isinstance(dark, bool):
        raise InputError(f"dark is {dark!r}.", fix="Write true or false.")
    for name, color in told.items():
        if name not in _COLORS:
            raise unknown_name("color", name, _COLORS)
        try:
            Color.parse(str(color))
        except ColorParseError:
            raise InputError(f"{name} is no color: {color!r}.", fix="Write for example #3ddbc2.") from None
    base = DARK if dark else LIGHT
    variables = dict(base.variables)
    if "accent" in told:
        variables["footer-key-foreground"] = told["accent"]
    return dataclasses.replace(base, name=path.stem, variables=variables, **told)
