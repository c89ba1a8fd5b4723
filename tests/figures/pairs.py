"""What comes back of pairs of sentences: a line for each batch size, over the first pairs of a file.

    python -m tests.figures.pairs --data FILE.tsv --batch-size 1 --batch-size 4

Takes sentences (column sentence) two by two, has the model's own tokenizer make pairs of them and transformers form the
gradient, attacks that, and counts what came back. Nothing is known to the attack but the model.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from textleak import recover
from textleak.clients import CLIENTS
from textleak.models import TextModel, load_model
from textleak.shared.choice import choose_shared
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import UNTOLD
from textleak.shared.public import ONE_STEP


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="tab-separated, column sentence")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--attack", default="auto")
    parser.add_argument("--batch-size", action="append", type=int, help="repeatable; 1 by default")
    parser.add_argument("--limit", type=int, default=10, help="batches")
    parser.add_argument("--share", default="no-embeddings")
    parser.add_argument("--most-words", type=int, default=24, help="of a pair")
    parser.add_argument(
        "--single", type=int, default=0, help="single sentences beside the pairs of each batch"
    )
    parser.add_argument("--one-type", action="store_true", help="token types of 0 throughout")
    parser.add_argument("--dropout", action="store_true", help="the network in train mode")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds a batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.model, task="classification", num_labels=2)
    with options.data.open(encoding="utf-8") as file:
        sentences = [row["sentence"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    head = "| B | batches | n/D | match | whole and proved | CPU-seconds a batch, median (most) |"
    sys.stdout.write(f"{head}\n|{'---|' * 6}\n")
    for size in options.batch_size or [1]:
        sys.stdout.write(f"{_row(model, sentences, size, options)}\n")
        sys.stdout.flush()


def _row(model: TextModel, sentences: Sequence[str], size: int, options: argparse.Namespace) -> str:
    pairs = [
        (one, two)
        for one, two in zip(sentences[::2], sentences[1::2], strict=False)
        if len(f"{one} {two}".split()) <= options.most_words
    ]
    matches, seconds, proved, full = [], [], 0, []
    for batch in range(min(options.limit, len(pairs) // size)):
        texts: list[tuple[str, ...]] = [*pairs[batch * size : (batch + 1) * size - options.single]]
        texts += [(one,) for one, _ in pairs[(batch + 1) * size - options.single : (batch + 1) * size]]
        shared, ids = _sent(model, texts, options)
        began = time.process_time()
        recovery = recover(shared, model, options.attack, time_limit=options.time_limit, seed=0)
        seconds.append(time.process_time() - began)
        rows = [tuple(p.id for p in sentence.positions) for sentence in recovery.sentences]
        matches.append(sum((Counter(rows) & Counter(ids)).values()) / len(ids))
        proved += recovery.stop.settled and matches[-1] == 1
        full.append(sum(map(len, ids)) / model.hidden_size)
    return (
        f"| {size} | {len(matches)} | {statistics.mean(full):.2f} | {statistics.mean(matches):.2f} | {proved} | "
        f"{statistics.median(seconds):.1f} ({max(seconds):.1f}) |"
    )


def _sent(
    model: TextModel, texts: Sequence[tuple[str, ...]], options: argparse.Namespace
) -> tuple[SharedGradient, list[tuple[int, ...]]]:
    """What transformers makes of texts, as a server sees it, and their tokens."""
    rows = [model.tokenizer(*text, return_token_type_ids=True) for text in texts]
    batch = model.tokenizer.pad({key: [row[key] for row in rows] for key in rows[0]}, return_tensors="pt")
    if options.one_type:
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    names = choose_shared(
        options.share,
        list(model.parameters),
        embeddings=model.embedding_names,
        attention=model.attention_names,
    )
    parameters = [model.parameters[name].requires_grad_() for name in names]
    labels = torch.arange(len(texts)) % 2
    torch.manual_seed(len(texts))
    model.network.train(options.dropout)
    try:
        gradients = torch.autograd.grad(
            model.network(**batch, labels=labels).loss, parameters, allow_unused=True
        )
    finally:
        model.network.eval().requires_grad_(False)
    client = CLIENTS.build("train-mode", {}).public(model) if options.dropout else ONE_STEP
    shared = SharedGradient(
        gradients={name: g for name, g in zip(names, gradients, strict=True) if g is not None},
        model=model.public(),
        share=options.share,
        known=UNTOLD,
        client=client,
    )
    return shared, [tuple(row["input_ids"]) for row in rows]


if __name__ == "__main__":
    main()
