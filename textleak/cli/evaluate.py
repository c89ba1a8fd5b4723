"""`textleak eval`: data sets × models × attacks × shares × defenses × seeds, as records that survive a kill."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textleak.cli import common, flags
from textleak.errors import InputError
from textleak.words import count_of, seconds_in_words

if TYPE_CHECKING:
    from textleak.evaluation.answers import Records
    from textleak.evaluation.drive import Evaluation
    from textleak.evaluation.engines import Engine
    from textleak.evaluation.records import Record
    from textleak.settings import EvaluationConfig

_GRID = "repeat it, or separate with commas"


def _several(flag: str, text: str, default: str, short: str | None = None) -> typer.models.OptionInfo:
    """A repeatable flag that spans the grid."""
    names = (flag, short) if short else (flag,)
    info: typer.models.OptionInfo = typer.Option(*names, metavar="TEXT", help=text, show_default=default)
    return info


@common.guarded
def command(
    data: Annotated[
        list[str] | None,
        _several(
            "--data",
            "sample | cola | sst2 | rotten_tomatoes, or a .txt, .csv, .tsv or .jsonl file; repeatable.",
            "sample",
        ),
    ] = None,
    column: Annotated[
        str | None,
        typer.Option(
            "--column", metavar="TEXT", help="Column of the sentences.", show_default="sentence or text"
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            "--label-column",
            metavar="TEXT",
            help="Column of their classes; without one they are drawn from the seed.",
            show_default="label",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", metavar="INT", help="Sentences of each data set.", show_default="20"),
    ] = None,
    max_words: Annotated[
        int | None, typer.Option("--max-words", metavar="INT", help="Leave longer sentences out.")
    ] = None,
    batch_size: Annotated[
        list[str] | None, _several("--batch-size", f"Sentences in a batch, B; {_GRID}.", "1", "-b")
    ] = None,
    model: Annotated[
        list[str] | None,
        _several("--model", f"Alias, hub id, folder or .gguf file; {_GRID}.", "bert-tiny", "-m"),
    ] = None,
    weights: flags.Weights = None,
    task: flags.Task = None,
    attack: Annotated[
        list[str] | None,
        _several(
            "--attack",
            "name[:key=value,...], repeatable; limit=N among its options gives a slow one fewer sentences.",
            "auto",
            "-a",
        ),
    ] = None,
    share: Annotated[
        list[str] | None,
        _several(
            "--share",
            "all, no-embeddings, attention, or a regular expression on parameter names; repeatable.",
            "all",
        ),
    ] = None,
    client: Annotated[
        list[str] | None,
        _several(
            "--client",
            "How one cell's client trains, repeatable: name[:key=value,...], several composed as a+b, or one-step.",
            "one-step",
        ),
    ] = None,
    defense: Annotated[
        list[str] | None,
        _several(
            "--defense",
            "One cell's defense, repeatable: name[:key=value,...], several in order as a+b, or none.",
            "none",
        ),
    ] = None,
    know: Annotated[
        list[str] | None,
        _several(
            "--know",
            "What the server is told: lengths, labels, batch-size (with commas), nothing, no-defense, no-client, or "
            "default; repeatable.",
            "default",
        ),
    ] = None,
    seed: Annotated[list[str] | None, _several("--seed", f"{_GRID.capitalize()}.", "0")] = None,
    time_limit: Annotated[str | None, flags.time_limit("none", of="For each batch, ")] = None,
    device: flags.Device = None,
    threads: flags.Threads = None,
    config: flags.Config = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting; repeat it. Wins over everything."),
    ] = None,
    engine: Annotated[str, typer.Option("--engine", metavar="TEXT", help="local | ray")] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="INT",
            min=1,
            help="Processes, one GPU each where there are several; with ray, batches at once.",
            show_default="1; with ray, all the cluster has",
        ),
    ] = None,
    together: Annotated[
        int,
        typer.Option(
            "--together",
            metavar="INT",
            min=1,
            help="Batches whose lamp, tag, dlg or idlg take their steps in common: faster, and each in memory.",
        ),
    ] = 1,
    address: Annotated[
        str | None, typer.Option("--address", metavar="TEXT", help="Address of the Ray cluster to join.")
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Retry failed batches.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the records; the same command goes on in it.",
            show_default="one for these settings, under $TEXTLEAK_RUNS",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the grid, its size and about how long it takes.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Allow grids above 100,000 batches.")] = False,
    json_: flags.Json = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write a row a batch to a CSV file.")
    ] = None,
) -> None:
    """Measure what leaks over a data set, as a table; run the same command again to resume."""
    given = locals()
    from textleak.settings import EvaluationConfig, load_evaluation_config

    said = common.given(
        **{name: value for name, value in given.items() if name in EvaluationConfig.model_fields}
    )
    settings = load_evaluation_config(config, said, assignments or ())
    name = Path(config).stem if config else Path(settings.data[0]).stem
    here = engine == "local"
    if dry_run:
        _dry_run(settings, name, workers=workers or 1, here=here, as_json=json_)
        return
    from textleak.evaluation import drive, engines

    chosen = engines.choose(engine, workers=workers, address=address, program=True, together=together)
    if together > 1 and settings.time_limit is not None:
        raise InputError(
            "--together and --time-limit don't go together.",
            why="A batch would spend its time waiting for others.",
            fix="Leave one out.",
        )
    if csv is not None:
        common.check_target(csv, "--csv")
    evaluation = drive.begin(settings, name=name, many=yes, here=here)
    _say_before(evaluation)
    outcome = _drive(evaluation, chosen, retry_failed=retry_failed)
    _answer(evaluation, outcome, csv=csv, as_json=json_)
    if outcome == "interrupted":
        raise typer.Exit(common.INTERRUPTED)
    if evaluation.records().failed:
        raise typer.Exit(1)


def _say_before(evaluation: Evaluation) -> None:
    """On stderr: where the records go, how many there are, and what was left out of the data."""
    from rich.text import Text

    console = common.stderr()
    _say_notes(evaluation.plan.notes())
    assert evaluation.store is not None
    there, batches = len(evaluation.records()), evaluation.plan.batches()
    words = count_of(batches, "batch") + (f", {there:,} of them there already" if there else "")
    console.print(Text(f"{words}; records in {evaluation.store.folder.path}"), soft_wrap=True)
    _say_notes(evaluation.store.other_versions())


def _say_notes(notes: Iterable[str]) -> None:
    from rich.text import Text

    console = common.stderr()
    for note in notes:
        console.print(Text(f"Note: {note}"), style="yellow", soft_wrap=True)


def _drive(evaluation: Evaluation, engine: Engine, *, retry_failed: bool) -> str:
    """Compute what is left, watched; "done" or "interrupted"."""
    from functools import partial

    from textleak.evaluation.engines import Local
    from textleak.evaluation.table import LiveTable, PlainLines
    from textleak.view import display_on

    loud: set[str] = set()
    console = common.stderr()
    together = engine.together if isinstance(engine, Local) else 1
    live, plain = (partial(kind, evaluation, together=together) for kind in (LiveTable, PlainLines))
    try:
        with display_on(console, live, plain) as display:
            assert isinstance(display, LiveTable | PlainLines)
            if isinstance(engine, Local):
                engine = dataclasses.replace(engine, watch=display.watch)
            for record in evaluation.run(engine, retry_failed=retry_failed):
                display.show(record)
                if record.weights == "random" and record.cell.model not in loud:
                    loud.add(record.cell.model)
                    common.say_weights(
                        "random",
                        "no pretrained ones are at hand or asked for",
                        record.cell.model,
                        console=console,  # the live table's own: on another one it would be drawn over
                    )
    except KeyboardInterrupt:
        common.stderr().print(
            "Interrupted; all records are kept, the same command goes on.", style="yellow", soft_wrap=True
        )
        return "interrupted"
    return "done"


def _answer(evaluation: Evaluation, outcome: str, *, csv: Path | None, as_json: bool) -> None:
    """The table on stdout, as JSON if wanted, and the CSV file."""
    from textleak.evaluation import table

    records = evaluation.records()
    assert evaluation.store is not None
    if as_json:
        _print_json(evaluation, outcome)
    else:
        common.stdout().print(table.render(evaluation))
        _say_failures(records)
        common.stderr().print(
            f"`textleak report {shlex.quote(str(evaluation.store.folder.path))}` makes a page of it.",
            soft_wrap=True,
            markup=False,
        )
    if csv is not None:
        csv.parent.mkdir(parents=True, exist_ok=True)
        records.to_csv(csv)


def _print_json(evaluation: Evaluation, outcome: str) -> None:
    """The answer as the one document on stdout."""
    from textleak.evaluation import table
    from textleak.jobs.base import SCHEMA_VERSION

    records = evaluation.records()
    assert evaluation.store is not None
    common.print_json(
        {
            "schema_version": SCHEMA_VERSION,
            "identity": evaluation.plan.identity,
            "outcome": outcome,
            "out": str(evaluation.store.folder.path),
            "settings": evaluation.plan.settings(),
            "batches": evaluation.plan.batches(),
            "done": len(records.done),
            "failed": len(records.failed),
            "errors": sorted({record.error for record in records.failed}),
            "cells": [row.to_json() for row in table.rows(evaluation)],
        }
    )


def _say_failures(records: Records) -> None:
    """On stderr: each error once, with where it happened, and how to try again."""
    by_error: dict[str, list[Record]] = {}
    for record in sorted(records.failed, key=lambda one: (one.error, one.cell.data, one.batch)):
        by_error.setdefault(record.error, []).append(record)
    console = common.stderr()
    for error, failed in by_error.items():
        where = f"batch {failed[0].batch} of {failed[0].cell.data}"
        more = f" and {len(failed) - 1:,} more" if len(failed) > 1 else ""
        console.print(f"Failed ({where}{more}): {error}", style="red", soft_wrap=True, markup=False)
    if by_error:
        console.print("--retry-failed takes failed batches again.", soft_wrap=True, markup=False)


def _dry_run(settings: EvaluationConfig, name: str, *, workers: int, here: bool, as_json: bool) -> None:
    """What there is to do, and about how long it takes."""
    from dataclasses import asdict

    from textleak.evaluation import drive, table
    from textleak.evaluation.grid import MANY, plan

    found = plan(settings, here=here)
    folder = drive.folder_of(found, name)
    evaluation = drive.look(found, folder)
    count = found.batches()
    guess = drive.estimate(evaluation) if count <= MANY else None
    seconds = None if guess is None else guess.seconds / workers
    if as_json:
        common.print_json(
            {
                "identity": found.identity,
                "out": str(folder),
                "settings": found.settings(),
                "batches": count,
                "left": None if guess is None else guess.batches,
                "seconds": seconds,
                "measured": None if guess is None else guess.measured,
                "cells": [] if count > MANY else [asdict(c) | {"batches": n} for c, n in found.cells()],
            }
        )
        return
    _say_notes(found.notes())
    console = common.stdout()
    if guess is None or seconds is None:
        console.print(f"{count:,} batches: too many to list; --yes would be needed.")
        return
    console.print(table.render(evaluation))
    measured = (
        "from what has been measured of them"
        if guess.measured == 1
        else "by a rule of thumb for minilm on one thread, other models differ"
        if guess.measured == 0
        else f"{guess.measured:.0%} of them from measurements, the others by a rule of thumb"
    )
    console.print(
        f"{count_of(count, 'batch')}, {guess.batches:,} to do: about {seconds_in_words(seconds)} ({measured}). "
        f"Records would go to {folder}."
    )
