"""The errors a person meets: what is wrong, why it matters, what to do.

Every error that textleak raises on purpose is a `TextleakError`; anything else is a bug. The command line
turns the class into an exit code and the three parts into three lines.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator

from textleak import owned
from textleak.words import printable

# Characters and lines of a part that are shown, so that all three fit on a screen of 80 by 24 (our choice). A name from
# a file may have a million.
LONGEST = 600
MOST_LINES = 7


class TextleakError(Exception):
    """An error in three parts.

    Args:
        what: what is wrong, with the offending value.
        why: why that stops the work.
        fix: what to do about it.

    Each part is kept as `shown` gives it.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = map(shown, (what, why, fix))
        super().__init__(self.what)

    def __str__(self) -> str:
        """All three parts, a line each."""
        return "\n".join(part for part in (self.what, self.why, self.fix) if part)


class InputError(TextleakError):
    """The caller's input, option, file or configuration can't be used (exit code 2)."""

    exit_code = 2


@contextlib.contextmanager
def unwritten(what: str, *, fix: str = "") -> Iterator[None]:
    """What can't be written, as an error for a person.

    Args:
        what: can't be, as a sentence.
        fix: the way out.

    Raises:
        InputError: with the system's reason, in place of its `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise InputError(what, why=owned.why_not(error), fix=fix) from None


class AttackError(TextleakError):
    """An attack could not run to its end (exit code 1)."""


def shown(text: str) -> str:
    """A text as it can be shown: its middle left out where it is long, what a terminal would obey written out."""
    if len(text) > LONGEST:
        kept = LONGEST // 2
        text = f"{text[:kept]} … ({len(text) - 2 * kept:,} characters left out) … {text[-kept:]}"
    lines = text.split("\n")
    if len(lines) > MOST_LINES:
        text = "\n".join([*lines[: MOST_LINES - 1], " ".join(lines[MOST_LINES - 1 :])])
    return printable(text, kept="\n\t")


def unknown_name(kind: str, name: str, known: Iterable[str], *, fix: str = "") -> InputError:
    """An `InputError` for a name that isn't one of `known`, with the nearest ones."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:LONGEST], names, n=3, cutoff=0.4)
    meant = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(names)}."
    return InputError(f"Unknown {kind} {name!r}.", why=meant, fix=fix)
