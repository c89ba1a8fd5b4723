"""Which parameters' gradients leave the client: the words of `--share`."""

from __future__ import annotations

import re

from textleak.errors import InputError


def share_expression(share: str) -> re.Pattern[str]:
    """What is searched for in parameter names where `share` is none of the three words.

    Raises:
        InputError: it is malformed.
    """
    try:
        return re.compile(share)
    except re.error as error:
        raise InputError(
            f"--share {share!r} is not a regular expression.", why=f"{error}.", fix=_SHARE_FIX
        ) from None


def choose_shared(
    share: str, names: list[str], *, embeddings: frozenset[str], attention: frozenset[str]
) -> list[str]:
    """The parameters whose gradients leave the client.

    Args:
        share: "all", "no-embeddings", "attention", or a regular expression searched for in each name.
        names: all parameter names.
        embeddings: names of every embedding, the output head and what is tied to them.
        attention: names of query, key and value parameters.

    Raises:
        InputError: an expression that is malformed or matches nothing.
    """
    if share == "all":
        return names
    if share == "no-embeddings":
        return [name for name in names if name not in embeddings]
    if share == "attention":
        chosen = [name for name in names if name in attention]
    else:
        expression = share_expression(share)
        chosen = [name for name in names if expression.search(name)]
    if not chosen:
        raise InputError(
            f"--share {share!r} matches none of the {len(names)} parameters.",
            why=f"They are called like {names[0]} and {names[-1]}.",
            fix=_SHARE_FIX,
        )
    return chosen


_SHARE_FIX = "Use all, no-embeddings, attention, or an expression that matches parameter names."
