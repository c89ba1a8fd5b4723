"""Files of one's own: written whole or not at all, readable by their owner alone whatever the folder and the umask.

What textleak writes quotes private text, often into folders in which others can prepare names. So a file comes into
being under a name that nobody can guess, and takes its place by a rename; nothing but a regular file is replaced, and
no link is followed. Until then it lies in a hidden folder beside its place, which its process holds by a lock; where a
process was killed, the next that writes there takes its folder away. Errors are `OSError`s, so that a caller says what
the file was for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from textleak.foreign import kind_of

try:
    import fcntl
except ImportError:  # Windows, where no folder can be held
    fcntl = None  # type: ignore[assignment]

_MODE = 0o600
_PARTIAL = re.compile(r"\.textleak-[0-9a-f]{16}\.partial")
# Of a link that stands where a file is to be opened; 0 on systems without links of that kind.
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_BINARY = getattr(os, "O_BINARY", 0)


class UnwrittenError(OSError):
    """A file that is not written, for what is in its place; its text says so."""


def check(path: Path) -> None:
    """Raise where something is in a file's place that isn't replaced.

    Raises:
        UnwrittenError: a device, a folder, a link, a named pipe.
        PermissionError: a file that may not be changed.
        OSError: nobody can look.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise UnwrittenError(f"it is {kind_of(found.st_mode)}, and only a file is replaced")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it is there, and may not be changed", str(path))


@contextlib.contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """An empty hidden folder, its owner's alone, that is gone afterwards; so is what killed processes left of theirs.

    Raises:
        OSError: it can't be made.
    """
    _sweep(parent)
    partial, held = _held(parent)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if held is not None:
            os.close(held)


def _held(parent: Path) -> tuple[Path, int | None]:
    """A new folder, and the descriptor whose lock says that its process lives; None where nothing can say so."""
    while True:
        partial = parent / f".textleak-{secrets.token_hex(8)}.partial"
        partial.mkdir(mode=0o700)
        if fcntl is None:
            return partial, None
        try:
            held = _lock(partial)
        except BlockingIOError:  # another process is just taking it away
            continue
        except FileNotFoundError:  # it did
            continue
        except OSError:  # a file system without locks
            return partial, None
        if partial.exists():
            return partial, held
        os.close(held)


def _lock(folder: Path) -> int:
    """Hold a folder by a descriptor; the system lets go of it when the process ends, however it does.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it is no folder, or can't be held.
    """
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | _NOFOLLOW)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise
    return held


def _sweep(parent: Path) -> None:
    """Take away the folders of our name and owner that no process holds."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError), os.scandir(parent) as entries:
        for entry in entries:
            if _PARTIAL.fullmatch(entry.name) is None:
                continue
            with contextlib.suppress(OSError):
                held = _lock(Path(entry.path))
                try:
                    if os.fstat(held).st_uid == os.geteuid():
                        shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(held)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file beside `path` that takes its place when all went well, and is gone when not.

    Raises:
        OSError: as for `check`, or it can't be written.
    """
    check(path)
    with scratch(path.parent) as folder:
        partial = folder / path.name
        _fill(partial, b"")
        yield partial
        partial.chmod(_MODE)  # a library may have put a file of its own in its place
        check(path)
        partial.replace(path)


def write(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one, never a part.

    Raises:
        OSError: as for `replacing`.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


def create(path: Path, content: bytes) -> None:
    """Write a file that isn't there yet: of several who try at once exactly one does, and a reader sees it whole.

    Raises:
        FileExistsError: something of that name is there.
        OSError: it can't be written.
    """
    with scratch(path.parent) as folder:
        partial = folder / path.name
        _fill(partial, content)
        try:
            os.link(partial, path, follow_symlinks=False)
        except FileExistsError:
            raise
        except (OSError, NotImplementedError):  # a file system without hard links
            _fill(path, content)


def _fill(path: Path, content: bytes) -> None:
    with os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NOFOLLOW | _BINARY, _MODE), "wb"
    ) as file:
        file.write(content)


@contextlib.contextmanager
def filling(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, its owner's alone, that takes its place when all went well, and is gone when not.

    For libraries that write files of their own names. A folder of that name that is there already stays as it is.

    Raises:
        UnwrittenError: something else than a folder is there.
        OSError: it can't be written.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode):
            raise UnwrittenError(f"it is {kind_of(mode)}, and a folder is wanted")
    with scratch(path.parent) as folder:
        partial = folder / path.name
        partial.mkdir(mode=0o700)
        yield partial
        for written in partial.rglob("*"):
            if not written.is_symlink():
                written.chmod(_MODE if written.is_file() else 0o700)
        try:
            partial.rename(path)
        except OSError:
            if not path.is_dir():  # another process made it meanwhile
                raise


def append_to(path: Path) -> int:
    """Open a file to append to, made where there is none; its descriptor.

    Raises:
        UnwrittenError: a device, a folder, a link, a named pipe.
        OSError: it can't be opened.
    """
    check(path)
    # It can be another by now, and opening a pipe waits for a reader.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | _NOFOLLOW | _BINARY
    descriptor = os.open(path, flags, _MODE)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise UnwrittenError(f"it is {kind_of(found.st_mode)}, and only a file is written to")
        if hasattr(os, "fchmod") and found.st_uid == os.geteuid():
            os.fchmod(descriptor, _MODE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def why_not(error: OSError) -> str:
    """Why a file can't be written, as a sentence."""
    words = str(error.strerror or error)
    return f"{words[:1].upper()}{words[1:]}."
