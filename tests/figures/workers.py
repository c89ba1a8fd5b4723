"""What several workers of an evaluation are worth: `python -m tests.figures.workers --data cola.tsv`.

`textleak eval` with one worker and with several takes turns, each in a folder of its own, one thread a worker. Told of
each call: seconds by the clock, and of a processor in all of its processes, of them in the attacks. Two calls that
don't recover the same are an error. `--engine ray` is the same on a cluster that ray makes of this machine. By the
clock this tells something on a machine that does nothing else; what the processor spent does on any (Linux). What
ray's own processes spend isn't all among a processor's seconds: it waits for them itself.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.warm import SUBREAPER
from textleak.evaluation.records import Record
from textleak.evaluation.store import read_records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """One call: seconds of the clock, and of a processor in all of its processes and in its attacks."""

    seconds: float
    cpu: float
    attacks: float
    found: dict[tuple[object, ...], object]


def call(arguments: list[str]) -> Call:
    """Evaluate once."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "records"
        began = time.monotonic()
        command = [sys.executable, "-m", "textleak.cli", "eval", *arguments, "--out", str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        codes, cpu, seconds = {}, 0.0, 0.0
        while True:  # those that outlive it are children of this process then
            try:
                pid, status, used = os.wait4(-1, 0)
            except ChildProcessError:
                break
            codes[pid], cpu = status, cpu + used.ru_utime + used.ru_stime
            if pid == process.pid:
                seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(codes[process.pid])
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
        records = list(read_records(out))
    attacks = sum(record.cpu_seconds or 0.0 for record in records)
    return Call(seconds=seconds, cpu=cpu, attacks=attacks, found=dict(map(_what_came_of, records)))


def _what_came_of(record: Record) -> tuple[tuple[object, ...], object]:
    return (record.cell, record.batch), [sentence.recovered for sentence in record.sentences]


def say(words: str) -> None:
    """A line."""
    sys.stdout.write(words + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=60, help="sentences")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--attack", default="match")
    parser.add_argument("--share", default="no-embeddings")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--engine", default="local", help="local or ray")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    named = ("data", "limit", "batch_size", "model", "attack", "share")
    alike = [text for name in named for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    alike += ["--threads", "1", "--engine", options.engine]
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}: eval {' '.join(alike)}")
    found: dict[int, list[Call]] = {1: [], options.workers: []}
    for turn in range(options.pairs):
        for workers in sorted(found, reverse=turn % 2 == 1):
            one = call([*alike, "--workers", str(workers)])
            found[workers].append(one)
            say(
                f"  {workers}: {one.seconds:.1f} s, {one.cpu:.1f} s of a processor, {one.attacks:.1f} of them attacks"
            )
            if one.found != found[1 if found[1] else options.workers][0].found:
                raise SystemExit("It doesn't recover what the other call did.")
    pairs = list(zip(*found.values(), strict=True))
    for name, words in (("seconds", "as fast by the clock"), ("cpu", "of a processor's seconds for it")):
        ratios = [getattr(one, name) / getattr(several, name) for one, several in pairs]
        if name == "cpu":
            ratios = [1 / ratio for ratio in ratios]
        say(
            f"{options.workers} workers: {statistics.median(ratios):.2f} times {words} "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
