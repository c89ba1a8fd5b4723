"""Kill commands at random moments and look at what is left: `python -m tests.kills [eval run image] [--kills N]`.

- eval: one evaluation is killed again and again, and goes on each time; its records must be those of an uninterrupted
  one, each once, but for times and worker.
- run, image: each attempt has a folder of its own, which must be readable whatever the moment: reported on, listed and
  replayed.

Every attempt is a process of its own that is ended by SIGKILL; a server that has loaded the libraries forks it. The
moments of an evaluation are counted in records, not in seconds, so a busy machine changes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

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
# An attempt that takes so many times as long as the uninterrupted one, and a minute, hangs.
PATIENCE = 20


class FailsError(Exception):
    """A command doesn't come to its end, or to another one than it should."""


# The server


def serve() -> None:
    """Fork a `textleak` for each line of stdin, a JSON list; its number and then its status are answered."""
    import transformers.models.bert.modeling_bert  # noqa: F401

    import textleak.evaluation.drive
    import textleak.jobs.images
    import textleak.jobs.text
    import textleak.models.loading.text  # noqa: F401
    from textleak.cli import main

    answer = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        said, *arguments = json.loads(line)
        number = os.fork()
        if number == 0:
            target = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(target, 1)
            os.dup2(target, 2)
            sys.argv = ["textleak", *arguments]
            main()  # exits
        answer.write(f"{number}\n")
        answer.flush()
        answer.write(f"{os.waitpid(number, 0)[1]}\n")
        answer.flush()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
    """Starts commands, one at a time.

    Attributes:
        orders: where a command line is written to.
        answers: what it says of it.
        said: the file of what a command prints.
    """

    orders: IO[bytes]
    answers: IO[bytes]
    said: Path

    def start(self, arguments: Sequence[str]) -> int:
        """Begin a command; its process."""
        self.said.unlink(missing_ok=True)
        self.orders.write(json.dumps([str(self.said), *arguments]).encode() + b"\n")
        self.orders.flush()
        return int(self.answers.readline())

    def ended(self, seconds: float) -> bool:
        """Whether it comes to its end in so many seconds.

        Raises:
            FailsError: it ends by itself, and not well.
        """
        if not select.select([self.answers], [], [], max(0.0, seconds))[0]:
            return False
        if status := int(self.answers.readline()):
            raise FailsError(f"it ended with status {status}: {self.words()[-500:]}")
        return True

    def kill(self, process: int) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        self.answers.readline()

    def whole(self, arguments: Sequence[str], seconds: float) -> None:
        """Run a command to its end.

        Raises:
            FailsError: that takes longer.
        """
        process = self.start(arguments)
        if not self.ended(seconds):
            self.kill(process)
            raise FailsError(f"{arguments[0]} had no end after {seconds:.0f} s: {self.words()[-500:]}")

    def words(self) -> str:
        """What the command has printed."""
        return self.said.read_text("utf-8", "replace") if self.said.exists() else ""


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A server of its own process, gone afterwards."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.kills", "--serve"]
    # A process with threads can't be forked without risk.
    quiet = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=quiet
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Server(orders=process.stdin, answers=process.stdout, said=folder / "said")
        finally:
            process.stdin.close()
            process.wait()


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
    with server(folder) as forks:
        seconds = _timed(forks, ["eval", *grid, "--out", str(whole)])
        expected = list(read(whole).records)
        # Records that are there before each kill; there is always one to come.
        moments = sorted(rng.uniform(0, max(1, len(expected) - 1)) for _ in range(kills))
        done = 0
        for moment in moments:
            process = forks.start(command)
            if not _until(forks, killed, int(moment), seconds):
                break
            # In the middle of a batch, or of the loading of the model where there is no new record.
            if forks.ended(moment % 1 * seconds / len(expected)):
                break
            forks.kill(process)
            done += 1
            say(f"kill {done}: {_count(killed)} of {len(expected)} records")
        forks.whole(command, PATIENCE * seconds + 60)
    hidden = sum(path.name.startswith(".") for path in killed.iterdir())
    return Outcome(
        kills=done, records=list(read(killed).records), expected=expected, lines=_count(killed), hidden=hidden
    )


def _timed(forks: Server, command: Sequence[str]) -> float:
    """The seconds of a command that is not killed."""
    began = time.monotonic()
    forks.whole(command, 3600)
    return time.monotonic() - began


def _count(folder: Path) -> int:
    """Lines of records."""
    path = folder / "records.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _until(forks: Server, folder: Path, records: int, seconds: float) -> bool:
    """Wait until the evaluation has begun to work and there are so many records; False where it is through before.

    Raises:
        FailsError: there is no new one for far longer than the uninterrupted evaluation took.
    """
    there, since = _count(folder), time.monotonic()
    while "records in" not in forks.words() or there < records:
        if forks.ended(0.005):
            return False
        if (now := _count(folder)) > there:
            there, since = now, time.monotonic()
        elif time.monotonic() - since > PATIENCE * seconds + 60:
            raise FailsError(f"no new record after {there}: {forks.words()[-500:]}")
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
    with server(folder) as forks:
        seconds = _timed(forks, [command, *flags, "--out", str(folder / "whole")])
        for attempt in range(3 * kills):
            out = folder / f"{command}-{attempt}"
            process, began = forks.start([command, *flags, "--out", str(out)]), time.monotonic()
            if forks.ended(rng.uniform(0, seconds)):  # through before its kill
                seconds = min(seconds, time.monotonic() - began)
                continue
            forks.kill(process)
            left.kills += 1
            kind = what_is_left(out, left.problems)
            left.kinds[kind] += 1
            say(f"kill {left.kills}: {kind}")
            if left.kills == kills:
                break
    return left


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
    # There are no reports of pictures, and a run that was killed before its answer has nothing to compare: that is said.
    of_pictures = folder.name.startswith("image")
    for arguments, codes in (
        (["report", str(folder)], {0, 2} if of_pictures else {0}),
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
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    if unknown := sorted({*options.what} - {*KILLS}):
        parser.error(f"unknown: {', '.join(unknown)}")
    wrong = 0
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
