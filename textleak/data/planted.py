"""Whether a text holds a planted secret: asked of the sentence that is attacked, and of what came back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence


def holds(text: str, secret: str) -> bool:
    """Whether a decoded text holds a secret whole: as words of its own, whatever its case, accents and spaces.

    Tokenizers lower case, drop accents and put spaces around punctuation; none of it hides a secret.
    """
    letters = "".join(_plain(secret).split())
    pattern = r"(?<!\w)" + r"\s*".join(map(re.escape, letters)) + r"(?!\w)"
    return bool(letters) and re.search(pattern, _plain(text)) is not None


def tokens_of(tokens: Sequence[str], secret: str) -> frozenset[int]:
    """The places of the tokens that a secret stands in, as their tokenizer writes them; none where it doesn't.

    Args:
        tokens: of a sentence, in order.
        secret: from the first letter of one of them to the last of another.
    """
    wanted, owner, ends = "".join(_plain(secret).split()), [], {0}
    for at, token in enumerate(tokens):
        owner += [at] * len(_letters(token))
        ends.add(len(owner))
    text, found, start = "".join(map(_letters, tokens)), set[int](), -1
    while wanted and (start := text.find(wanted, start + 1)) >= 0:
        if {start, start + len(wanted)} <= ends:
            found.update(owner[start : start + len(wanted)])
    return frozenset(found)


def _letters(token: str) -> str:
    """A token without what its tokenizer says of the space around it (WordPiece, SentencePiece, byte-level BPE)."""
    return "".join(_plain(token.removeprefix("##").lstrip("▁Ġ")).split())


def _plain(text: str) -> str:
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if not unicodedata.combining(letter))
