"""A picture of the screen that looks the same wherever it is opened.

Few monospaced fonts have braille dots, and others' are of another width: here each dot becomes a small square. Some
programs drop blanks at the ends of a text; they are told not to.
"""

from __future__ import annotations

import html
import re

from rich.cells import cell_len

# As rich draws its SVG: letters 20 high in lines of 24.4, a text's y is that of its letters' lower end.
_LETTER, _LINE = 20.0, 24.4
_DOT = 2.6
# Where each bit of a braille letter stands: column and row.
_BITS = ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3))
_TEXT = re.compile(
    r'<text class="(?P<style>[^"]+)" x="(?P<x>[\d.]+)" y="(?P<y>[\d.]+)" textLength="(?P<length>[\d.]+)"'
    r"(?P<rest>[^>]*)>(?P<letters>[^<]*[\u2800-\u28ff][^<]*)</text>"
)


def portable(svg: str) -> str:
    """The picture with drawn dots and kept blanks."""
    svg = svg.replace("<svg ", '<svg xml:space="preserve" ', 1)
    return _TEXT.sub(_drawn, svg)


def _drawn(text: re.Match[str]) -> str:
    letters = html.unescape(text["letters"])
    width = float(text["length"]) / max(1, cell_len(letters))
    left, top = float(text["x"]), float(text["y"]) - _LETTER
    squares, cell = [], 0
    for letter in letters:
        if "\u2800" <= letter <= "\u28ff":
            squares += [
                f"M{left + (cell + 0.25 + 0.5 * column) * width - _DOT / 2:.1f} "
                f"{top + (0.125 + 0.25 * row) * _LINE - _DOT / 2:.1f}h{_DOT}v{_DOT}h-{_DOT}z"
                for bit, (column, row) in enumerate(_BITS)
                if ord(letter) >> bit & 1
            ]
        cell += cell_len(letter)
    blank = re.sub(r"[\u2800-\u28ff]", "&#160;", text["letters"])
    words = text[0].replace(text["letters"], blank) if blank.replace("&#160;", "").strip() else ""
    return f'{words}<path class="{text["style"]}" d="{"".join(squares)}"/>' if squares else words
