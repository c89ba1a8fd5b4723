"""What a wide model's batch takes: CPU-seconds, peak memory and products by part, and whether it is exact and verified.

    python -m tests.figures.wide FOLDER --data cola.tsv --width 2048 --batch-size 32

FOLDER gets a Llama-shaped model of random weights with SmolLM2's vocabulary, once, written by a process of its own; a
client shares the gradient of the first sentences of 4 to 14 words without the embeddings, and `span` attacks it. Peaks
are of all memory that the process has, mapped weights among it, since the part before (Linux). GFLOP are counted of
products, and of decompositions by formula; the share is of this machine's rate of products in the same precision,
measured before and after.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import functools
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import textleak
import textleak.clients.view
import textleak.exact.subspace
import textleak.exact.vocabulary
import textleak.proof.certificate
import textleak.proof.texts
from textleak.attacks.base import ATTACKS, begin
from textleak.events import Followed, Phase
from textleak.models.loading.catalog import CATALOG
from textleak.models.loading.tokenizers import bundled_tokenizer

# Feed-forward's width over the hidden size, Llama 2 7B's.
_FEED_FORWARD = 11008 / 4096
_HEAD_SIZE = 64


def write_model(folder: Path, *, width: int, layers: int) -> None:
    """Write a model with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = bundled_tokenizer(CATALOG["smollm2"])
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD_SIZE,
        intermediate_size=int(width * _FEED_FORWARD),
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        **ids,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sentences(path: Path, count: int) -> list[str]:
    """The first sentences of 4 to 14 words."""
    with path.open(encoding="utf-8") as file:
        rows = [row["sentence"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    return [row for row in rows if 4 <= len(row.split()) <= 14][:count]


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is multiplied while it is active.

    Attributes:
        flops: by type of number.
    """

    def __init__(self) -> None:
        """Nothing yet."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: dict[torch.dtype, float] = {torch.float32: 0.0, torch.float64: 0.0}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        """Called by torch for each of its operations."""
        made = func(*args, **(kwargs or {}))
        packet, count = func._overloadpacket, 0.0
        if packet is torch.ops.aten.addmm_:
            count = 2 * args[1].shape[0] * args[1].shape[1] * args[2].shape[1]
        elif packet in flop_registry:
            count = flop_registry[packet](*args, **(kwargs or {}), out_val=made)
        elif packet in _DECOMPOSITIONS:
            n, m = sorted(args[0].shape[-2:])
            others = args[1].shape[-1] if packet is torch.ops.aten.linalg_lstsq else 0
            count = _DECOMPOSITIONS[packet](m, n) + 4 * m * n * others
        if count:
            self.flops[args[-1].dtype if isinstance(args[-1], torch.Tensor) else args[0].dtype] += count
        return made


# Of an (m, n) matrix with m the larger (Golub & Van Loan 2013, sec. 5.2.2 and fig. 8.6.1).
_DECOMPOSITIONS: dict[Any, Callable[[int, int], float]] = {
    torch.ops.aten.linalg_qr: lambda m, n: 4 * m * n**2 - 4 / 3 * n**3,
    torch.ops.aten.linalg_svd: lambda m, n: 6 * m * n**2 + 20 * n**3,
    torch.ops.aten._linalg_svd: lambda m, n: 6 * m * n**2 + 20 * n**3,
    torch.ops.aten.linalg_lstsq: lambda m, n: 2 * m * n**2 - 2 / 3 * n**3,
}


@dataclasses.dataclass(kw_only=True)
class Part:
    """What a part of the attack took: CPU-seconds, GB at the most, and FLOPs by type of number."""

    seconds: float = 0.0
    peak: float = 0.0
    flops: dict[torch.dtype, float] = dataclasses.field(default_factory=dict)


class Parts:
    """What each part took, without those within it.

    Attributes:
        found: by name, in the order of their beginnings.
    """

    def __init__(self, counted: Counted) -> None:
        """The first one begins with `enter`."""
        self.found: dict[str, Part] = {}
        self._counted, self._stack, self._since = counted, ["start"], time.process_time()
        self._before = dict(counted.flops)

    def enter(self, name: str) -> None:
        """A part begins within the one there is."""
        self._note()
        self._stack.append(name)
        self.found.setdefault(name, Part())
        sys.stderr.write(f"{name} begins after {time.process_time():.0f} CPU-s\n")

    def leave(self) -> None:
        """It ends."""
        self._note()
        self._stack.pop()

    def timed(self, name: str | None, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a part of its own; one without a name is called by the precision of its first argument."""

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            self.enter(name or f"own gradient, {str(args[0].dtype).removeprefix('torch.')}")
            try:
                return function(*args, **kwargs)
            finally:
                self.leave()

        return run

    def _note(self) -> None:
        status = Path("/proc/self/status").read_text("ascii")
        peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024 / 1e9
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins anew
        part = self.found.setdefault(self._stack[-1], Part())
        now = time.process_time()
        part.seconds += now - self._since
        part.peak = max(part.peak, peak)
        for dtype, flops in self._counted.flops.items():
            part.flops[dtype] = part.flops.get(dtype, 0.0) + flops - self._before[dtype]
        self._since, self._before = now, dict(self._counted.flops)


@contextlib.contextmanager
def watched(parts: Parts) -> Iterator[None]:
    """While it is active, what the table names is timed by itself."""
    places: list[tuple[Any, str, str | None]] = [
        (textleak.exact.subspace, "input_span", "spans"),
        (textleak.exact.vocabulary.Vocabulary, "_scan", "vocabulary"),
        (textleak.clients.view, "deferred_gradient", None),
        (textleak.proof.certificate, "mutually_apart", "comparing"),
        (textleak.proof.texts.Text, "near", "texts most like it"),
    ]
    with contextlib.ExitStack() as held:
        for owner, attribute, name in places:
            timed = parts.timed(name, getattr(owner, attribute))
            held.enter_context(mock.patch.object(owner, attribute, timed))
        yield


def rate(dtype: torch.dtype, width: int) -> float:
    """FLOPs a CPU-second of products of 320 rows with a square matrix, the best of a few."""
    left, right = torch.randn(320, width, dtype=dtype), torch.randn(width, width, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        begun = time.process_time()
        torch.mm(left, right)
        best = min(best, time.process_time() - begun)
    return 2 * 320 * width**2 / best


def attacked(options: argparse.Namespace, parts: Parts) -> None:
    """Load, share and attack, and write what was found."""
    parts.enter("load")
    model = textleak.load_model(options.folder)
    parts.leave()
    parts.enter("share")
    shared, secret = textleak.share(model, sentences(options.data, options.batch_size), share="no-embeddings")
    parts.leave()
    steps = Followed(begin(ATTACKS.build("span", {}), shared, model))
    parts.enter("first")
    with watched(parts):
        for event in steps:
            if isinstance(event, Phase):
                parts.leave()
                parts.enter(event.name)
    parts.leave()
    recovery = steps.result
    found = [tuple(p.id for p in sentence.positions) for sentence in recovery.sentences]
    exact = sum(row in secret.ids for row in found)
    sys.stdout.write(
        f"{exact} of {len(secret.ids)} exact, n = {sum(map(len, secret.ids))}; {recovery.stop.value} "
        f"Distance {recovery.gradient_distance or float('nan'):.2g}.\n"
    )
    size = sum(p.nbytes for p in model.parameters.values()) / 1e9
    peak = max(part.peak for part in parts.found.values())
    sys.stdout.write(f"weights {size:.2f} GB, peak {peak:.2f} GB, {peak / size:.2f} times\n")


def main() -> None:
    """Measure one batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--write", action="store_true", help="write the model and no more")
    options = parser.parse_args()
    if options.write:
        write_model(options.folder, width=options.width, layers=options.layers)
        return
    if not (options.folder / "config.json").exists():
        subprocess.run([sys.executable, "-m", "tests.figures.wide", *sys.argv[1:], "--write"], check=True)
    dtypes = torch.float32, torch.float64
    before = {dtype: rate(dtype, options.width) for dtype in dtypes}
    counted = Counted()
    with counted:
        parts = Parts(counted)
        attacked(options, parts)
    rates = {dtype: (before[dtype] + rate(dtype, options.width)) / 2 for dtype in dtypes}
    for name, part in parts.found.items():
        flops = [part.flops.get(dtype, 0.0) for dtype in dtypes]
        share = sum(part.flops.get(dtype, 0.0) / rates[dtype] for dtype in dtypes) / max(part.seconds, 1e-9)
        sys.stdout.write(
            f"{name:22s} {part.seconds:7.1f} CPU-s  {part.peak:6.2f} GB  GFLOP {flops[0] / 1e9:7.1f} float32 "
            f"{flops[1] / 1e9:7.1f} float64  {share:5.0%}\n"
        )
    attack = sum(part.seconds for name, part in parts.found.items() if name not in ("start", "load", "share"))
    sys.stdout.write(f"{'attack':22s} {attack:7.1f} CPU-s\n")
    shown = ", ".join(
        f"{rates[dtype] / 1e9:.1f} GFLOP/s in {str(dtype).removeprefix('torch.')}" for dtype in dtypes
    )
    sys.stdout.write(f"products: {shown}\n")


if __name__ == "__main__":
    main()
