"""Is a wrong answer ever proved, whatever the loss, told or not? `python -m tests.figures.corrupted_losses` tries.

Corrupted texts, as `corruptions` makes them, are handed to the door through which every found text goes: it reads the
labels that leave the gradient, soft ones too, guesses weighted classes, smoothed labels, sums and prompts where the
client keeps its loss to itself, and puts the answer to the exact test. Of a head with a loss of its own (numbers,
several classes, a class for each token, the ends of an answer) the labels are always read.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tests import conftest
from tests.figures.clients import client_of
from tests.figures.corruptions import KINDS, SENTENCES, Rows, Trial, corrupted, table
from textleak.attacks.span import answer
from textleak.clients.view import view_of
from textleak.events import Label, Stop
from textleak.exact.found import Found
from textleak.models import TextModel, load_model
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

# Losses of clients, by the task of the head.
LOSSES: dict[str, Sequence[str]] = {
    "classification": ("loss:smoothing=0.1", "loss:weights=0.3/2", "loss:reduction=sum"),
    "causal-lm": (
        "loss:smoothing=0.1",
        "loss:reduction=sum",
        "loss:reduction=mean-of-means",
        "loss:prompt=3",
        "loss:padding=left",
        "loss:padding=counted",
    ),
    **dict.fromkeys(
        ("regression", "multi-label", "token-classification"), ("one-step", "loss:reduction=sum")
    ),
    "question-answering": ("one-step",),
}
# Families that each task is tried on.
FAMILIES: dict[str, Sequence[str]] = {
    "classification": ("bert", "albert", "gpt2"),
    "causal-lm": ("gpt2", "llama"),
}
_SHARES = ("all", "no-embeddings")
_LARGEST_BATCH = 4


def trials(model: TextModel, spec: str, *, told: bool, number: int, seed: int = 0) -> Iterator[Trial]:
    """Answers of true and of `number` corrupted texts.

    Args:
        model: the public model.
        spec: the client.
        told: whether the server is told how it trains.
        number: corrupted texts in all.
        seed: of everything drawn.
    """
    draw = random.Random(f"{seed} {Path(model.name).name} {model.task} {spec} {told}")
    know = "batch-size" if told else "batch-size,no-client"
    known = f"{model.task} {spec}" + ("" if told else ", untold")
    done = 0
    while done < number:
        batch = draw.sample(SENTENCES, draw.randint(1, _LARGEST_BATCH))
        chosen = draw.choice(_SHARES)
        shared, secret = share(
            model, batch, client=client_of(spec), share=chosen, know=know, seed=draw.randrange(2**31)
        )
        yield _tried(model, shared, known, "", secret.ids, secret)
        for _ in range(min(5, number - done)):
            rows: Rows | None = None
            while rows is None:
                kind = draw.choice(KINDS)
                rows = corrupted(model, secret, kind, draw)
                # Whole sentences exchanged are the same batch, as labels are read anew.
                if rows is not None and sorted(rows) == sorted(map(list, secret.ids)):
                    rows = None
            yield _tried(model, shared, known, kind, rows, secret)
            done += 1


def _tried(
    model: TextModel,
    shared: SharedGradient,
    known: str,
    kind: str,
    rows: Sequence[Sequence[int]],
    secret: Secret,
) -> Trial:
    began = time.process_time()
    classes: tuple[Label, ...] = secret.labels or () if model.own_loss is None else ()
    found = Found(
        rows=tuple(map(tuple, rows)), classes=classes, batch_size=len(rows), complete=True, channel="span"
    )
    recovery = answer(view_of(shared, model), found)
    # Another text that fits as well may be the true one: that is the answer "can't be told".
    verified = {Stop.VERIFIED: True, Stop.UNTOLD: None}.get(recovery.stop, False)
    return Trial(
        model=known,
        share=shared.share,
        kind=kind,
        sentences=len(rows),
        tokens=sum(map(len, rows)),
        distance=recovery.final_loss,
        verified=verified,
        reason=" ".join(recovery.notes) or None,
        seconds=time.process_time() - began,
        text=tuple(model.decode(row) for row in rows) if kind else (),
    )


def suite(number: int, *, seed: int) -> Iterator[Trial]:
    """`number` corrupted texts in all, alike of each task's losses, told and not."""
    cases = [
        (task, family, spec, told)
        for task, specs in LOSSES.items()
        for family in FAMILIES.get(task, ("bert",))
        for spec, told in itertools.product(specs, (True, False))
        if told or spec != "one-step"
    ]
    each = -(-number // len(cases))
    with tempfile.TemporaryDirectory() as folder:
        for task, family, spec, told in cases:
            place = conftest.write_toy(family, Path(folder))
            model = load_model(str(place), weights="random", task=task, device="cpu")
            for trial in trials(model, spec, told=told, number=each, seed=seed):
                yield dataclasses.replace(trial, model=f"{family} {trial.model}")


def main() -> int:
    """Parse, try, print; 1 where a wrong text was verified."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--number", type=int, default=700, help="corrupted texts in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every trial here too, one a line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for trial in suite(options.number, seed=options.seed):
        found.append(trial)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(trial)) + "\n")
        if trial.kind and trial.verified:
            sys.stdout.write(f"WRONG {trial}\n")
            sys.stdout.flush()
    sys.stdout.write("\n".join(table(found)) + "\n")
    return int(any(trial.kind and trial.verified for trial in found))


if __name__ == "__main__":
    sys.exit(main())
