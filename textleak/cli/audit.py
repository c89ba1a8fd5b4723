"""`textleak audit`: what a real training's update tells, and what an attack makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textleak.cli import common, drive, flags

if TYPE_CHECKING:
    from textleak.jobs.audit import AuditJob
    from textleak.settings.audit import AuditConfig


@common.guarded
def command(
    update: Annotated[
        Path | None,
        typer.Argument(
            metavar="[UPDATE]",
            help="A gradient file, or a state dict of gradients or of differences (.safetensors, .pt, .bin, .npz).",
            show_default=False,
        ),
    ] = None,
    before: Annotated[
        str | None,
        typer.Option(
            "--before",
            metavar="A",
            help="Or two checkpoints: the weights before (folder, file, PEFT adapter folder, alias, hub id),",
        ),
    ] = None,
    after: Annotated[
        Path | None,
        typer.Option("--after", metavar="B", help="and those after (folder, file, adapter folder)."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="TEXT",
            help="Alias, hub id or folder of the model, for adapters of the base model.",
            show_default="from the file, or A",
        ),
    ] = None,
    task: flags.Task = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer", metavar="TEXT", help="Alias, hub id or folder.", show_default="the model's"
        ),
    ] = None,
    client: Annotated[
        list[str] | None,
        typer.Option(
            "--client",
            metavar="SPEC",
            help="How the client trains: name[:key=value,...] or a preset; repeat it, kinds are composed in order.",
            show_default="from the file, else what the update tells",
        ),
    ] = None,
    share: Annotated[
        str | None,
        typer.Option(
            "--share",
            metavar="TEXT",
            help="Audit no more than this of it: no-embeddings | attention | an expression on parameter names.",
            show_default="all that is there",
        ),
    ] = None,
    know: Annotated[
        str | None,
        typer.Option(
            "--know",
            metavar="TEXT",
            help="What the server knows besides: batch-size=2,lengths=12/9,labels=0/1; names alone with --truth or for "
            "a gradient file.",
            show_default="what the file says",
        ),
    ] = None,
    truth: flags.TruthFile = None,
    layers: flags.Layers = None,
    attack: Annotated[
        str | None,
        typer.Option(
            "--attack",
            "-a",
            metavar="TEXT",
            help="Name of an attack (`textleak attacks` lists them).",
            show_default="auto",
        ),
    ] = None,
    time_limit: Annotated[str | None, flags.time_limit("10m")] = None,
    out: flags.Out = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write a page of it: .html or .md.")
    ] = None,
    json_: flags.Json = False,
    fail_above: flags.FailAbove = None,
    threads: flags.Threads = None,
    device: flags.Device = None,
    redact: flags.Redact = False,
) -> None:
    """Audit your own training: what an update of it tells and gives away.

    UPDATE is a file that a client shared or that you saved; or give two checkpoints, before and after.
    """
    said = common.settings_given({name: value for name, value in locals().items() if name != "update"})

    from textleak import owned
    from textleak.errors import unwritten
    from textleak.settings.audit import load_audit_config

    settings = load_audit_config({**said, **common.given(gradients=update)})
    if settings.report is not None:  # better now than when all is computed
        with unwritten(f"{settings.report} can't be written.", fix="Choose another --report."):
            owned.check(settings.report)
    done = drive.carry_out(lambda: _prepare(settings), settings.out)
    if settings.report is not None:
        _write_report(done.folder, settings.report, redact=settings.redact)
    drive.answer(done, as_json=json_)
    if settings.fail_above is not None and drive.above(done.result, settings.fail_above):
        raise typer.Exit(common.ABOVE)


def _prepare(settings: AuditConfig) -> AuditJob:
    """Load and check everything, and say what is audited."""
    from textleak.jobs.audit import prepare

    with common.stderr().status("loading the model and the update…"):
        job = prepare(settings)
    common.say_weights(job.model.weights, job.model.source, job.model.name)
    drive.say_run(
        job, f"{job.model.task}, {job.model.weights} weights", _sizes(job.settings, len(job.shared.gradients))
    )
    drive.say_warnings(job)
    return job


def _sizes(facts: Any, parameters: int) -> str:  # noqa: ANN401 - a run's settings
    from textleak.words import count_of

    batch = f"{facts['batch_size']} in the batch" if facts["batch_size"] else "batch size not known"
    client = " + ".join(facts["client"]) or "one-step"
    return f"{count_of(parameters, 'parameter')} of {client}; {batch}"


def _write_report(folder: Path, path: Path, *, redact: bool) -> None:
    from textleak.cli.report import write_page
    from textleak.reports.analysis import analyze
    from textleak.reports.reading import read

    write_page(analyze(read(folder)), path, redact=redact)
