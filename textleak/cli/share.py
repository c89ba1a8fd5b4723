"""`textleak share`: the client alone. Writes the gradient that it would share, and the truth apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textleak.cli import common

if TYPE_CHECKING:
    from textleak.settings import ClientConfig


@common.guarded
def command(
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="FILE", help="The gradient file; FILE.truth.json is written beside it."
        ),
    ],
    model: common.Model = None,
    weights: common.Weights = None,
    sentence: common.Sentences = None,
    file: common.File = None,
    label: common.Labels = None,
    task: common.Task = None,
    share: common.Share = None,
    client: common.Clients = None,
    defense: common.Defenses = None,
    know: common.Know = None,
    seed: common.Seed = None,
    device: common.Device = None,
    threads: common.Threads = None,
    config: common.Config = None,
    assignments: common.Assignments = None,
    json_: common.Json = False,
) -> None:
    """Compute the gradient that a client would share, and write it to a file."""
    from textleak.settings import load_client_config

    settings = load_client_config(
        config,
        common.given(
            model=model,
            weights=weights,
            sentences=sentence,
            file=file,
            labels=label,
            task=task,
            share=share,
            client=client,
            defenses=defense,
            know=know,
            seed=seed,
            device=device,
            threads=threads,
            out=out,
        ),
        assignments or (),
    )
    facts = _share(settings, out)
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


def _share(settings: ClientConfig, out: Path) -> dict[str, Any]:
    """Write both files; what is in them."""
    from textleak import owned, runs
    from textleak.errors import InputError
    from textleak.jobs import text as job
    from textleak.private.share import share

    truth = out.with_name(f"{out.name}.truth.json")
    for target in (out, truth):
        try:
            owned.check(target)
        except OSError as error:
            raise InputError(
                f"{target} can't be written.",
                why=owned.why_not(error),
                fix="Give --out the name of a file, or of none yet.",
            ) from None
    runs.check_writable(out.parent)
    sentences = settings.batch()
    defenses = job.build_defenses(settings)
    threads = job.set_threads(settings.threads)
    with common.loading():
        model = job.load(settings)
        shared, secret = share(
            model,
            sentences,
            settings.labels or None,
            share=settings.share,
            client=job.build_client(settings),
            defenses=defenses,
            know=settings.know,
            seed=settings.seed,
        )
    common.say_weights(model.weights, model.source, model.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    with owned.replacing(truth) as partial:  # both files, or neither
        secret.save(partial)
        shared.save(out)
    return {
        "out": str(out),
        "truth": str(truth),
        **job.model_facts(model),
        "share": shared.share,
        "client": [choice.spec for choice in settings.client],
        "defense": [choice.spec for choice in settings.defenses],
        "threads": threads,
        "seed": settings.seed,
        "batch_size": len(secret.ids),
        "tokens": sum(map(len, secret.ids)),
        "hidden_size": model.hidden_size,
        "parameters": len(shared.gradients),
        "bytes": out.stat().st_size,
        "gradient_norm": shared.norm(),
        "versions": runs.versions(),
    }
