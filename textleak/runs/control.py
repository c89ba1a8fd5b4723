"""Driving an attack to its end, and the commands that steer it meanwhile through its run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Generator
from pathlib import Path

from textleak import foreign, owned
from textleak.events import Phase, Progress, Recovery, Stop
from textleak.runs.folder import RunFolder
from textleak.runs.recorder import Recorder

COMMANDS = ("pause", "resume", "stop")


def execute(
    attack: Generator[Phase | Progress, None, Recovery], recorder: Recorder, *, poll_seconds: float = 0.05
) -> Recovery:
    """Drive an attack to its end, writing what it yields and heeding `control.jsonl` between its steps.

    A KeyboardInterrupt goes through: the caller asks `recorder.recovery(Stop.INTERRUPTED)` for the best.

    Args:
        attack: what `Attack.run` returned.
        recorder: an open recorder.
        poll_seconds: how often a paused run looks for `resume`.

    Returns:
        The attack's recovery, or the best so far when a viewer said `stop`.
    """
    control = Control(recorder.folder.control_path)
    while True:
        if _heed(control, recorder, poll_seconds) == "stop":
            attack.close()
            return recorder.recovery(Stop.STOPPED)
        try:
            event = next(attack)
        except StopIteration as end:
            recovery: Recovery = end.value
            return recovery
        recorder.record(event)


def _heed(control: Control, recorder: Recorder, poll_seconds: float) -> str:
    """Read new commands; wait while paused. Returns the last command, "" for none."""
    command, paused = "", False
    while True:
        for command in control.read():
            if command == "stop":
                return command
            paused = command == "pause"
            progress = recorder.progress or Progress(phase="", step=0)
            recorder.record(dataclasses.replace(progress, detail="paused" if paused else "resumed"))
            recorder.flush()  # whoever watches from elsewhere sees at once that it waits
        if not paused:
            return command
        time.sleep(poll_seconds)


class Control:
    """New commands in a `control.jsonl`, each told once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def read(self) -> list[str]:
        """Commands written since the last call; costs one stat where there are none."""
        try:
            if self._path.stat().st_size <= self._read:
                return []
            with foreign.open_regular(self._path) as file:
                file.seek(self._read)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        commands = []
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, AttributeError):
                commands.append(json.loads(line).get("command"))
        return [command for command in commands if command in COMMANDS]


def send(folder: Path, command: str) -> None:
    """Tell a running attack to `pause`, `resume` or `stop`."""
    if command not in COMMANDS:
        raise ValueError(f"{command!r} is not one of {COMMANDS}")
    with os.fdopen(owned.append_to(RunFolder(path=folder).control_path), "ab") as file:
        file.write(json.dumps({"command": command}).encode() + b"\n")
