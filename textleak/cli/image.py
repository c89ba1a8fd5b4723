"""`textleak image`: recover the pictures behind one shared gradient, live."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from textleak.cli import common, drive, flags
from textleak.words import count_of

if TYPE_CHECKING:
    from textleak.errors import TextleakError
    from textleak.jobs.images import ImageJob
    from textleak.settings import ImageConfig


@common.guarded
def command(
    image: flags.Images = None,
    index: flags.Indices = None,
    dataset: flags.Dataset = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="TEXT",
            help="lenet | resnet20 | resnet18 | vit, options as resnet20:activation=sigmoid,strides=false, "
            "or a hub id or folder of an image classifier.",
            show_default="lenet",
        ),
    ] = None,
    weights: flags.Weights = None,
    label: Annotated[
        list[int] | None,
        typer.Option(
            "--label",
            metavar="INT",
            help="A picture's class, repeated with --image; else the data set's, else drawn from the seed.",
        ),
    ] = None,
    attack: Annotated[
        str | None,
        typer.Option("--attack", "-a", metavar="TEXT", help="dlg | idlg | cosine | tag", show_default="dlg"),
    ] = None,
    gradients: flags.Gradients = None,
    truth: flags.TruthFile = None,
    share: flags.Share = None,
    client: flags.Clients = None,
    defense: flags.Defenses = None,
    know: Annotated[
        str | None,
        typer.Option(
            "--know",
            metavar="TEXT",
            help="labels,batch-size,batch-norm: what the attacker is told.",
            show_default="batch-size",
        ),
    ] = None,
    restarts: flags.Restarts = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            metavar="INT",
            help="Maximum gradient evaluations per candidate.",
            show_default="the attack's",
        ),
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
    redact: Annotated[
        bool, typer.Option("--redact", help="No picture in any record, nor on the screen.")
    ] = False,
) -> None:
    """Recover the pictures behind one shared gradient, live."""
    said = common.settings_given(locals())
    if config is None and gradients is None:
        common.starting(model, default="lenet")

    from textleak.settings import load_image_config
    from textleak.view.films import Film

    settings = load_image_config(config, said, assignments or ())
    film = Film()
    done = drive.carry_out(lambda: _prepare(settings), settings.out, [film.show])
    if not settings.redact:
        try:
            film.write(done.folder, done.job.truth(), done.result["images"])
        except OSError as error:
            done = dataclasses.replace(done, problem=_undrawn(done.folder, error))
    drive.answer(done, as_json=json_)


def _prepare(settings: ImageConfig) -> ImageJob:
    """Load and check everything, and say what the run works on."""
    from textleak.jobs.images import prepare

    with common.loading():
        job = prepare(settings)
    drive.say_warnings(job)
    facts = job.settings
    channels, height, width = facts["picture_shape"]
    batch = f"{facts['batch_size']} in the batch" if facts["batch_size"] else "batch size not known"
    size = f"{batch}, {height} x {width} pixels, {count_of(channels, 'channel')}"
    drive.say_run(job, f"{facts['weights']} weights", size)
    return job


def _undrawn(folder: Path, error: OSError) -> TextleakError:
    from textleak.errors import TextleakError

    return TextleakError(
        f"The pictures can't be written into {folder}: {error.strerror or error}.",
        why="The result is there without them.",
        fix="Make room, or choose another --out, and run it again.",
    )
