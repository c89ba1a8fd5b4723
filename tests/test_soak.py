"""A process that recovers again and again doesn't grow, and leaves nothing open."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.soak import WARM_UP, soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")


@pytest.mark.slow
def test_many_recoveries_leave_no_memory_and_no_file_behind(tmp_path: Path) -> None:
    soaked = soak(tmp_path, WARM_UP + 30)
    assert soaked.right >= 30  # all but those of an attack that has no time here
    assert soaked.growth < 20
    assert soaked.opened == []
