"""Everything that a GPU can show, in one call of some minutes: `python -m tests.gpu [--out FILE.json]`.

- recoveries: `match` on the same gradients, read back from disk, on the GPU and on the CPU; where one of them is
  proved, tokens should be equal;
- engine: factored against formed gradients (`textleak.matching.bench`);
- batches: candidates a second and peak memory as candidates grow, and what happens when memory runs out.

It imports only what it measures: torch, transformers, tokenizers, safetensors and pydantic have to be there, the rest
of textleak's dependencies not. Where it has to leave something out it says so. `--device pretended --quick` tries it on
a machine without one (`tests.devices.pretended`).
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "pydantic", "numpy", "typer", "yaml", "rich")
SENTENCES = (
    "the meeting was moved to friday morning",
    "she told nobody about the plan",
    "our doctor wrote the patient a letter",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A recovery: the model by name, and the options of `match`."""

    model: str
    weights: str = "random"
    sentences: int = 1
    span_proposals: bool = True
    quick: bool = False


CASES = (
    Case(model="bert-tiny", sentences=3, quick=True),
    Case(model="bert-tiny", span_proposals=False, quick=True),
    Case(model="minilm", weights="pretrained", sentences=3),
    Case(model="gpt2"),
    Case(model="bert-base", sentences=2),
    Case(model="minilm", weights="pretrained", span_proposals=False),
)
# Hidden size 384 and 6 layers, 768 and 12 layers.
SHAPES = ("minilm", "bert-base")
LENGTHS = (14, 6, 32, 64)
COUNTS = (16, 64)
LARGER = (16, 64, 256, 1024, 4096)

Row = dict[str, Any]


class Clock:
    """How much of the call's time is left."""

    def __init__(self, seconds: float) -> None:
        self.started = time.perf_counter()
        self.seconds = seconds

    def used(self) -> float:
        return time.perf_counter() - self.started

    def short(self, part: float = 1.0) -> bool:
        """Whether this part of the time is used up."""
        return self.used() > part * self.seconds


def main() -> int:
    """Measure, print a table for each part, and one JSON document."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda", help="what to compare with the CPU: cuda[:N], cpu, pretended [cuda]"
    )
    parser.add_argument("--out", type=Path, help="file for the JSON document; standard output otherwise")
    parser.add_argument(
        "--minilm", help="folder with minilm's pretrained weights, if its package isn't installed"
    )
    parser.add_argument(
        "--seconds", type=float, default=420.0, help="time after which no new row is begun [420]"
    )
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--quick", action="store_true", help="tiny settings, to try the script")
    arguments = parser.parse_args()
    if arguments.device == "pretended":
        from tests.devices.pretended import DEVICE, pretended_device

        arguments.device = str(DEVICE)
        with pretended_device():
            return measured(arguments)
    return measured(arguments)


def measured(arguments: argparse.Namespace) -> int:
    """All parts on a device that is there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        say(f"missing here: {', '.join(missing)} (pip install them, or put a folder with them on PYTHONPATH)")
        return 2

    import torch

    from textleak.errors import InputError
    from textleak.models import find_device

    if arguments.threads or arguments.quick:
        torch.set_num_threads(arguments.threads or 1)
    try:
        device = str(find_device(arguments.device))
    except InputError as error:
        say(str(error))
        return 2
    clock = Clock(arguments.seconds)
    notes: list[str] = []
    report: dict[str, Any] = {"machine": machine(device), "notes": notes}
    say(json.dumps(report["machine"]))
    parts: dict[str, Callable[[], Iterable[Row]]] = {
        "recoveries": lambda: recoveries(arguments, device, clock, notes),
        "engine": lambda: engine(arguments, device, clock, notes),
        "batches": lambda: batches(arguments, device, clock, notes),
    }
    failed = False
    for name, rows in parts.items():
        report[name] = []
        say(f"\n{name}")
        try:
            for row in rows():
                report[name].append(row)
                say("  " + "  ".join(f"{key}={shown(value)}" for key, value in row.items()))
        except Exception as error:  # one part that breaks must not take the others' figures with it
            failed = True
            import traceback

            traceback.print_exc()
            notes.append(f"{name} broke off: {type(error).__name__}: {str(error).splitlines()[0]}")
    report["seconds"] = round(clock.used(), 1)
    # Answers that neither side could prove were cut short: rounding alone sets them apart.
    proved = (row for row in report["recoveries"] if row["verified"] or row["cpu_verified"])
    report["same_tokens"] = all(row["same_tokens"] is not False for row in proved)
    for note in notes:
        say(f"note: {note}")
    document = json.dumps(report, indent=1)
    if arguments.out is None:
        say("\n" + document)
    else:
        arguments.out.write_text(document + "\n", "utf-8")
    return 1 if failed or not report["same_tokens"] else 0


def machine(device: str) -> Row:
    """What it runs on."""
    import torch
    import transformers

    cuda = device.startswith("cuda")
    return {
        "device": device,
        "name": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "memory_gib": round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
        if cuda
        else None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "float32_products": torch.get_float32_matmul_precision(),
    }


# Recoveries


def recoveries(arguments: argparse.Namespace, device: str, clock: Clock, notes: list[str]) -> Iterable[Row]:
    """The same gradients attacked on the device and on the CPU."""
    from textleak.errors import InputError
    from textleak.models import load_model

    for case in CASES:
        if arguments.quick and not case.quick:
            continue
        name = arguments.minilm if case.model == "minilm" and arguments.minilm else case.model
        what = f"{case.model} ({case.weights}, span proposals {'on' if case.span_proposals else 'off'})"
        if clock.short(0.6):
            notes.append(f"no recovery on {what}: out of time")
            continue
        try:
            here, there = (load_model(name, weights=case.weights, device=d) for d in ("cpu", device))
        except InputError as error:
            notes.append(f"no recovery on {what}: {str(error).splitlines()[0]}")
            continue
        for sentence in SENTENCES[: 1 if arguments.quick else case.sentences]:
            yield recovery(case, sentence, here, there, arguments, clock)


def recovery(
    case: Case, sentence: str, here: Any, there: Any, arguments: argparse.Namespace, clock: Clock
) -> Row:
    """One gradient, formed on the CPU, attacked on both."""
    from textleak.private.share import share
    from textleak.shared.gradient import SharedGradient

    options: dict[str, object] = {"span_proposals": case.span_proposals}
    if arguments.quick:
        options |= {"budget": 200, "steps": 6, "restarts": 2}
    shared, secret = share(here, [sentence], share="no-embeddings")
    with tempfile.TemporaryDirectory() as folder:
        shared.save(Path(folder) / "gradient.safetensors")
        shared = SharedGradient.load(Path(folder) / "gradient.safetensors")
    its_own, _ = share(there, [sentence], share="no-embeddings")
    squares = [
        (float((own.cpu().double() - shared.gradients[name].double()).square().sum()))
        for name, own in its_own.gradients.items()
    ]
    found = attacked(shared, there, options)
    again = attacked(shared, there, options) if case.quick else None
    expected = attacked(shared, here, options) if not clock.short(0.75) else None
    true = secret.ids[0]
    return {
        "model": case.model,
        "weights": case.weights,
        "span_proposals": case.span_proposals,
        "tokens": len(true),
        "token_match": sum(a == b for a, b in zip(found["ids"][0], true, strict=False)) / len(true),
        "verified": found["verified"],
        "cpu_verified": expected["verified"] if expected else None,
        "gradient_distance": found["gradient_distance"],
        "same_tokens": found["ids"] == expected["ids"] if expected else None,
        "same_twice": found["ids"] == again["ids"] if again else None,
        "client_difference": sum(squares) ** 0.5 / shared.norm(),
        "evaluations": found["evaluations"],
        "cpu_evaluations": expected["evaluations"] if expected else None,
        "seconds": found["seconds"],
        "seconds_again": again["seconds"] if again else None,
        "cpu_seconds": expected["seconds"] if expected else None,
        "peak_mib": found["peak_mib"],
    }


def attacked(shared: Any, model: Any, options: dict[str, object]) -> Row:
    """One run of `match` to its end, with its certificate."""
    from textleak.attacks import ATTACKS
    from textleak.attacks.base import begin, to_end
    from textleak.clients.view import view_of
    from textleak.proof.certificate import certify

    start_peak(model.device)
    began = time.perf_counter()
    steps = begin(ATTACKS.build("match", options), shared, model, seed=0)
    recovery = to_end(steps)
    seconds = time.perf_counter() - began
    certificate = certify(view_of(shared, model), recovery.sentences)
    return {
        "ids": [[position.id for position in s.positions] for s in recovery.sentences],
        "evaluations": recovery.evaluations,
        "verified": certificate.verified,
        "gradient_distance": certificate.gradient_distance,
        "seconds": seconds,
        "peak_mib": peak(model.device),
    }


# The engine


def engine(arguments: argparse.Namespace, device: str, clock: Clock, notes: list[str]) -> Iterable[Row]:
    """Factored against formed gradients: speed, memory, and how equal they are."""
    from textleak.cli.bench import measure, text_case
    from textleak.models import load_model

    shapes = ("bert-tiny",) if arguments.quick else SHAPES
    lengths = (6,) if arguments.quick else LENGTHS
    counts = (2,) if arguments.quick else COUNTS
    for dtype, some in (("float64", lengths[:1]), ("float32", lengths)):
        models = [load_model(shape, weights="random", device=device, dtype=dtype) for shape in shapes]
        for tokens in some:
            for model in models:
                for candidates in counts if dtype == "float32" else counts[:1]:
                    if clock.short(0.85):
                        notes.append(f"engine: {dtype}, T = {tokens}, K = {candidates}: out of time")
                        continue
                    case = text_case(model, tokens=tokens, candidates=candidates, seed=0)
                    start_peak(model.device)
                    row = measure(
                        case, tokens=tokens, objective="squared-l2", repeats=1 if arguments.quick else 3
                    )
                    yield {**row, "peak_mib": peak(model.device)}


def batches(arguments: argparse.Namespace, device: str, clock: Clock, notes: list[str]) -> Iterable[Row]:
    """Candidates a second and peak memory as candidates grow; then too many for a part of the memory."""
    import torch

    from textleak.cli.bench import text_case
    from textleak.matching import Matcher, SquaredL2, Target
    from textleak.models import load_model

    for shape in ("bert-tiny",) if arguments.quick else SHAPES:
        model = load_model(shape, weights="random", device=device)
        for candidates in (2, 4) if arguments.quick else LARGER:
            if clock.short(0.95):
                notes.append(f"batches: {shape}, K = {candidates}: out of time")
                continue
            case = text_case(model, tokens=6 if arguments.quick else 14, candidates=candidates, seed=0)
            target = Target.from_gradients(case.gradients)
            matcher = Matcher.of(model.network, target, SquaredL2())
            works: dict[str, Callable[[], object]] = {
                "value": lambda m=matcher, c=case: m.evaluate(c.losses, c.leaves),  # type: ignore[misc]
                "value and gradient": lambda m=matcher, c=case: m.value_and_gradient(  # type: ignore[misc]
                    c.losses, c.leaves, c.optimized
                ),
            }
            for what, work in works.items():
                work()
                start_peak(model.device)
                taken = min(seconds_of(work, model.device) for _ in range(1 if arguments.quick else 3))
                yield {
                    "model": shape,
                    "what": what,
                    "candidates": candidates,
                    "candidates_per_second": candidates / taken,
                    "peak_mib": peak(model.device),
                    "chunk": matcher.chunk,
                }
        if device.startswith("cuda") and not clock.short():
            yield memory_shortage(model, shape)
        if device.startswith("cuda"):
            torch.cuda.empty_cache()


def memory_shortage(model: Any, shape: str) -> Row:
    """Half of the memory that 256 candidates took: the chunk should halve, and the answer stay."""
    import torch

    from textleak.cli.bench import text_case
    from textleak.matching import Matcher, SquaredL2, Target

    case = text_case(model, tokens=14, candidates=256, seed=0)
    target = Target.from_gradients(case.gradients)

    def distances(matcher: Matcher) -> torch.Tensor:
        return matcher.value_and_gradient(case.losses, case.leaves, case.optimized)[0]

    matcher = Matcher.of(model.network, target, SquaredL2())
    start_peak(model.device)
    expected = distances(matcher)
    before = torch.cuda.memory_allocated(model.device)
    needed = torch.cuda.max_memory_allocated(model.device) - before
    total = torch.cuda.get_device_properties(model.device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((before + needed / 2) / total, model.device)
    try:
        tight = Matcher.of(model.network, target, SquaredL2())
        found = distances(tight)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, model.device)
    return {
        "model": shape,
        "what": "half of the memory",
        "candidates": 256,
        "chunk": tight.chunk,
        "largest_relative_difference": float(((found - expected) / expected).abs().max()),
    }


def start_peak(device: Any) -> None:
    """Begin to watch the memory."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: Any) -> float | None:
    """MiB at most since `start_peak`; None where nobody counts."""
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


def seconds_of(work: Callable[[], object], device: Any) -> float:
    """Seconds that `work` takes, to its last kernel."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def shown(value: object) -> str:
    """A value in a table."""
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def say(text: str) -> None:
    """Write a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
