"""What `run`, `image` and `audit` do alike: prepare, drive the attack with view and records, say what came of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import typer

from textleak.cli import common
from textleak.errors import InputError, TextleakError
from textleak.words import count_of

if TYPE_CHECKING:
    from textleak.events import Event
    from textleak.jobs.base import Job
    from textleak.runs import RunFolder

AnyJob = TypeVar("AnyJob", bound="Job")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Done(Generic[AnyJob]):
    """A run that came to an end.

    Attributes:
        job: what ran.
        folder: its run folder.
        result: as it was written there.
        problem: why not all of it could be written; None where it could.
    """

    job: AnyJob
    folder: Path
    result: dict[str, Any]
    problem: TextleakError | None = None


def carry_out(
    prepare: Callable[[], AnyJob], out: Path | None, viewers: Sequence[Callable[[Event], None]] = ()
) -> Done[AnyJob]:
    """Prepare a run and drive it to its end, shown on stderr and recorded in its folder.

    Args:
        prepare: loads and checks everything, and says what the run works on.
        out: the run folder; None for a new one.
        viewers: of its events, besides the display.

    Raises:
        TextleakError: it can't be run, or failed.
        typer.Exit: a bug ended it, and has been reported.
    """
    from textleak.runs import RunFolder, check_out

    check_out(out)
    job = prepare()
    folder = RunFolder.create(out, name=job.name)
    result, problem = _drive(job, folder, viewers)
    return Done(job=job, folder=folder.path, result=result, problem=problem)


def _drive(
    job: Job, folder: RunFolder, viewers: Sequence[Callable[[Event], None]]
) -> tuple[dict[str, Any], TextleakError | None]:
    """Run the attack with its view, its records and other viewers; the result, and why it could not be written."""
    from textleak.errors import TextleakError
    from textleak.jobs.base import drive
    from textleak.runs import Recorder
    from textleak.view import LiveDisplay, PlainDisplay, display_on

    redact = job.config.redact
    try:
        if job.config.save_gradients:
            job.shared.save(folder.gradients_path)
        with (
            display_on(common.stderr(), LiveDisplay, PlainDisplay) as display,
            Recorder(folder, job.settings, redact=redact, viewers=[display.show, *viewers]) as recorder,
        ):
            try:
                return drive(job, recorder), recorder.problem()
            except InputError:
                raise
            except TextleakError as error:
                recorder.fail(error)
                raise
            except Exception as error:
                bug = error
                recorder.fail(error)
    except InputError:
        # The attack itself says that this can't be attacked: nothing half-written is left.
        folder.discard()
        raise
    common.report_bug(bug, folder.traceback_path, redact=redact)
    raise typer.Exit(1)


def say_run(job: Job, kind: str, size: str) -> None:
    """On stderr, what a run works on.

    Args:
        job: the run.
        kind: of model, in words.
        size: of the batch, in words.
    """
    from rich.text import Text

    facts = job.settings
    words = (
        f"{facts['model']} ({kind}) on {facts['device']}, {facts['dtype']}, {count_of(job.threads, 'thread')}; "
        f"{size}; loaded in {job.seconds_to_load:.1f} s"
    )
    common.stderr().print(Text(words, style="bright_black"), soft_wrap=True)


def say_warnings(job: Job) -> None:
    """On stderr, what a person should know before the run."""
    from rich.text import Text

    for words in job.warnings():
        common.stderr().print(Text(words, style="yellow"), soft_wrap=True)


def answer(done: Done[AnyJob], *, as_json: bool) -> None:
    """The result on stdout.

    Raises:
        typer.Exit: the run was interrupted.
        TextleakError: its records could not be written.
    """
    if as_json:
        common.print_json(done.result)
    else:
        from textleak.view.audit import audit_summary
        from textleak.view.summary import summary

        shown = audit_summary if "verdict" in done.result else summary
        common.stdout().print(shown(done.result))
    if done.problem is not None:
        raise done.problem
    if done.result["outcome"] == "interrupted":
        raise typer.Exit(common.INTERRUPTED)


def above(result: dict[str, Any], limit: float) -> bool:
    """Whether more leaked than `--fail-above` allows, said on stderr; and where more may leak than was counted."""
    from textleak.events import EARLY

    rate, recall = result["token_match_rate"], result["token_recall"]
    console = common.stderr()
    if rate is None and result["verified"]:
        console.print(
            f"All of the text was recovered (verified), which is above --fail-above {limit}.",
            style="bold red",
        )
        return True
    if rate is None:
        console.print(
            "--fail-above can't be judged: without the truth there is no token match rate (give --truth).",
            style="yellow",
            soft_wrap=True,
        )
        return False
    if rate > limit:
        console.print(f"The token match rate {rate:.3f} is above --fail-above {limit}.", style="bold red")
        return True
    if recall is not None and recall > limit:
        console.print(
            f"The token match rate {rate:.3f} isn't above --fail-above {limit}, but {100 * recall:.0f} % of the tokens "
            "came back, in other places.",
            style="yellow",
            soft_wrap=True,
        )
    if result["stop"] in EARLY:
        console.print(
            f"--fail-above {limit} holds for what came back until the attack was cut off; more time may find more "
            "(--time-limit).",
            style="yellow",
            soft_wrap=True,
        )
    return False
