"""A token as a notebook shows it: a sign, a color, and more to be told where the pointer rests."""

from __future__ import annotations

import html
from collections.abc import Iterable

from textleak.words import readable

# Colors (text, background): leaked is hot, partly amber, protected cool, as in every viewer.
HOT, AMBER, COOL, PALE = (
    ("#a3211a", "#fbe3e0"),
    ("#7a5200", "#fbf0d3"),
    ("#1a62a8", "#e1edf8"),
    ("#59636e", "#f5f7f9"),
)


def chip(sign: str, token: str, title: str, colors: tuple[str, str]) -> str:
    """One token as HTML; whatever it and the title hold is text, never markup."""
    color, back = colors
    style = f"color:{color};background:{back};border-radius:.3em;padding:0 .3em;margin:.1em"
    return f'<span style="{style}" title="{html.escape(title)}">{sign} {html.escape(readable(token))}</span>'


def row(chips: Iterable[str]) -> str:
    """A sentence's tokens in a line of their own."""
    return f'<div style="line-height:1.9">{"".join(chips)}</div>'
