"""An audit in a process of its own, which has the files and nothing of the training."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from textleak.errors import AttackError
from textleak.integrations.recording import Recording

_ABOVE = 3  # exit code above --fail-above: the audit itself went well


def audited(recording: Recording, *, time_limit: str = "5m", options: Sequence[str] = ()) -> dict[str, Any]:
    """What `textleak audit --json` prints of a recording; scored where its truth was written.

    Args:
        recording: what is audited.
        time_limit: as `--time-limit` takes it.
        options: others of the command.

    Raises:
        AttackError: the audit failed; it says why.
    """
    truth = [] if recording.truth is None else ["--truth", str(recording.truth)]
    arguments = [*recording.command[1:], *truth, "--time-limit", time_limit, "--json", *options]
    ended = subprocess.run(
        [sys.executable, "-m", "textleak.cli", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode not in (0, _ABOVE):
        raise AttackError(
            f"The audit of {recording.file} ended with exit code {ended.returncode}.",
            why="\n".join(ended.stderr.strip().splitlines()[-3:]),
            fix=f"Run it by itself: {recording.line}",
        )
    said: dict[str, Any] = json.loads(ended.stdout)
    return said
