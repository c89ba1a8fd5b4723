"""Whether a text holds a planted secret: asked of the sentence that is attacked, and of what came back."""

from __future__ import annotations

import re
import unicodedata


def holds(text: str, secret: str) -> bool:
    """Whether a decoded text holds a secret whole: as words of its own, whatever its case, accents and spaces.

    Tokenizers lower case, drop accents and put spaces around punctuation; none of it hides a secret.
    """
    letters = "".join(_plain(secret).split())
    pattern = r"(?<!\w)" + r"\s*".join(map(re.escape, letters)) + r"(?!\w)"
    return bool(letters) and re.search(pattern, _plain(text)) is not None


def _plain(text: str) -> str:
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if not unicodedata.combining(letter))
