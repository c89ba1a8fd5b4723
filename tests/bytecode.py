"""textleak's bytecode for as long as tests run, where Python is told to write none (`PYTHONDONTWRITEBYTECODE`).

Otherwise each process that a test starts compiles all it loads of textleak, as does each that runs tests.
"""

from __future__ import annotations

import compileall
from collections.abc import Callable, Sequence
from importlib.util import cache_from_source
from pathlib import Path


def write(folders: Sequence[Path]) -> Callable[[], None]:
    """Compile what is below folders, for all processes at once.

    Returns:
        What takes away again all that was written.
    """
    written = [
        Path(cache_from_source(str(source)))
        for folder in folders
        for source in folder.rglob("*.py")
        if not Path(cache_from_source(str(source))).exists()
    ]
    for folder in folders:
        compileall.compile_dir(folder, quiet=2)

    def take_away() -> None:
        for path in written:
            path.unlink(missing_ok=True)
        for folder in {path.parent for path in written}:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    return take_away
