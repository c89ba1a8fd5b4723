"""The app that scenes share ends with the tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.tui import pilots


@pytest.fixture(scope="session", autouse=True)
def _strike() -> Iterator[None]:
    yield
    pilots.strike()
