"""Kill an evaluation at random moments until it is through, and compare its records with an uninterrupted one's:
`python -m tests.kills`.

Each attempt is a `textleak eval` of its own, killed with SIGKILL. The records must be the same but for times and
worker.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from textleak.evaluation.records import Record
from textleak.evaluation.store import read_records

GRID = ("--limit", "40", "--attack", "dlg:steps=3,restarts=1", "--batch-size", "1,2", "--threads", "1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the killed evaluation came to.

    Attributes:
        kills: how many there were.
        in_work: how many of them came after the first record could be written.
        records: of the killed one.
        expected: of the uninterrupted one.
        lines: of the file of records, repetitions counted.
    """

    kills: int
    in_work: int
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
    folder: Path, grid: Sequence[str], *, kills: int, seed: int, say: bool = False
) -> Outcome:
    """Run `textleak eval` whole, then again with kills.

    Args:
        folder: for both evaluations.
        grid: flags.
        kills: at most so many; after them the evaluation is left to end.
        seed: draws the moments.
        say: a line a kill on stdout.
    """
    rng = random.Random(seed)
    began = time.monotonic()
    whole, killed = folder / "whole", folder / "killed"
    _start(whole, grid).communicate()
    expected = read_records(whole)
    work = sum(record.seconds for record in expected)
    overhead = max(0.0, time.monotonic() - began - work)
    done = in_work = 0
    while done < kills:
        process = _start(killed, grid)
        # One in five while it still loads; the others when it works, so that the last kill is near the end.
        loading = rng.random() < 0.2
        if not loading:
            while not (killed / "evaluation.json").exists() and process.poll() is None:
                time.sleep(0.01)
        try:
            process.wait(rng.uniform(0, overhead / 2 if loading else overhead / 2 + 2 * work / kills))
            break  # through before its kill
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        done += 1
        in_work += not loading
        if say:
            there = len(read_records(killed)) if (killed / "evaluation.json").exists() else 0
            sys.stdout.write(f"kill {done}: {there} of {len(expected)} records\n")
            sys.stdout.flush()
    last = _start(killed, grid)
    last.communicate()
    lines = (killed / "records.jsonl").read_bytes().splitlines()
    return Outcome(
        kills=done, in_work=in_work, records=read_records(killed), expected=expected, lines=len(lines)
    )


def _start(out: Path, grid: Sequence[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "textleak.cli", "eval", *grid, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


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
        f"{outcome.kills} kills, {outcome.in_work} of them at work: {len(outcome.records)} records in "
        f"{outcome.lines} lines, {verdict} the {len(outcome.expected)} of an uninterrupted evaluation\n"
    )
    return 0 if outcome.identical else 1


if __name__ == "__main__":
    sys.exit(main())
