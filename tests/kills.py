"""Kill an evaluation at random moments until it is through, and compare its records with an uninterrupted one's:
`python -m tests.kills`.

Each attempt is a `textleak eval` of its own, killed with SIGKILL while it works. The records must be the same but for
times and worker.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from textleak.evaluation.records import Record
from textleak.reports.reading import read

GRID = ("--limit", "40", "--attack", "dlg:steps=3,restarts=1", "--batch-size", "1,2", "--threads", "1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the killed evaluation came to.

    Attributes:
        kills: how many there were.
        records: of the killed one.
        expected: of the uninterrupted one.
        lines: of the file of records, repetitions counted.
    """

    kills: int
    records: list[Record]
    expected: list[Record]
    lines: int

    @property
    def identical(self) -> bool:
        """Whether the records are the same, and none was written twice."""
        same = comparable(self.records) == comparable(self.expected)
        return same and self.lines == len(self.expected)


def comparable(records: Sequence[Record]) -> list[Record]:
    """The records in one order, without times and who computed them."""
    plain = [dataclasses.replace(r, seconds=0.0, cpu_seconds=0.0, worker="") for r in records]
    return sorted(plain, key=lambda record: (str(record.cell), record.batch))


def kill_until_done(
    folder: Path,
    grid: Sequence[str],
    *,
    kills: int,
    seed: int,
    say: bool = False,
    popen: type[subprocess.Popen[bytes]] = subprocess.Popen,
) -> Outcome:
    """Run `textleak eval` whole, then again with kills.

    Args:
        folder: for both evaluations.
        grid: flags.
        kills: at most so many; after them the evaluation is left to end.
        seed: draws the moments.
        say: a line a kill on stdout.
        popen: starts each attempt.
    """
    start = functools.partial(_start, popen)
    rng = random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    process = start(whole, grid)
    began = time.monotonic()
    process.wait()
    seconds = time.monotonic() - began
    expected = list(read(whole).records)
    done = 0
    while done < kills:
        process = start(killed, grid)
        there = len(list(read(killed).records))
        # Every other kill comes after a new record, so that it isn't always the loading of the model that is cut off.
        while done % 2 and process.poll() is None and len(read(killed).records) == there:
            time.sleep(0.005)
        # What is left, in equal parts: the last kill comes before the end.
        share = seconds * (len(expected) - there) / len(expected) / (kills - done + 1)
        try:
            process.wait(rng.uniform(0, 2 * share))
            break  # through before its kill
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        done += 1
        if say:
            sys.stdout.write(f"kill {done}: {len(list(read(killed).records))} of {len(expected)} records\n")
            sys.stdout.flush()
    start(killed, grid).wait()
    lines = (killed / "records.jsonl").read_bytes().splitlines()
    return Outcome(kills=done, records=list(read(killed).records), expected=expected, lines=len(lines))


def _start(popen: type[subprocess.Popen[bytes]], out: Path, grid: Sequence[str]) -> subprocess.Popen[bytes]:
    """An evaluation that has loaded its libraries and begins to work."""
    command = [sys.executable, "-m", "textleak.cli", "eval", *grid, "--out", str(out)]
    with tempfile.TemporaryFile() as said:
        process = popen(command, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            said.seek(0)
            if b"records in" in said.read():
                break
            time.sleep(0.005)
    return process


def main() -> int:
    """Parse, kill, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options, grid = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_until_done(
            Path(folder), grid or GRID, kills=options.kills, seed=options.seed, say=True
        )
    verdict = "identical to" if outcome.identical else "DIFFERENT from"
    sys.stdout.write(
        f"{outcome.kills} kills: {len(outcome.records)} records in "
        f"{outcome.lines} lines, {verdict} the {len(outcome.expected)} of an uninterrupted evaluation\n"
    )
    return 0 if outcome.identical else 1


if __name__ == "__main__":
    sys.exit(main())
