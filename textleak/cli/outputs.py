"""Standard output and error as a shell may hand them over: closed, on a full disk, read by nobody.

What can't be said on stderr is left unsaid, and the work goes on. What can't be written to stdout is an error, as the
answer was to go there. A stream that is closed from the start takes everything and keeps nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from textleak.errors import TextleakError


class _Commentary(io.TextIOWrapper):
    """Standard error: once it can't be written to, all that is said goes nowhere."""

    def write(self, text: str) -> int:
        """As much as can be said."""
        with _or_nowhere(self):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Likewise."""
        with _or_nowhere(self):
            super().flush()


class _Answer(io.TextIOWrapper):
    """Standard output: an error of its own where it can't be written to, but for a reader who has gone."""

    def write(self, text: str) -> int:
        """Write all.

        Raises:
            TextleakError: it can't be.
        """
        with _or_an_error(self):
            return super().write(text)

    def flush(self) -> None:
        """Likewise."""
        with _or_an_error(self):
            super().flush()


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


@contextlib.contextmanager
def _or_nowhere(stream: io.TextIOWrapper) -> Any:  # noqa: ANN401 - a generator
    try:
        yield
    except OSError:
        _to_nowhere(stream.fileno())


@contextlib.contextmanager
def _or_an_error(stream: io.TextIOWrapper) -> Any:  # noqa: ANN401 - a generator
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _to_nowhere(stream.fileno())  # what is still held back would fail once more at the end
        raise TextleakError(
            f"The answer can't be written to standard output: {error.strerror or error}.",
            why="Whoever reads it has a part of it at most; records in a folder are kept.",
            fix="Make room, or send the output elsewhere.",
        ) from None


def prepare() -> None:
    """Put the streams in a state that no command has to think of; to be called before any file is opened."""
    for descriptor in range(
        3
    ):  # else the next file would be opened in its place, and what is printed end up in it
        try:
            os.fstat(descriptor)
        except OSError:
            _to_nowhere(descriptor)
    sys.stdout = _over(1, sys.stdout, _Answer)
    sys.stderr = _over(2, sys.stderr, _Commentary)


def _over(descriptor: int, before: Any, kind: type[io.TextIOWrapper]) -> io.TextIOWrapper:  # noqa: ANN401 - or None
    """A stream of a kind over a descriptor, that writes as the one before it did."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        before.flush()
    return kind(
        os.fdopen(descriptor, "wb", closefd=False),
        encoding=getattr(before, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=getattr(before, "line_buffering", False) or descriptor == 2,
    )


def finish() -> None:
    """Write what is held back.

    Raises:
        TextleakError: it can't be written.
        BrokenPipeError: nobody reads it any more.
    """
    sys.stdout.flush()
    sys.stderr.flush()


def forget() -> None:
    """Leave what is held back for stdout unwritten, so that Python doesn't complain of it at its end."""
    _to_nowhere(1)
