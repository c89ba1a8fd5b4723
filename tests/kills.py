"""Kill commands at random moments and look at what is left: `python -m tests.kills [eval run image] [--kills N]`.

- eval: one evaluation is killed again and again, and goes on each time; its records must be those of an uninterrupted
  one, each once, but for times and worker.
- run, image: each attempt has a folder of its own, which must be readable whatever the moment: reported on, listed and
  replayed.

Every attempt is a process of its own that is ended by SIGKILL; `tests.warm` starts it, with its libraries loaded, but
for every fourth of a run's, which begins as from a shell. Their moments are spread evenly over the whole life of such a
process, the first one of all included. Those of an evaluation are counted in records, not in seconds, so a busy machine
changes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests import warm
from textleak.evaluation.records import Record
from textleak.reports.reading import read

EVAL = ("--limit", "20", "--attack", "dlg:steps=3,restarts=1", "--batch-size", "1,2")
EVAL += ("--know", "lengths,batch-size", "--weights", "random", "--threads", "1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": (
        "-s",
        "the meeting was moved to friday",
        "-a",
        "dlg",
        "--steps",
        "20",
        "--know",
        "lengths,batch-size",
    ),
    "image": ("--steps", "30", "--set", "size=16"),
}
ALIKE = ("--weights", "random", "--threads", "1", "--save-gradients")
KILLS = {"eval": 20, "run": 20, "image": 5}
COLD = 4  # of a run's attempts every so many begin with nothing loaded
# An attempt that takes so many times as long as the uninterrupted one, and a minute, hangs.
PATIENCE = 20


class FailsError(Exception):
    """A command doesn't come to its end, or to another one than it should."""


# Attempts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempt:
    """A command that has begun.

    Attributes:
        process: it.
        said: the file of what it prints.
    """

    process: subprocess.Popen[bytes]
    said: Path

    def ended(self, seconds: float) -> bool:
        """Whether it comes to its end in so many seconds.

        Raises:
            FailsError: it ends by itself, and not well.
        """
        try:
            status = self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        if status:
            raise FailsError(f"it ended with status {status}: {self.words()[-500:]}")
        return True

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def words(self) -> str:
        """What the command has printed."""
        return self.said.read_text("utf-8", "replace")


def start(folder: Path, arguments: Sequence[str], *, cold: bool = False) -> Attempt:
    """Begin a `textleak`, which says what it says to a file of this folder; `cold`: with nothing loaded yet."""
    said = folder / "said"
    # A process with threads can't be forked without risk.
    quiet = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")}
    with said.open("wb") as words:
        process = (subprocess.Popen if cold else warm.Popen)(
            [sys.executable, "-m", "textleak.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            env={**quiet, "TOKENIZERS_PARALLELISM": "false"},
        )
    return Attempt(process=process, said=said)


def _whole(folder: Path, arguments: Sequence[str], seconds: float, *, cold: bool = False) -> float:
    """Run a command to its end; the seconds that takes.

    Raises:
        FailsError: it takes longer.
    """
    began = time.monotonic()
    attempt = start(folder, arguments, cold=cold)
    if not attempt.ended(seconds):
        attempt.kill()
        raise FailsError(f"{arguments[0]} had no end after {seconds:.0f} s: {attempt.words()[-500:]}")
    return time.monotonic() - began


# Evaluations


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the killed evaluation came to.

    Attributes:
        kills: how many there were.
        records: of the killed one.
        expected: of the uninterrupted one.
        lines: of the file of records, repetitions counted.
        hidden: files and folders that kills left beside the records.
    """

    kills: int
    records: list[Record]
    expected: list[Record]
    lines: int
    hidden: int

    @property
    def identical(self) -> bool:
        """Whether the records are the same, and none was written twice."""
        same = comparable(self.records) == comparable(self.expected)
        return same and self.lines == len(self.expected) and not self.hidden


def comparable(records: Sequence[Record]) -> list[Record]:
    """The records in one order, without times and who computed them."""
    plain = [dataclasses.replace(r, seconds=0.0, cpu_seconds=0.0, worker="") for r in records]
    return sorted(plain, key=lambda record: (str(record.cell), record.batch))


def kill_until_done(
    folder: Path, grid: Sequence[str], *, kills: int, seed: int, say: Callable[[str], object] = str
) -> Outcome:
    """Run `textleak eval` whole, then again with kills.

    Args:
        folder: for both evaluations.
        grid: flags.
        kills: how many; fewer where the evaluation is through before one.
        seed: draws the moments.
        say: is told each kill.

    Raises:
        FailsError: an evaluation doesn't get on.
    """
    rng = random.Random(seed)
    whole, killed = folder / "whole", folder / "killed"
    command = ["eval", *grid, "--out", str(killed)]
    seconds = _whole(folder, ["eval", *grid, "--out", str(whole)], 3600)
    expected = list(read(whole).records)
    # Records that are there before each kill; there is always one to come.
    moments = sorted(rng.uniform(0, max(1, len(expected) - 1)) for _ in range(kills))
    done = 0
    for moment in moments:
        attempt = start(folder, command)
        if not _until(attempt, killed, int(moment), seconds):
            break
        # In the middle of a batch, or of the loading of the model where there is no new record.
        if attempt.ended(moment % 1 * seconds / len(expected)):
            break
        attempt.kill()
        done += 1
        say(f"kill {done}: {_count(killed)} of {len(expected)} records")
    _whole(folder, command, PATIENCE * seconds + 60)
    hidden = sum(path.name.startswith(".") for path in killed.iterdir())
    return Outcome(
        kills=done, records=list(read(killed).records), expected=expected, lines=_count(killed), hidden=hidden
    )


def _count(folder: Path) -> int:
    """Lines of records."""
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _until(attempt: Attempt, folder: Path, records: int, seconds: float) -> bool:
    """Wait until the evaluation has begun to work and there are so many records; False where it is through before.

    Raises:
        FailsError: there is no new one for far longer than the uninterrupted evaluation took.
    """
    there, since = _count(folder), time.monotonic()
    while "records in" not in attempt.words() or there < records:
        if attempt.ended(0.005):
            return False
        if (now := _count(folder)) > there:
            there, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE * seconds + 60:
            raise FailsError(f"no new record after {there}: {attempt.words()[-500:]}")
    return True


# Runs


@dataclasses.dataclass(kw_only=True)
class Left:
    """What killed runs left.

    Attributes:
        kills: how many there were.
        kinds: of folders, how many each: none yet, and each outcome.
        problems: folders that can't be read, with why.
    """

    kills: int = 0
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    problems: list[str] = dataclasses.field(default_factory=list)


def kill_runs(
    folder: Path,
    command: str,
    flags: Sequence[str],
    *,
    kills: int,
    seed: int,
    say: Callable[[str], object] = str,
) -> Left:
    """Kill a command in each of so many folders, and read these.

    Raises:
        FailsError: a run doesn't come to its end.
    """
    rng = random.Random(seed)
    left = Left()
    # How long an uninterrupted one lives, from a shell and with its libraries loaded.
    seconds = {
        cold: _whole(
            folder, [command, *flags, "--out", str(folder / f"whole{'-cold' * cold}")], 3600, cold=cold
        )
        for cold in (False, True)
    }
    moments = {True: _spread(rng, kills // COLD), False: _spread(rng, kills - kills // COLD)}
    for number in range(3 * kills):
        cold = number % COLD == COLD - 1
        out = folder / f"{command}-{number}"
        moment = moments[cold].pop() if moments[cold] else rng.random()
        attempt = start(folder, [command, *flags, "--out", str(out)], cold=cold)
        began = time.monotonic()
        if attempt.ended(moment * seconds[cold]):  # through before its kill
            seconds[cold] = min(seconds[cold], time.monotonic() - began)
            continue
        attempt.kill()
        left.kills += 1
        kind = what_is_left(out, left.problems)
        left.kinds[kind] += 1
        say(f"kill {left.kills}{' (cold)' * cold} at {moment:.0%} of its life: {kind}")
        if left.kills == kills:
            break
    return left


def _spread(rng: random.Random, count: int) -> list[float]:
    """So many moments of a life, one at random in each equal part of it; in no order."""
    moments = [(part + rng.random()) / count for part in range(count)]
    rng.shuffle(moments)
    return moments


def what_is_left(folder: Path, problems: list[str]) -> str:
    """Read a run's folder in every way; its outcome, and what is wrong in `problems`."""
    from typer.testing import CliRunner

    from tests.hostile.suites import look
    from textleak import runs
    from textleak.cli import app
    from textleak.shared.gradient import SharedGradient
    from textleak_tui.listing import read_row

    if not folder.exists():
        return "no folder yet"
    try:
        outcome = runs.read_run(folder).outcome
        if problem := read_row(folder).problem:
            problems.append(f"{folder.name}: {problem}")
        look(folder)
        if (folder / "gradients.safetensors").exists():
            SharedGradient.load(folder / "gradients.safetensors")
    except Exception as error:
        problems.append(f"{folder.name}: {type(error).__name__}: {error}")
        return "unreadable"
    # A run that was killed before its answer has nothing to compare: that is said.
    for arguments, codes in (
        (["report", str(folder)], {0}),
        (["compare", str(folder), str(folder.with_name("whole"))], {0, 2}),
    ):
        answer = CliRunner().invoke(app, arguments)
        if answer.exit_code not in codes:
            problems.append(f"{folder.name}: {arguments[0]}: {answer.stderr or answer.exception}")
    problems += [
        f"{folder.name}: {path.name} is left" for path in folder.iterdir() if path.name.startswith(".")
    ]
    return outcome


def main() -> int:
    """Parse, kill, say what is left; 1 where anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="eval | run | image", help="[all three]")
    parser.add_argument("--kills", type=int, help="of each [20; 5 of image]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if unknown := sorted({*options.what} - {*KILLS}):
        parser.error(f"unknown: {', '.join(unknown)}")
    wrong = 0
    warm.keep()
    for what in options.what or KILLS:
        kills = options.kills or KILLS[what]
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="textleak-kills-") as name:
            if what == "eval":
                outcome = kill_until_done(Path(name), EVAL, kills=kills, seed=options.seed, say=_say)
                verdict = "identical to" if outcome.identical else "DIFFERENT from"
                words = (
                    f"{outcome.kills} kills of eval: {len(outcome.records)} records in {outcome.lines} lines, "
                    f"{verdict} the {len(outcome.expected)} of an uninterrupted one; {outcome.hidden} hidden files"
                )
                wrong += not outcome.identical or outcome.kills < kills
            else:
                flags = (*COMMANDS[what], *ALIKE)
                left = kill_runs(Path(name), what, flags, kills=kills, seed=options.seed, say=_say)
                kinds = ", ".join(f"{count} {kind}" for kind, count in left.kinds.most_common())
                words = f"{left.kills} kills of {what}: {kinds}; {len(left.problems)} problems"
                wrong += bool(left.problems) or left.kills < kills
                words = "\n  ".join([words, *left.problems])
        _say(f"{words}\n  {time.monotonic() - began:.0f} s")
    return int(wrong > 0)


def _say(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
