"""Files that somebody else may have written: only regular ones are opened, and only so much of one is read.

A named pipe would keep a reader waiting for ever, a device may do something when it is opened, and a file can be larger
than the memory. Their errors are `OSError`s, as of a file that isn't there, so that a caller says what the file was
wanted for.
"""

from __future__ import annotations

import contextlib
import os
import stat
from io import BufferedReader
from pathlib import Path

MIB = 1 << 20
# Our choice: pictures, truth files and results are far below it, and it fits into any memory.
MOST = 256 * MIB
MOST_ROWS = 4096 * MIB  # of a file with a sentence or a record in each line

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class UnreadError(OSError):
    """A file that is not read, for what it is or for its size; its text says so."""


def open_regular(path: Path, *, most: int | None = None) -> BufferedReader:
    """Open a regular file, or a link to one, for reading bytes.

    Args:
        path: the file.
        most: bytes that it may have; None for any number.

    Raises:
        UnreadError: something else than a regular file, or a larger one.
        OSError: it isn't there, or may not be read.
    """
    _check(path.stat(), most)
    # It can be another by now, and opening a pipe waits for a writer.
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    )
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check(os.fstat(file.fileno()), most)
    except UnreadError:
        file.close()
        raise
    return file


def read(path: Path, *, most: int = MOST, pipes: bool = False) -> bytes:
    """What is in a file.

    Args:
        path: the file.
        most: bytes that it may have.
        pipes: read a pipe or a device too, as far as `most`: for what a person names to be read as text.

    Raises:
        UnreadError: something else than a regular file, or more than `most` bytes.
        OSError: it isn't there, or may not be read.
    """
    with path.open("rb") if pipes else open_regular(path, most=most) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise _too_large(most)
    return content


def kind_of(mode: int) -> str:
    """What a file of some mode is, where it is no regular one, in words."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def _check(found: os.stat_result, most: int | None) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UnreadError(f"it is {kind_of(found.st_mode)}, not a regular file")
    if most is not None and found.st_size > most:
        raise _too_large(most, found.st_size)


def _too_large(most: int, size: int | None = None) -> UnreadError:
    has = "more" if size is None else in_words(size)
    return UnreadError(f"it has {has}, and no more than {in_words(most)} are read")


def expanded(text: str) -> Path:
    """A path as a person writes it, ~ for a home; one of nobody's stays as it is, and isn't there."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path's own raises for nobody's home


def in_words(size: int) -> str:
    """A number of bytes as a person says it."""
    return f"{size / MIB:,.0f} MiB" if size >= MIB else f"{size:,} bytes"


def memory_at_hand() -> int | None:
    """Bytes of memory that a process can still take: the system's, or a container's limit; None where none tells."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024)
    with contextlib.suppress(OSError, ValueError):  # "max" is no limit
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text("ascii")))
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)
