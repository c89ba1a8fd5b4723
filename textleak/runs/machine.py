"""What a result was computed with: versions and cores."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; imports none of them."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("textleak", "torch", "transformers", "tokenizers", "numpy", "scipy", "rouge-score"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if "textleak" not in found:
        import textleak

        found["textleak"] = textleak.__version__
    return found


def machine_facts() -> dict[str, Any]:
    """The machine as far as a reader of the records needs it: no host name, no user name."""
    return {"platform": platform.platform(), "processor": platform.machine(), "cores": cores()}


def cores() -> int:
    """CPU cores that this process may really use: its affinity, or a container's quota if that is less."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        found = min(found, max(1, math.ceil(int(quota) / int(period))))
    return found
