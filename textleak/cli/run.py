"""`textleak run`: recover the text behind one shared gradient, live."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textleak.cli import common, drive, flags

if TYPE_CHECKING:
    from textleak.jobs.text import TextJob
    from textleak.settings import RunConfig


@common.guarded
def command(
    model: flags.Model = None,
    weights: flags.Weights = None,
    sentence: flags.Sentences = None,
    file: flags.File = None,
    label: flags.Labels = None,
    task: flags.Task = None,
    attack: Annotated[
        str | None,
        typer.Option(
            "--attack",
            "-a",
            metavar="TEXT",
            help="auto | match | dlg | idlg | tag | cosine | lamp | grab | embedding | span | replay, or one of a "
            "package's; `textleak attacks` lists them.",
            show_default="auto",
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
    gradients: flags.Gradients = None,
    truth: flags.TruthFile = None,
    layers: flags.Layers = None,
    share: flags.Share = None,
    client: flags.Clients = None,
    defense: flags.Defenses = None,
    know: flags.Know = None,
    restarts: flags.Restarts = None,
    steps: Annotated[
        int | None,
        typer.Option("--steps", metavar="INT", help="Optimizer steps.", show_default="the attack's"),
    ] = None,
    time_limit: flags.TimeLimit = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    threads: flags.Threads = None,
    config: flags.Config = None,
    assignments: flags.Assignments = None,
    out: flags.Out = None,
    json_: flags.Json = False,
    save_gradients: flags.SaveGradients = False,
    redact: flags.Redact = False,
    fail_above: flags.FailAbove = None,
    film: Annotated[
        Path | None,
        typer.Option("--film", metavar="FILE", help="Draw the run as a moving SVG, for a README."),
    ] = None,
) -> None:
    """Recover the text behind one shared gradient, live."""
    said = common.settings_given(locals())
    if config is None and gradients is None:
        common.starting(model, default="bert-tiny")

    from textleak.settings import load_run_config

    settings = load_run_config(config, said, assignments or ())
    if film is not None:
        common.check_target(film, "--film")
    done = drive.carry_out(lambda: _prepare(settings), settings.out)
    if film is not None:
        _draw(film, done.folder)
    drive.answer(done, as_json=json_)
    if settings.fail_above is not None and drive.above(done.result, settings.fail_above):
        raise typer.Exit(common.ABOVE)


def _draw(film: Path, run: Path) -> None:
    """Draw a run's folder as a moving picture."""
    from textleak import owned
    from textleak.errors import unwritten
    from textleak.runs import read_run
    from textleak.view import moving

    drawn = moving.film(((timed.t, timed.event) for timed in read_run(run).events()), title="textleak run")
    with unwritten(f"--film {film} can't be written.", fix="Name another file; the run itself is kept."):
        owned.write(film, drawn.encode("utf-8", "replace"))


def _prepare(settings: RunConfig) -> TextJob:
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
    with common.loading():
        job = prepare(settings)
    common.say_weights(job.model.weights, job.model.source, job.model.name)
    facts = job.settings
    batch = f"{facts['batch_size']} in the batch" if facts["batch_size"] else "batch size not known"
    size = (
        f"n = {facts['tokens']}, n/D = {facts['tokens_per_hidden']:.2g}" if facts["tokens"] else "n not known"
    )
    drive.say_run(job, f"{facts['task']}, {facts['weights']} weights", f"{batch}, {size}")
    return job
