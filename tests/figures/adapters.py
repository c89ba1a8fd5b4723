"""What leaks from LoRA's adapters: a row for each file of sentences, over its first batches.

    python -m tests.figures.adapters --data FILE.tsv --model smollm2 --rank 8 --batch-size 1 --limit 5

Takes sentences (column sentence) in batches, has a client train adapters on each, attacks what it sends with `span`,
and counts what came back. Everything that an attack sees goes through a gradient file and back.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import textleak
from textleak import seeds
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.clients import CLIENTS, composed
from textleak.clients.base import Client
from textleak.clients.view import Clock, view_of
from textleak.events import Stop
from textleak.exact.adapters.bag import find_bag
from textleak.exact.adapters.measured import Measured, first_layers
from textleak.models import TextModel
from textleak.shared.gradient import SharedGradient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What came back of one batch.

    Attributes:
        bag: whether the distinct tokens that the network reads were found, and no other.
        exact: sentences of which every token came back.
        verified: whether the answer was proved.
        seconds: CPU time of the attack, its proof counted.
    """

    bag: bool
    exact: int
    verified: bool
    seconds: float


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, action="append", required=True, help="tab-separated; repeatable")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--task", default="auto")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--at", type=int, default=5, help="public rounds before this one")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--limit", type=int, default=5, help="batches of each file")
    parser.add_argument("--skip", type=int, default=0, help="batches left out at the beginning")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = textleak.load_model(
        options.model, task=options.task, weights_seed=seeds.derive(options.seed, "weights")
    )
    client = composed([CLIENTS.build("lora", {"rank": options.rank, "at": options.at})])
    for path in options.data:
        with path.open(encoding="utf-8") as file:
            sentences = [row["sentence"] for row in csv.DictReader(file, delimiter="\t")]
        batches = []
        for index in range(options.skip, options.skip + options.limit):
            some = sentences[index * options.batch_size :][: options.batch_size]
            batches.append(measured(model, client, some, seeds.of_batch(options.seed, index)))
            sys.stdout.write(f"  {index:3d} {dataclasses.asdict(batches[-1])}\n")
            sys.stdout.flush()
        sys.stdout.write(
            row(f"{path.stem}, rank {options.rank}, B = {options.batch_size}", batches, options.batch_size)
        )


def measured(model: TextModel, client: Client, sentences: Sequence[str], seed: int) -> Batch:
    """Share, attack, count."""
    shared, secret = textleak.share(model, sentences, client=client, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gradient.safetensors"
        shared.save(path)
        shared = SharedGradient.load(path)
    began = time.process_time()
    recovery = to_end(begin(ATTACKS.build("span", {}), shared, model, seed=seed))
    seconds = time.process_time() - began
    answered = [tuple(p.id for p in sentence.positions) for sentence in recovery.sentences]
    found = 0
    for ids in secret.ids:
        if tuple(ids) in answered:
            answered.remove(tuple(ids))
            found += 1
    return Batch(
        bag=bag_of(model, shared) == {token for ids in secret.ids for token in read(model, ids)},
        exact=found,
        verified=recovery.stop is Stop.VERIFIED,
        seconds=seconds,
    )


def read(model: TextModel, ids: Sequence[int]) -> Sequence[int]:
    """What the network reads of a sentence: a language model's last token is a label alone."""
    return ids[:-1] if model.task == "causal-lm" else ids


def bag_of(model: TextModel, shared: SharedGradient) -> set[int]:
    """The tokens that the first layers' adapters give away."""
    view = view_of(shared, model)
    lengths = shared.known.lengths
    steps = find_bag(
        view.model,
        Measured.of(view.shared, first_layers(view.model, view.shared)),
        longest=max(lengths) if lengths else None,
        clock=Clock(),
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return set(end.value.tokens) if end.value is not None and end.value.complete else set()


def row(name: str, batches: Sequence[Batch], size: int) -> str:
    """All batches' figures as a line."""
    count = len(batches)
    return (
        f"{name}: {count * size} sentences, bag exact {sum(b.bag for b in batches)} of {count}, "
        f"exact {sum(b.exact for b in batches)}, verified {sum(b.verified for b in batches)} of {count}, "
        f"median {statistics.median(b.seconds for b in batches):.0f} CPU-s a batch\n"
    )


if __name__ == "__main__":
    main()
