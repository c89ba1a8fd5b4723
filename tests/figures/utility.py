"""What a defense costs the model trained behind it: `python -m tests.figures.utility --data FILE.tsv --out FILE.json`.

Fine-tunes a pretrained model on sentences with labels, each step on the very gradient that a client would share: the
batch goes through `textleak.share` with the defense, the server takes an Adam step on what comes out. Prints accuracy
and Matthews' correlation on held-out sentences. The file goes into `textleak report --utility`. What it holds already
is not computed again.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import textleak
from textleak import runs, seeds
from textleak.defenses import DEFENSES, Defense
from textleak.models import TextModel
from textleak.reports.settings import same_defense
from textleak.reports.utility import Utility, UtilityRow, UtilityRun, read_utility, write_utility
from textleak.settings import Choice

LADDER = (
    "none",
    *(f"gaussian:sigma={sigma}" for sigma in ("1e-5", "1e-4", "1e-3", "1e-2", "1e-1")),
    *(f"prune:ratio={ratio}" for ratio in ("0.5", "0.75", "0.9", "0.99")),
    *(f"quantize:to={grid}" for grid in ("bf16", "int8")),
)
WARM_UP = 0.1  # share of the steps in which the learning rate rises, then it falls linearly (Devlin et al. 2019, A.2)
Rows = Sequence[tuple[str, int]]


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="tab-separated, columns label and sentence")
    parser.add_argument("--out", type=Path, required=True, help="the table, for textleak report --utility")
    parser.add_argument("--take", type=Path, action="append", default=[], help="runs from this table too")
    parser.add_argument("--model", default="minilm")
    parser.add_argument(
        "--defense", action="append", metavar="SPEC", help="repeatable; a+b in order, or none"
    )
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--train", type=int, default=2000, help="the first sentences")
    parser.add_argument("--test", type=int, default=500, help="the ones after them")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with options.data.open(encoding="utf-8") as file:
        rows = [(row["sentence"], int(row["label"])) for row in csv.DictReader(file, delimiter="\t")]
    train, test = rows[: options.train], rows[options.train : options.train + options.test]
    table = Utility(
        model=options.model,
        data=options.data.name,
        train=len(train),
        test=len(test),
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        command=shlex.join(["python", "-m", "tests.figures.utility", *sys.argv[1:]]),
        versions=runs.versions(),
        rows=(),
    )
    for path in (options.out, *options.take):
        if path.exists():
            table = with_runs(table, read_utility(path))
    for seed in options.seed or [0, 1]:
        for spec in options.defense or LADDER:
            defense = () if spec == "none" else tuple(spec.split("+"))
            if any(run.seed == seed for row in table.rows if row.defense == defense for run in row.runs):
                continue
            run = fine_tuned(table, train, test, defense, seed)
            table = with_run(table, defense, run)
            write_utility(options.out, table)
            sys.stdout.write(f"{spec}, seed {seed}: accuracy {run.accuracy:.3f}, MCC {run.mcc:.3f}, ")
            sys.stdout.write(f"{run.cpu_seconds:.0f} CPU-s\n")
            sys.stdout.flush()
    write_utility(options.out, table)
    for line in markdown(table):
        sys.stdout.write(line + "\n")


def fine_tuned(table: Utility, train: Rows, test: Rows, defense: tuple[str, ...], seed: int) -> UtilityRun:
    """Train from the pretrained weights behind a defense, and test."""
    began = time.process_time()
    model = textleak.load_model(
        table.model,
        weights="pretrained",
        task="classification",
        device="cpu",
        weights_seed=seeds.derive(seed, "weights"),
        num_labels=1 + max(label for _, label in (*train, *test)),
    )
    choices = [Choice.model_validate(spec) for spec in defense]
    defenses = [DEFENSES.build(choice.name, choice.options) for choice in choices]
    _train(model, train, defenses, table, seed)
    predicted = predictions(model, [sentence for sentence, _ in test])
    true = np.array([label for _, label in test])
    right = float((predicted == true).mean())
    return UtilityRun(
        seed=seed,
        accuracy=right,
        accuracy_error=math.sqrt(right * (1 - right) / len(test)),
        mcc=mcc(true, predicted),
        mcc_error=mcc_error(true, predicted),
        cpu_seconds=round(time.process_time() - began, 1),
    )


def _train(model: TextModel, train: Rows, defenses: Sequence[Defense], table: Utility, seed: int) -> None:
    """The server's side: Adam on the shared gradients, the order of the sentences drawn from the seed."""
    optimizer = torch.optim.Adam(model.parameters.values(), lr=table.learning_rate, fused=True)
    lengths = [len(sentence) for sentence, _ in train]
    steps = table.epochs * math.ceil(len(train) / table.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARM_UP * steps), (steps - step) / ((1 - WARM_UP) * steps))
    )
    order = seeds.generator(seed, "client")
    done = 0
    for _ in range(table.epochs):
        for indices in batches(lengths, table.batch_size, order):
            batch = [train[index] for index in indices]
            shared, _ = textleak.share(
                model,
                [sentence for sentence, _ in batch],
                [label for _, label in batch],
                defenses=defenses,
                seed=1_000_000 * (seed + 1) + done,  # other noise at each step
            )
            for name, parameter in model.parameters.items():
                parameter.grad = shared.gradients.get(name)
            optimizer.step()
            schedule.step()
            done += 1


def batches(lengths: Sequence[int], size: int, order: torch.Generator) -> list[list[int]]:
    """A random order of sentences in batches of much the same length, so that little padding is computed.

    As transformers' `LengthGroupedSampler`: a random order is sorted in blocks of 50 batches.
    """
    shuffled = torch.randperm(len(lengths), generator=order).tolist()
    blocks = [shuffled[start : start + 50 * size] for start in range(0, len(shuffled), 50 * size)]
    ordered = [index for block in blocks for index in sorted(block, key=lambda index: lengths[index])]
    found = [ordered[start : start + size] for start in range(0, len(ordered), size)]
    return [found[at] for at in torch.randperm(len(found), generator=order).tolist()]


@torch.no_grad()
def predictions(model: TextModel, sentences: Sequence[str], size: int = 50) -> np.ndarray:
    """The class of each sentence."""
    found: list[int] = []
    for start in range(0, len(sentences), size):
        batch = model.encode(sentences[start : start + size])
        logits = model.network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT).logits
        found += logits.argmax(-1).tolist()
    return np.array(found)


def mcc(true: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews' correlation coefficient (of two classes: Pearson's), 0 where one side is constant."""
    if len(set(true.tolist())) < 2 or len(set(predicted.tolist())) < 2:
        return 0.0
    return float(np.corrcoef(true, predicted)[0, 1])


def mcc_error(true: np.ndarray, predicted: np.ndarray, resamples: int = 2000) -> float:
    """Its standard error: the deviation over bootstrap draws of the test sentences."""
    draw = np.random.default_rng(0)
    drawn = [draw.integers(len(true), size=len(true)) for _ in range(resamples)]
    return float(np.std([mcc(true[index], predicted[index]) for index in drawn], ddof=1))


def with_run(table: Utility, defense: tuple[str, ...], run: UtilityRun) -> Utility:
    """The table with one more run; rows stay in the order in which they came."""
    rows = list(table.rows)
    for at, row in enumerate(rows):
        if same_defense(row.defense) == same_defense(defense):
            if all(other.seed != run.seed for other in row.runs):
                rows[at] = dataclasses.replace(row, runs=(*row.runs, run))
            return dataclasses.replace(table, rows=tuple(rows))
    return dataclasses.replace(table, rows=(*rows, UtilityRow(defense=defense, runs=(run,))))


def with_runs(table: Utility, other: Utility) -> Utility:
    """The table with another one's runs, if they were made in the same way."""
    for field in ("model", "data", "train", "test", "epochs", "batch_size", "learning_rate"):
        if getattr(table, field) != getattr(other, field):
            raise SystemExit(f"{field} is {getattr(other, field)} there and {getattr(table, field)} here")
    for row in other.rows:
        for run in row.runs:
            table = with_run(table, row.defense, run)
    return table


def markdown(table: Utility) -> list[str]:
    """A row a defense; ± is the standard error."""
    lines = ["| defense | accuracy | MCC | seeds | CPU-s a training |", "|---|---|---|---|---|"]
    for row in table.rows:
        lines.append(
            f"| {' + '.join(row.defense) or 'none'} | {100 * row.accuracy:.1f} ± {100 * row.accuracy_error:.1f} | "
            f"{row.mcc:.2f} ± {row.mcc_error:.2f} | {', '.join(str(run.seed) for run in row.runs)} | "
            f"{sum(run.cpu_seconds for run in row.runs) / len(row.runs):.0f} |"
        )
    return lines


if __name__ == "__main__":
    main()
