"""What a step of a continuous attack takes: `python -m tests.figures.steps --data cola.tsv --attack lamp [--together]`.

Batches of the first sentences of a file (columns label and sentence) are attacked one after the other, or with
`--together` as `textleak eval --together` does; told are the process's CPU-milliseconds a step of one batch, what
viewers are told among them, from the fifth step on, and each batch's loss at the end. Without `--together` it also runs
on commits before that was there, in an environment of their own, so that old and new can take turns.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import textleak
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin_on
from textleak.clients.view import View, view_of
from textleak.events import Progress

# Steps before the first that counts: the first checks every layer's rule.
_BEFORE = 5


def followed(
    view: View, attack: str, options: dict[str, object], seed: int
) -> tuple[dict[int, float], float]:
    """The process's CPU time after each step that is told of, and the last step's loss."""
    times, loss = dict[int, float](), float("nan")
    for event in begin_on(ATTACKS.build(attack, options), view, seed=seed):
        if isinstance(event, Progress) and event.losses:
            times[event.step], loss = time.process_time(), event.losses[0]
    return times, loss


def main() -> None:
    """Share, attack, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="tab-separated, columns label and sentence")
    parser.add_argument("--attack", choices=("lamp", "tag", "dlg"), required=True)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--batches", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=15, help="a multiple of 5")
    parser.add_argument("--together", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with asked.data.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    model = textleak.load_model(asked.model)
    options: dict[str, object] = {"steps": asked.steps}
    if asked.attack == "lamp":  # the steps alone
        options |= {"starts": 1, "moves": 1, "moves_every": asked.steps + 1}
    views = []
    for batch in range(asked.batches):
        some = rows[batch * asked.batch_size : (batch + 1) * asked.batch_size]
        shared, _ = textleak.share(
            model,
            [row["sentence"] for row in some],
            [int(row["label"]) for row in some],
            know="batch-size,lengths,labels",
            seed=batch,
        )
        views.append(view_of(shared, model))
    found = run_all(views, asked.attack, options, together=asked.together)
    if asked.together:
        total = max(times[asked.steps] for times, _ in found) - max(times[_BEFORE] for times, _ in found)
    else:
        total = sum(times[asked.steps] - times[_BEFORE] for times, _ in found)
    each = 1e3 * total / (asked.steps - _BEFORE) / asked.batches
    losses = " ".join(f"{loss:.5g}" for _, loss in found)
    sys.stdout.write(f"{asked.attack} B={asked.batch_size}: {each:.1f} CPU-ms a step of a batch; {losses}\n")


def run_all(
    views: list[View], attack: str, options: dict[str, object], *, together: bool
) -> list[tuple[dict[int, float], float]]:
    """Every batch's times and loss."""
    if not together:
        return [followed(view, attack, options, seed) for seed, view in enumerate(views)]
    from textleak.matching import Pool

    pool = Pool()
    runs: list[Callable[[], tuple[dict[int, float], float]]] = [
        functools.partial(followed, dataclasses.replace(view, pool=pool), attack, options, seed)
        for seed, view in enumerate(views)
    ]
    return list(pool.run(runs))


if __name__ == "__main__":
    main()
