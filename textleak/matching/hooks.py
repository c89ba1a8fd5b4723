"""Hooks on a network's modules that are there for one run of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks away again, whatever happens while they are there."""
    registered = list(handles)
    try:
        yield
    finally:
        for handle in registered:
            handle.remove()
