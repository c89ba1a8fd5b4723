"""One hostile case tried on the program itself, in this process, and what is held against it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from typer.testing import CliRunner

from textleak.cli import app
from textleak.words import printable

SECONDS = 10  # that a case may compute
WAITING = 60  # by the clock, for what waits; other work on the same cores may take most of it
MIB_MORE = 1024  # that a case may need beyond what the process has before the first
LETTERS = 80 * 24  # of an error: a screen


class _Hangs(BaseException):
    """It takes too long; not an Exception, so that nobody takes it for a failed run."""


@dataclasses.dataclass(kw_only=True)
class Tally:
    """How many were tried, and what was bad.

    Attributes:
        tried: cases.
        kinds: of bad ends, how many each.
        told: the first few of each kind: the case and what came of it.
        codes: exit codes, how many each.
    """

    tried: int = 0
    kinds: Counter[str] = dataclasses.field(default_factory=Counter)
    told: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    codes: Counter[int] = dataclasses.field(default_factory=Counter)

    def bad(self, kind: str, case: str, words: str) -> None:
        """Note a bad end."""
        self.kinds[kind] += 1
        there = self.told.setdefault(kind, [])
        if len(there) < 4:
            there.append(f"{case}\n{words}")

    def words(self, name: str) -> str:
        """In a line, and a paragraph for each bad kind."""
        codes = ", ".join(f"{count} of exit code {code}" for code, count in sorted(self.codes.items()))
        lines = [f"{name}: {self.tried} tried ({codes}), {sum(self.kinds.values())} bad"]
        for kind, count in self.kinds.items():
            lines += [f"  {kind}: {count}", *(f"    {one}" for one in self.told[kind])]
        return "\n".join(lines)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def hangs(_: int, frame: FrameType | None) -> None:
        raise _Hangs("".join(traceback.format_stack(frame, 12)))

    before = {kind: signal.signal(kind, hangs) for kind in (signal.SIGALRM, signal.SIGPROF)}
    signal.alarm(WAITING)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for kind, handler in before.items():
            signal.signal(kind, handler)


def peak_mib() -> float:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1024 if sys.platform != "darwin" else 1 << 20
    )


def whole(arguments: Sequence[str]) -> None:
    """Run a command that has nothing wrong in it."""
    outcome = CliRunner().invoke(app, list(arguments))
    assert outcome.exit_code == 0, (outcome.stderr, outcome.exception)


def command(
    arguments: Sequence[str], case: str, tally: Tally, *, codes: frozenset[int] = frozenset({0, 2})
) -> None:
    """Run a command and note what is bad about its end."""
    before = peak_mib()
    tally.tried += 1
    try:
        with _limited():
            outcome = CliRunner().invoke(app, list(arguments))
    except _Hangs as hung:
        tally.bad("hangs", case, str(hung))
        return
    tally.codes[outcome.exit_code] += 1
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        kind = "hangs" if isinstance(outcome.exception, _Hangs) else "exception"
        words = "".join(traceback.format_exception(outcome.exception)[-4:])
        tally.bad(kind, case, words)
        return
    errors = outcome.stderr
    if outcome.exit_code not in codes:
        tally.bad(f"exit code {outcome.exit_code}", case, f"{errors[-400:]}{_traceback(errors)}")
    elif "Traceback" in errors:
        tally.bad("traceback", case, errors[-900:])
    # Notes on the way come before the error.
    last = errors[errors.rfind("Error: ") :]
    if outcome.exit_code == 2 and len(last) > LETTERS:
        tally.bad("an error longer than a screen", case, f"{len(last):,} letters: {last[:300]}")
    for name, text in (("stdout", outcome.stdout), ("stderr", errors)):
        if printable(text, kept="\n") != text:
            tally.bad(f"escapes on {name}", case, repr(text[:300]))
    more = peak_mib() - before
    if more > MIB_MORE:
        tally.bad("memory", case, f"{more:,.0f} MiB more")


def _traceback(errors: str) -> str:
    """What the file says that the error names; it is taken away."""
    for word in errors.split():
        path = Path(word.rstrip("."))
        if "traceback" in path.name and path.exists():
            text = path.read_text("utf-8", "replace")
            path.unlink()
            return f"\n{text[-900:]}"
    return ""


def call(
    function: Callable[[], object], expected: tuple[type[Exception], ...], case: str, tally: Tally
) -> None:
    """Call what the app calls, and note what is bad about its end."""
    began, before = time.process_time(), peak_mib()
    tally.tried += 1
    try:
        with _limited(), contextlib.redirect_stdout(io.StringIO()):
            function()
    except _Hangs as hung:
        tally.bad("hangs", case, str(hung))
    except expected:
        tally.codes[2] += 1
    except Exception as error:
        tally.bad("exception", case, "".join(traceback.format_exception(error)[-4:]))
    else:
        tally.codes[0] += 1
    if time.process_time() - began > SECONDS + 1:
        tally.bad("hangs", case, "it could not be interrupted")
    if peak_mib() - before > MIB_MORE:
        tally.bad("memory", case, f"{peak_mib() - before:,.0f} MiB more")
