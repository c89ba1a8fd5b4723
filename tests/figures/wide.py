"""What a wide model's batch takes: CPU-seconds and peak memory by phase, and whether it is exact and verified.

    python -m tests.figures.wide FOLDER --data cola.tsv --width 2048 --batch-size 32

FOLDER gets a Llama-shaped model of random weights with SmolLM2's vocabulary, once; a client shares the gradient of the
first sentences of 4 to 14 words without the embeddings, and `span` attacks it. Peaks are of all memory that the process
has, mapped weights among it, since the phase before (Linux).
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import time
from pathlib import Path

import torch

import textleak
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


class Phases:
    """Writes what each phase took.

    Attributes:
        peak: GB, the largest so far.
    """

    def __init__(self) -> None:
        """The first one begins."""
        self.peak, self._since = 0.0, time.process_time()

    def ended(self, name: str) -> None:
        """A phase has ended."""
        status = Path("/proc/self/status").read_text("ascii")
        peak = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024 / 1e9
        now = time.process_time()
        sys.stdout.write(f"{name:10s} {now - self._since:7.1f} CPU-s  {peak:6.2f} GB\n")
        sys.stdout.flush()
        self.peak, self._since = max(self.peak, peak), now
        Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins anew


def main() -> None:
    """Measure one batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    if not (options.folder / "config.json").exists():
        write_model(options.folder, width=options.width, layers=options.layers)
        sys.exit("The model is written; measure it in a process of its own: the same command once more.")
    phases = Phases()
    model = textleak.load_model(options.folder)
    size = sum(p.nbytes for p in model.parameters.values()) / 1e9
    phases.ended("load")
    shared, secret = textleak.share(model, sentences(options.data, options.batch_size), share="no-embeddings")
    phases.ended("share")
    steps, name = Followed(begin(ATTACKS.build("span", {}), shared, model)), "spans"
    for event in steps:
        if isinstance(event, Phase):
            phases.ended(name)
            name = event.name
    phases.ended(name)
    recovery = steps.result
    found = [tuple(p.id for p in sentence.positions) for sentence in recovery.sentences]
    exact = sum(row in secret.ids for row in found)
    sys.stdout.write(
        f"{exact} of {len(secret.ids)} exact, n = {sum(map(len, secret.ids))}; {recovery.stop.value}\n"
        f"weights {size:.2f} GB, peak {phases.peak:.2f} GB, {phases.peak / size:.2f} times\n"
    )


if __name__ == "__main__":
    main()
