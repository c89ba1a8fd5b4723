"""How long one waits for a first token: `python -m tests.tui_start`, in a real pseudo-terminal.

Each time the app starts, a sentence is typed over so many seconds, and Enter begins a run of the form's own settings;
once it is over, `F5` begins a second one. Told of each: seconds from the start to the form, from Enter to the first
token on the screen, in both runs, and what the processor spent on the app and on its other processes by the first one.
`--beside FOLDER` takes another checkout's app in turns with this one's, each first in every other turn, and tells the
ratios. On a busy machine only the processor's seconds and their ratios tell something.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import bytecode
from tests.tui_speed import ROOT, Terminal, cpu_seconds, environment, say

SENTENCE, WORD = "the cat sat on the mat", b"sat"
LONGEST = 120.0  # seconds that a start or a run may take, on whatever machine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """One start: seconds of the clock, and of the processor where the name says so."""

    form: float
    first: float
    second: float
    app_cpu: float
    warm_cpu: float


FIGURES = [field.name for field in dataclasses.fields(Start)]


def start(checkout: Path, typing: float, model: str) -> Start:
    """Start the app of a checkout, type, press Enter, and run again."""
    with tempfile.TemporaryDirectory() as name:
        folder, paths = Path(name), [str(checkout), str(checkout / "tui")]
        began = time.monotonic()
        terminal = Terminal(
            [],
            {**environment(folder, {"model": model}), "PYTHONPATH": os.pathsep.join(paths)},
            (160, 48),
            folder=checkout,
        )
        try:
            _until(terminal, "Sentence")
            form = time.monotonic() - began
            for letter in SENTENCE:
                terminal.press(letter.encode())
                terminal.drain(typing / len(SENTENCE))
            first = _to_a_token(terminal, b"\r", folder, runs=1)
            app, warm = cpu_seconds(terminal.process.pid), sum(map(cpu_seconds, _below(terminal.process.pid)))
            while not list(folder.glob("runs/*/result.json")):
                terminal.drain(0.1)
            terminal.drain(2.0)
            second = _to_a_token(terminal, b"\x1b[15~", folder, runs=2)
        finally:
            terminal.close()
    return Start(form=form, first=first, second=second, app_cpu=app, warm_cpu=warm)


def _until(terminal: Terminal, words: str) -> None:
    seen, end = b"", time.monotonic() + LONGEST
    while words.encode() not in seen:
        seen += terminal.read(0.05)
        if time.monotonic() > end:
            raise TimeoutError(words)


def _to_a_token(terminal: Terminal, key: bytes, folder: Path, *, runs: int) -> float:
    """Press a key; seconds until the new run has told of tokens and a word of the sentence is drawn."""
    pressed, seen, told = time.monotonic(), b"", False
    terminal.press(key)
    while time.monotonic() - pressed < LONGEST:
        seen += terminal.read(0.02)
        if not told:
            found = list(folder.glob("runs/*/events.jsonl"))
            told = len(found) == runs and all(b'"progress"' in file.read_bytes() for file in found)
        if told and WORD in seen:
            return time.monotonic() - pressed
    raise TimeoutError(key)


def _below(pid: int) -> Iterator[int]:
    """All processes that came of one."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text("ascii").split()):
            yield child
            yield from _below(child)


def main() -> None:
    """Start it so many times, and tell medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--starts", type=int, default=5, help="of each app")
    parser.add_argument("--typing", type=float, default=1.0, help="seconds that the sentence takes")
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--beside", type=Path, help="a checkout whose app starts in turns with this one's")
    options = parser.parse_args()
    checkouts = [ROOT, *([] if options.beside is None else [options.beside.resolve()])]
    say(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {len(SENTENCE)} letters in {options.typing:g} s"
    )
    take_away = bytecode.write([checkout / room for checkout in checkouts for room in ("textleak", "tui")])
    found: dict[Path, list[Start]] = {checkout: [] for checkout in checkouts}
    try:
        for turn in range(options.starts):
            for checkout in checkouts if turn % 2 else reversed(checkouts):
                found[checkout].append(start(checkout, options.typing, options.model))
                say(f"  {checkout}: {found[checkout][-1]}")
    finally:
        take_away()
    for checkout, starts in found.items():
        say(f"{checkout}: " + ", ".join(f"{name} {_spread(starts, name)}" for name in FIGURES))
    if options.beside is not None:
        ours, theirs = found.values()
        for name in FIGURES:
            ratios = [
                getattr(one, name) / getattr(other, name) for one, other in zip(ours, theirs, strict=True)
            ]
            say(
                f"{name}: {statistics.median(ratios):.2f} of the other's ({min(ratios):.2f} to {max(ratios):.2f})"
            )


def _spread(starts: list[Start], name: str) -> str:
    values = [getattr(one, name) for one in starts]
    return f"{statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
