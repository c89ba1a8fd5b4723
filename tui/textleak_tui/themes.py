"""The two themes. States are told by signs too, so no color carries a meaning alone."""

from __future__ import annotations

from textual.theme import Theme

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
