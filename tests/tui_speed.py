"""What the terminal app costs and how fast it answers: `python -m tests.tui_speed`, in a real pseudo-terminal.

- keys: while an attack uses all its threads, how long until a key press is on the screen;
- share of a core that the app itself takes meanwhile;
- slow-down: the attack with the app beside it against `textleak run` alone, alternating pairs;
- grid: the first two again, while a grid of 200 cells fills with ten batches a second;
- memory: growth of the app while it follows a run of 50,000 events.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import itertools
import json
import os
import pty
import select
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from textleak.evaluation.records import Cell, Record, SentenceRecord, to_json
from textleak.events import Position, Progress, Sentence, TokenGuess, Truth
from textleak.runs import Recorder, RunFolder

SENTENCE = "the meeting was moved to friday morning"
ROOT = Path(__file__).parents[1]


def say(words: str) -> None:
    """A line."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


class Terminal:
    """The app in a pseudo-terminal of its own."""

    def __init__(
        self, arguments: list[str], environment: dict[str, str], size: tuple[int, int], *, folder: Path = ROOT
    ) -> None:
        main, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "textleak.cli", "tui", *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        os.close(other)
        self._main = main

    def read(self, seconds: float) -> bytes:
        """What is written within so many seconds, as soon as there is something."""
        if not select.select([self._main], [], [], seconds)[0]:
            return b""
        try:
            return os.read(self._main, 1 << 16)
        except OSError:  # the app has gone
            return b""

    def drain(self, seconds: float) -> bytes:
        """All that is written for so long."""
        found, end = b"", time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            found += self.read(left)
        return found

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._main, keys)

    def hang_up(self) -> None:
        """Close the terminal; its app hears of no signal, as it has another session."""
        os.close(self._main)
        self._main = os.open(os.devnull, os.O_RDWR)

    def close(self) -> None:
        """Quit, and see that it goes."""
        if self.process.poll() is None:
            self.press(b"\x11")
        end = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < end:
            self.read(0.1)
        self.process.kill()
        self.process.wait()
        os.close(self._main)


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """MiB that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def environment(folder: Path, fields: dict[str, str] | None = None) -> dict[str, str]:
    """Settings and runs in a folder of their own."""
    (folder / "config" / "textleak").mkdir(parents=True, exist_ok=True)
    (folder / "config" / "textleak" / "tui.json").write_text(json.dumps({"fields": fields or {}}))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tui")]),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "TEXTLEAK_RUNS": str(folder / "runs"),
        "HF_HUB_OFFLINE": "1",
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
    }


def start_run(folder: Path, size: tuple[int, int], fields: dict[str, str]) -> tuple[Terminal, Path]:
    """The app with an attack going, and the attack's run folder."""
    terminal = Terminal([], environment(folder, fields), size)
    seen = b""
    while b"Sentence" not in seen:
        seen += terminal.read(0.05)
    terminal.drain(1.0)
    terminal.press(SENTENCE.encode() + b"\r")
    while not (found := list((folder / "runs").glob("*/events.jsonl"))):
        terminal.drain(0.2)
    while b'"progress"' not in found[0].read_bytes():
        terminal.drain(0.2)
    return terminal, found[0].parent


def keys(seconds: float, size: tuple[int, int], threads: int) -> None:
    """Latency of key presses and the app's share of a core, while an attack runs."""
    with tempfile.TemporaryDirectory() as name:
        fields = {"attack": "tag", "steps": "1000000", "restarts": "4", "threads": str(threads)}
        terminal, _ = start_run(Path(name), size, fields)
        terminal.drain(6.0)  # the names of attacks and defenses are listed in the meantime
        # Right and left, in turns.
        found = _presses(terminal, seconds, ((b"\x1b[C", "position 2 "), (b"\x1b[D", "position 1 ")))
        terminal.close()
    say(f"keys: {found}")


def _presses(terminal: Terminal, seconds: float, turns: Sequence[tuple[bytes, str]]) -> str:
    """Press keys in turns, each with the words that it brings to the screen; how fast that was, in words."""
    pid, times, lost = terminal.process.pid, [], 0
    cpu, began = cpu_seconds(pid), time.monotonic()
    for key, words in itertools.cycle(turns):
        if time.monotonic() - began >= seconds:
            break
        pressed = time.monotonic()
        terminal.press(key)
        seen = b""
        while time.monotonic() - pressed < 2.0:
            seen += terminal.read(0.05)
            if words.encode() in seen:
                times.append(time.monotonic() - pressed)
                break
        else:
            lost += 1
        terminal.drain(0.25)
    share = (cpu_seconds(pid) - cpu) / (time.monotonic() - began)
    ranked = sorted(times)
    p95 = ranked[int(0.95 * (len(ranked) - 1))]
    return (
        f"{len(times)} presses in {seconds:.0f} s, median {1e3 * statistics.median(times):.0f} ms, "
        f"p95 {1e3 * p95:.0f} ms, longest {1e3 * ranked[-1]:.0f} ms, {lost} not seen; "
        f"the app took {100 * share:.1f} % of a core"
    )


def grid(seconds: float, size: tuple[int, int], cells: int) -> None:
    """Latency of key presses and the app's share of a core, while an evaluation's folder fills."""
    with tempfile.TemporaryDirectory() as name:
        folder, identity = Path(name) / "grid", "0" * 16
        folder.mkdir()
        facts = {"identity": identity, "settings": {}, "batches": 10 * cells}
        (folder / "evaluation.json").write_text(json.dumps(facts))
        of = [Cell(data="sample", batch_size=1, model="m", defense=(f"n:s={at:04}",)) for at in range(cells)]
        with (folder / "records.jsonl").open("w") as file:
            file.writelines(_batch(cell, batch, identity) for batch in range(2) for cell in of)
            file.flush()
            terminal = Terminal([str(folder)], environment(Path(name)), size)
            seen = b""
            while f"{2 * cells} of".encode() not in seen:
                seen += terminal.read(0.05)
            over = threading.Event()

            def fill() -> None:
                for number in range(2 * cells, 10 * cells):
                    if over.wait(0.1):
                        return
                    file.write(_batch(of[number % cells], number // cells, identity))
                    file.flush()

            writer = threading.Thread(target=fill)
            writer.start()
            terminal.drain(3.0)
            found = _presses(terminal, seconds, ((b"\x1b[B", "m, n:s=0001"), (b"\x1b[A", "m, n:s=0000")))
            over.set()
            writer.join()
            terminal.close()
    say(f"grid of {cells} cells: {found}")


def _batch(cell: Cell, batch: int, identity: str) -> str:
    rate = (batch % 5) / 4
    names = ("token_match_rate", "token_recall", "rouge1", "rouge2", "rougeL")
    figures = dict.fromkeys((*names, "rouge1_words", "rouge2_words", "rougeL_words"), rate)
    sentence = SentenceRecord(
        reference=SENTENCE,
        recovered=SENTENCE,
        reference_tokens=tuple(SENTENCE.split()),
        recovered_tokens=tuple(SENTENCE.split()),
        exact=False,
        label=None,
        recovered_label=None,
        **figures,
    )
    record = Record(
        identity=identity,
        cell=cell,
        batch=batch,
        status="done",
        sentences=(sentence,),
        exact_rate=0.0,
        seconds=2.0,
        **figures,
    )
    return json.dumps(to_json(record)) + "\n"


def slow_down(pairs: int, size: tuple[int, int], steps: int) -> None:
    """The attack's own seconds, and its processor time, with the app and without it, alternating."""
    ratios: list[tuple[float, float]] = []
    fields = {"attack": "tag", "steps": str(steps), "threads": "1"}
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as name:
            out = Path(name) / "run"
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "textleak.cli", "run", "-s", SENTENCE, "-a", "tag"),
                    *("--steps", str(steps), "--threads", "1", "--out", str(out), "--json"),
                ],
                env=environment(Path(name)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # as the app starts it: schedulers share a busy machine by session
            )
            alone = _spent(process.pid, out, lambda: time.sleep(0.05))
            process.wait()
        with tempfile.TemporaryDirectory() as name:
            terminal, folder = start_run(Path(name), size, fields)
            pid = json.loads((folder / "run.json").read_text())["pid"]
            beside = _spent(pid, folder, lambda terminal=terminal: terminal.drain(0.05))
            terminal.close()
        ratios.append((beside[0] / alone[0], beside[1] / alone[1]))
        say(
            f"  alone {alone[0]:.2f} s ({alone[1]:.2f} s of processor), "
            f"with the app {beside[0]:.2f} s ({beside[1]:.2f} s)"
        )
    wall, cpu = (100 * (statistics.median(ratio) - 1) for ratio in zip(*ratios, strict=True))
    say(f"slow-down: {wall:+.1f} %, in processor time {cpu:+.1f} % (medians of {pairs} pairs)")


def _spent(pid: int, folder: Path, wait: Callable[[], object]) -> tuple[float, float]:
    """An attack's seconds as it tells them, and the processor time of its process until its result."""
    cpu = 0.0
    while not (folder / "result.json").exists():
        cpu = cpu_seconds(pid)
        wait()
    return float(json.loads((folder / "result.json").read_text())["seconds"]), cpu


def growth(events: int, size: tuple[int, int]) -> None:
    """How much memory the app takes on while it follows a run of so many events."""
    with tempfile.TemporaryDirectory() as name:
        folder = RunFolder.create(Path(name) / "runs" / "long", name="long")
        clock = iter(0.1 * tick for tick in range(10**9))
        with Recorder(
            folder, {"attack": "match", "model": "bert-tiny"}, clock=lambda: next(clock)
        ) as recorder:
            recorder.record(Truth(sentences=(_sentence(0),)))
            for step in range(200):
                recorder.record(_progress(step))
            terminal = Terminal([str(folder.path)], environment(Path(name)), size)
            before = _settled(terminal)
            writer = threading.Thread(target=_write, args=(folder.events_path, events))
            writer.start()
            while writer.is_alive():
                terminal.drain(0.2)
            after = _settled(terminal)
            alive = terminal.process.poll() is None
            terminal.close()
    say(f"memory: {before:.0f} MiB, after {events:,} events {after:.0f} MiB ({after - before:+.1f})")
    if not alive:
        say("memory: the app had ended, the figure says nothing")


def _settled(terminal: Terminal) -> float:
    """MiB that the app holds once it takes no more: on a busy machine it is long in starting, and in reading."""
    held, before, looks = memory(terminal.process.pid), 0.0, 0
    while looks < 40 and held - before > 0.1:
        terminal.drain(8.0)
        before, held, looks = held, memory(terminal.process.pid), looks + 1
    return held


def _write(path: Path, events: int) -> None:
    """Append events as fast as a reader can see them, some 500 a second."""
    line = next(line for line in path.read_text().splitlines() if '"progress"' in line)
    record = json.loads(line)
    with path.open("a", encoding="utf-8") as file:
        for step in range(200, 200 + events):
            record.update(t=0.2 * step, step=step, total_steps=step, loss=1 / step)
            file.write(json.dumps(record) + "\n")
            if step % 50 == 0:
                file.flush()
                time.sleep(0.1)


def _sentence(shift: int) -> Sentence:
    words = ("[CLS]", *SENTENCE.split(), "[SEP]")
    return Sentence(
        positions=tuple(
            Position(
                position=at,
                id=100 + at + shift,
                text=word,
                confidence=0.5,
                candidates=tuple(TokenGuess(id=k, text="word", score=0.1) for k in range(3)),
            )
            for at, word in enumerate(words)
        ),
        text=SENTENCE,
    )


def _progress(step: int) -> Progress:
    progress = Progress(
        phase="continuous", step=step, loss=1.0, losses=(1.0, 2.0), sentences=(_sentence(step % 3),)
    )
    return dataclasses.replace(progress, total_steps=step, evaluations=2 * step)


def main() -> None:
    """Measure what was asked for, or everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="*", default=["keys", "grid", "slow-down", "memory"])
    parser.add_argument("--seconds", type=float, default=60.0, help="of key presses")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=400, help="of each attack of a pair")
    parser.add_argument("--cells", type=int, default=200, help="of the grid")
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="of the attack under the keys"
    )
    parser.add_argument("--size", default="160x48")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {options.size}")
    if "keys" in options.what:
        keys(options.seconds, (width, height), options.threads)
    if "grid" in options.what:
        grid(options.seconds, (width, height), options.cells)
    if "slow-down" in options.what:
        slow_down(options.pairs, (width, height), options.steps)
    if "memory" in options.what:
        growth(options.events, (width, height))


if __name__ == "__main__":
    main()
