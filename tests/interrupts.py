"""Ctrl-C in a test's own process."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import pytest

POSIX = pytest.mark.skipif(os.name == "nt", reason="signals to a thread are POSIX's")


def interrupt() -> None:
    """What Ctrl-C does, whichever thread this is."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C is an error in the main thread, as in a program; a process of tests may leave it out."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
