"""What became of each token of a sentence, and a notebook's picture of it."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence

from textleak.words import readable

RIGHT, ELSEWHERE, WRONG, MISSING, SURPLUS = "right", "elsewhere", "wrong", "missing", "surplus"
# Sign and colors (text, background): leaked is hot, partly amber, protected cool, as in every viewer.
_LOOKS = {
    RIGHT: ("✓", "#a3211a", "#fbe3e0"),
    ELSEWHERE: ("~", "#7a5200", "#fbf0d3"),
    WRONG: ("✗", "#1a62a8", "#e1edf8"),
    MISSING: ("∅", "#59636e", "#f5f7f9"),
    SURPLUS: ("+", "#1a62a8", "#f5f7f9"),
}


def fates(reference: Sequence[str], recovered: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """For each position its status, the true token and what the attack said; then what it said beyond the end."""
    in_place = zip(recovered, reference, strict=False)
    left = Counter(recovered) - Counter(found for found, token in in_place if found == token)
    for at, token in enumerate(reference):
        found = recovered[at] if at < len(recovered) else ""
        status = RIGHT if found == token else WRONG if found else MISSING
        if status != RIGHT and left[token]:
            left[token] -= 1
            status = ELSEWHERE
        yield status, token, found
    for found in recovered[len(reference) :]:
        if found:
            yield SURPLUS, "", found


def chips(reference: Sequence[str], recovered: Sequence[str]) -> str:
    """A sentence's tokens as HTML, each with its sign and color; what the attack said is its tooltip."""
    drawn = []
    for status, token, found in fates(reference, recovered):
        sign, color, back = _LOOKS[status]
        title, shown = html.escape(f"{status}: {found}"), html.escape(readable(token or found))
        style = f"color:{color};background:{back};border-radius:.3em;padding:0 .3em;margin:.1em"
        drawn.append(f'<span style="{style}" title="{title}">{sign} {shown}</span>')
    return f'<div style="line-height:1.9">{"".join(drawn)}</div>'
