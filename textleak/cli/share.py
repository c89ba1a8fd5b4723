"""`textleak share`: the client alone. Writes the gradient that it would share, and the truth apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textleak.cli import common, flags

if TYPE_CHECKING:
    from textleak.models.base import Model
    from textleak.private.secrets import ImageSecret, Secret
    from textleak.settings import ClientConfig, PictureConfig
    from textleak.shared.gradient import SharedGradient


@common.guarded
def command(
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="The gradient file; FILE.truth.json is written beside it."
        ),
    ],
    model: flags.Model = None,
    weights: flags.Weights = None,
    sentence: flags.Sentences = None,
    file: flags.File = None,
    image: flags.Images = None,
    index: flags.Indices = None,
    dataset: flags.Dataset = None,
    label: flags.Labels = None,
    task: flags.Task = None,
    share: flags.Share = None,
    client: flags.Clients = None,
    defense: flags.Defenses = None,
    know: flags.Know = None,
    seed: flags.Seed = None,
    device: flags.Device = None,
    threads: flags.Threads = None,
    config: flags.Config = None,
    assignments: flags.Assignments = None,
    json_: flags.Json = False,
) -> None:
    """Compute the gradient that a client would share, and write it to a file.

    The batch is of text, or with --image, --index or --dataset of pictures (then --model is one of `textleak image`).
    """
    said = common.settings_given(locals())
    facts = _share(_settings(said, config, assignments or ()), out)
    if json_:
        common.print_json(facts)
        return
    from rich.text import Text

    console = common.stdout()
    console.print(
        Text(
            f"The gradient of {facts['parameters']} parameters, {facts['bytes'] / 1e6:.1f} MB: {facts['out']}"
        )
    )
    console.print(Text(f"What it was computed from, for scoring only: {facts['truth']}"))


def _settings(
    said: dict[str, Any], config: str | None, assignments: Sequence[str]
) -> ClientConfig | PictureConfig:
    """The settings, of text unless a flag names pictures.

    Raises:
        InputError: flags of both.
    """
    from textleak.errors import InputError
    from textleak.settings import ClientConfig, PictureConfig, load_client_config, load_picture_config
    from textleak.settings.base import flag

    of_text = [name for name in said if name not in PictureConfig.model_fields]
    of_pictures = [name for name in said if name not in ClientConfig.model_fields]
    if of_text and of_pictures:
        raise InputError(
            f"{flag(ClientConfig, of_text[0])} was given with {flag(PictureConfig, of_pictures[0])}.",
            why="A batch is of text or of pictures.",
            fix="Leave one of them out.",
        )
    return (load_picture_config if of_pictures else load_client_config)(config, said, assignments)


def _share(settings: ClientConfig | PictureConfig, out: Path) -> dict[str, Any]:
    """Write both files; what is in them."""
    from rich.text import Text

    from textleak import owned, runs
    from textleak.errors import unwritten
    from textleak.jobs.base import SCHEMA_VERSION, model_facts
    from textleak.jobs.parts import build_client, build_defenses, set_threads

    for target in (out, _truth_of(out)):
        with unwritten(f"{target} can't be written.", fix="Give --out the name of a file, or of none yet."):
            owned.check(target)
    runs.check_writable(out.parent)
    build_client(settings)
    build_defenses(settings)  # what is wrong with them is said before anything is loaded
    threads = set_threads(settings.threads)
    with common.loading():
        model, shared, secret, sizes = _computed(settings)
    for name, notes in sizes.get("conversions", {}).items():
        for note in notes:
            common.stderr().print(Text(f"{name}: {note}.", style="yellow"), soft_wrap=True)
    if "hidden_size" in sizes:  # the papers' networks for pictures have random weights anyway
        common.say_weights(model.weights, model.source, model.name)
    truth = _write(shared, secret, out)
    return {
        "schema_version": SCHEMA_VERSION,
        "out": str(out),
        "truth": str(truth),
        **model_facts(model),
        "share": shared.share,
        "client": [choice.spec for choice in settings.client],
        "defense": [choice.spec for choice in settings.defenses],
        "threads": threads,
        "seed": settings.seed,
        **sizes,
        "parameters": len(shared.gradients),
        "bytes": out.stat().st_size,
        "gradient_norm": shared.norm(),
        "versions": runs.versions(),
    }


def _computed(
    settings: ClientConfig | PictureConfig,
) -> tuple[Model, SharedGradient, Secret | ImageSecret, dict[str, Any]]:
    """The model, what a client shares, the truth, and how large the batch is."""
    from textleak.jobs import images, text
    from textleak.settings import PictureConfig

    if isinstance(settings, PictureConfig):
        network = images.load(settings)
        read = images.read_pictures(settings, network)
        seen, pictures = images.share_pictures(settings, network, read)
        done = {picture.name: list(picture.notes) for picture in read if picture.notes}
        return (
            network,
            seen,
            pictures,
            {
                "batch_size": len(pictures.labels),
                "picture_shape": list(network.shape),
                "conversions": done,
            },
        )
    sentences = settings.batch()
    model = text.load(settings)
    shared, secret = text.share_text(settings, model, sentences)
    tokens = sum(map(len, secret.ids))
    sizes = {"batch_size": len(secret.ids), "tokens": tokens, "hidden_size": model.hidden_size}
    return model, shared, secret, sizes


def _truth_of(out: Path) -> Path:
    """Where the truth of a gradient file stands: beside it."""
    return out.parent / f"{out.name}.truth.json"


def _write(shared: SharedGradient, secret: Secret | ImageSecret, out: Path) -> Path:
    """Write the gradient, and the truth beside it: either both or neither."""
    from textleak import owned

    truth = _truth_of(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with owned.replacing(truth) as partial:  # both files, or neither
        secret.save(partial)
        shared.save(out)
    return truth
