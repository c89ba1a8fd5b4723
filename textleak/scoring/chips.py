"""What became of each token of a sentence, and a notebook's picture of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from textleak.chips import AMBER, COOL, HOT, PALE, chip, row

RIGHT, ELSEWHERE, WRONG, MISSING, SURPLUS = "right", "elsewhere", "wrong", "missing", "surplus"
_LOOKS = {
    RIGHT: ("✓", HOT),
    ELSEWHERE: ("~", AMBER),
    WRONG: ("✗", COOL),
    MISSING: ("∅", PALE),
    SURPLUS: ("+", (COOL[0], PALE[1])),
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
    return row(
        chip(_LOOKS[status][0], token or found, f"{status}: {found}", _LOOKS[status][1])
        for status, token, found in fates(reference, recovered)
    )
