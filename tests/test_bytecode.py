"""Bytecode that the tests' processes share is there while they run, and what was there before stays."""

from __future__ import annotations

import py_compile
from importlib.util import cache_from_source
from pathlib import Path

from tests import bytecode


def test_all_is_compiled_and_only_what_was_written_is_taken_away(tmp_path: Path) -> None:
    known, new, broken = tmp_path / "known.py", tmp_path / "inner" / "new.py", tmp_path / "broken.py"
    new.parent.mkdir()
    for source in (known, new):
        source.write_text("x = 1\n", "utf-8")
    broken.write_text("x =\n", "utf-8")
    py_compile.compile(str(known))
    take_away = bytecode.write([tmp_path])
    assert Path(cache_from_source(str(known))).exists()
    assert Path(cache_from_source(str(new))).exists()
    take_away()
    take_away()
    assert Path(cache_from_source(str(known))).exists()
    assert not Path(cache_from_source(str(new))).parent.exists()
