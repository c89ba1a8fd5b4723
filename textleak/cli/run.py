"""`textleak run`: recover the text behind one shared gradient, live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textleak.cli import common

if TYPE_CHECKING:
    from textleak.events import Event
    from textleak.jobs.images import ImageJob
    from textleak.jobs.text import Job
    from textleak.runs import RunFolder
    from textleak.settings import RunConfig
    from textleak.view import Display


@common.guarded
def command(
    model: common.Model = None,
    weights: common.Weights = None,
    sentence: common.Sentences = None,
    file: common.File = None,
    label: common.Labels = None,
    task: common.Task = None,
    attack: Annotated[
        str | None,
        typer.Option(
            "--attack",
            "-a",
            metavar="TEXT",
            help="match | auto | dlg | idlg | tag | cosine | lamp | embedding | span, or one that a package adds; "
            "`textleak attacks` lists them.",
            show_default="match",
        ),
    ] = None,
    prior: Annotated[
        str | None,
        typer.Option(
            "--prior",
            metavar="TEXT",
            help="Causal language model that judges texts for the attack (lamp): as --model, with pretrained weights.",
            show_default="none",
        ),
    ] = None,
    gradients: Annotated[
        Path | None,
        typer.Option(
            "--gradients", metavar="FILE", help="Attack a gradient in a file instead of --sentence."
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth", metavar="FILE", help="Score it against this file; without it scores are null."
        ),
    ] = None,
    share: common.Share = None,
    defense: common.Defenses = None,
    know: common.Know = None,
    restarts: common.Restarts = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="INT", help="Optimizer steps.", show_default="the attack's"),
    ] = None,
    seed: common.Seed = None,
    device: common.Device = None,
    threads: common.Threads = None,
    config: common.Config = None,
    assignments: common.Assignments = None,
    out: common.Out = None,
    json_: common.Json = False,
    save_gradients: common.SaveGradients = False,
    redact: Annotated[
        bool, typer.Option("--redact", help="No text in any record, nor on the screen.")
    ] = False,
    fail_above: Annotated[
        float | None,
        typer.Option(
            "--fail-above", metavar="FLOAT", help="Exit 3 when the token match rate is above it (for CI)."
        ),
    ] = None,
) -> None:
    """Recover the text behind one shared gradient, live."""
    from textleak.settings import load_run_config

    settings = load_run_config(
        config,
        common.given(
            model=model,
            weights=weights,
            sentences=sentence,
            file=file,
            labels=label,
            task=task,
            attack=attack,
            prior=prior,
            gradients=gradients,
            truth=truth,
            share=share,
            defenses=defense,
            know=know,
            restarts=restarts,
            steps=steps,
            seed=seed,
            device=device,
            threads=threads,
            out=out,
            save_gradients=save_gradients or None,
            redact=redact or None,
            fail_above=fail_above,
        ),
        assignments or (),
    )
    code = _run(settings, as_json=json_)
    if code:
        raise typer.Exit(code)


def _run(settings: RunConfig, *, as_json: bool) -> int:
    """Prepare, drive and report one run; the exit code."""
    from textleak.runs import RunFolder, check_out

    check_out(settings.out)
    job = _prepare(settings)
    folder = RunFolder.create(settings.out, name=job.name)
    try:
        result = drive(job, folder)
    except FailedError as failure:
        return failure.code
    if as_json:
        common.print_json(result)
    else:
        from textleak.view import summary

        common.stdout().print(summary(result))
    return _exit_code(result, settings.fail_above)


def _prepare(settings: RunConfig) -> Job:
    """Load and check everything, and say what the run works on."""
    from textleak.jobs.text import prepare

    console = common.stderr()
    if settings.redact and settings.save_gradients:
        console.print(
            "Note: --save-gradients keeps the very gradient that the text was recovered from; "
            "--redact takes text out of records, not what a gradient gives away.",
            style="yellow",
            soft_wrap=True,
        )
    with console.status("loading the model and computing the gradient…"):
        job = prepare(settings)
    common.say_weights(job.model.weights, job.model.source, job.model.name)
    facts = job.settings()
    batch = f"{facts['batch_size']} in the batch" if facts["batch_size"] else "batch size not known"
    size = (
        f"n = {facts['tokens']}, n/D = {facts['tokens_per_hidden']:.2g}" if facts["tokens"] else "n not known"
    )
    say_run(job, f"{facts['task']}, {facts['weights']} weights", f"{batch}, {size}")
    return job


def say_run(job: Job | ImageJob, kind: str, size: str) -> None:
    """On stderr, what a run works on.

    Args:
        job: the run.
        kind: of model, in words.
        size: of the batch, in words.
    """
    from rich.text import Text

    facts = job.settings()
    threads = f"{job.threads} thread{'s' if job.threads != 1 else ''}"
    words = (
        f"{facts['model']} ({kind}) on {facts['device']}, {facts['dtype']}, {threads}; {size}; "
        f"loaded in {job.seconds_to_load:.1f} s"
    )
    common.stderr().print(Text(words, style="bright_black"), soft_wrap=True)


class FailedError(Exception):
    """The run ended without a result, and has said so."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def drive(
    job: Job | ImageJob, folder: RunFolder, viewers: Sequence[Callable[[Event], None]] = ()
) -> dict[str, Any]:
    """Run the attack with its view, its records and other viewers; the result as it was written."""
    from textleak.errors import InputError, TextleakError
    from textleak.jobs.text import carry_out
    from textleak.runs import Recorder

    redact = job.config.redact
    if job.config.save_gradients:
        job.shared.save(folder.gradients_path)
    try:
        with (
            _display() as display,
            Recorder(folder, job.settings(), redact=redact, viewers=[display.show, *viewers]) as recorder,
        ):
            try:
                return carry_out(job, recorder)
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
    raise FailedError(1)


def _display() -> Display:
    """The picture on a terminal, lines elsewhere."""
    from textleak.view import LiveDisplay, PlainDisplay

    console = common.stderr()
    return (
        LiveDisplay(console)
        if console.is_terminal and not console.is_dumb_terminal
        else PlainDisplay(console)
    )


def _exit_code(result: dict[str, Any], fail_above: float | None) -> int:
    if result["outcome"] == "interrupted":
        return common.INTERRUPTED
    if fail_above is None:
        return 0
    rate = result["token_match_rate"]
    console = common.stderr()
    if rate is None and result["verified"]:
        console.print(
            f"All of the text was recovered (verified), which is above --fail-above {fail_above}.",
            style="bold red",
        )
        return common.ABOVE
    if rate is None:
        console.print(
            "--fail-above can't be judged: without the truth there is no token match rate (give --truth).",
            style="yellow",
            soft_wrap=True,
        )
        return 0
    if rate > fail_above:
        console.print(
            f"The token match rate {rate:.3f} is above --fail-above {fail_above}.", style="bold red"
        )
        return common.ABOVE
    return 0
