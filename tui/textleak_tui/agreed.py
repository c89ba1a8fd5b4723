"""What the app and its attacks' processes agree on; imports next to nothing, as the first process waits for it."""

from __future__ import annotations

import os

# Exit codes of `textleak_tui.attack_process`: a run that failed, settings that can't be used, an interrupt.
FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def environment() -> dict[str, str]:
    """What an attack's process has for its environment."""
    return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
