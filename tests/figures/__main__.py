"""The README's recovery figures, measured again in one call: `python -m tests.figures --data FILE.tsv ...`.

Takes the first sentences of a file (columns label and sentence), attacks each shared gradient, and prints what came
back, then a line a seed. Everything that an attack sees goes through a gradient file and back.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import textleak
from textleak import scoring, seeds
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES
from textleak.proof.certificate import certify
from textleak.settings import Choice, parse_assignment


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="tab-separated, columns label and sentence")
    parser.add_argument("--model", default="bert-tiny")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--task", default="auto")
    parser.add_argument("--limit", type=int, default=20, help="batches")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--most-words", type=int, default=None, help="leave longer sentences out")
    parser.add_argument("--most-tokens", type=int, default=None, help="leave longer sentences out")
    parser.add_argument("--share", default="all")
    parser.add_argument("--know", default=None)
    parser.add_argument("--defense", action="append", default=[], metavar="SPEC")
    parser.add_argument("--attack", default="match")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="of the attack")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all records here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with options.data.open(encoding="utf-8") as file:
        rows = [row["sentence"] for row in csv.DictReader(file, delimiter="\t")]
    rows = [row for row in rows if options.most_words is None or len(row.split()) <= options.most_words]
    records = [record for seed in options.seed or [0] for record in one_seed(options, rows, seed)]
    if options.json:
        options.json.write_text(json.dumps(records, indent=1), encoding="utf-8")


def one_seed(options: argparse.Namespace, rows: list[str], seed: int) -> list[dict[str, Any]]:
    """Figures of every batch for one seed, printed as they come."""
    model = textleak.load_model(
        options.model, weights=options.weights, task=options.task, weights_seed=seeds.derive(seed, "weights")
    )
    if options.most_tokens is not None:
        rows = [row for row in rows if len(model.encode([row]).ids_BT[0]) <= options.most_tokens]
    settings: dict[str, Any] = {}
    for assignment in options.set:
        settings |= parse_assignment(assignment)
    found = []
    for index in range(min(options.limit, len(rows) // options.batch_size)):
        sentences = rows[index * options.batch_size : (index + 1) * options.batch_size]
        choices = [Choice.model_validate(spec) for spec in options.defense]
        shared, secret = textleak.share(
            model,
            sentences,
            share=options.share,
            defenses=[DEFENSES.build(choice.name, choice.options) for choice in choices],
            know=options.know,
            seed=seed,
        )
        with tempfile.TemporaryDirectory() as folder:
            shared.save(Path(folder) / "gradient.safetensors")
            shared = textleak.SharedGradient.load(Path(folder) / "gradient.safetensors")
        began, began_working = time.perf_counter(), time.process_time()
        recovery = textleak.recover(shared, model, options.attack, seed=seed, **settings)
        seconds, worked = time.perf_counter() - began, time.process_time() - began_working
        scores = scoring.score(recovery, secret, model)
        certificate = certify(view_of(shared, model), recovery.sentences)
        stages = {name: scoring.score_sentences(s, secret, model) for name, s in recovery.stages.items()}
        record = {
            "model": options.model,
            "data": options.data.stem,
            "batch_size": len(sentences),
            "tokens": sum(map(len, secret.ids)),
            "hidden_size": model.hidden_size,
            "seed": seed,
            "sentences": sentences,
            "recovered": [sentence.text for sentence in recovery.sentences],
            "token_match_rate": scores.token_match_rate,
            "token_recall": scores.token_recall,
            "exact_rate": scores.exact_rate,
            "rouge1": scores.rouge1,
            "rouge2": scores.rouge2,
            "seconds": seconds,
            "cpu_seconds": worked,
            "evaluations": recovery.evaluations,
            "verified": certificate.verified,
            "stages": {
                name: {"token_match_rate": s.token_match_rate, "token_recall": s.token_recall}
                for name, s in stages.items()
            },
        }
        found.append(record)
        sys.stdout.write(
            f"  {record['token_match_rate']:.2f} {seconds:6.1f} s (CPU {worked:5.1f} s)  "
            f"{recovery.evaluations:5d} evaluations  verified {certificate.verified} {recovery.stop.name}  "
            f"{record['recovered']}\n"
        )
        sys.stdout.flush()
    sys.stdout.write(_summary(options, model.weights, seed, found) + "\n")
    sys.stdout.flush()
    return found


def _summary(options: argparse.Namespace, weights: str, seed: int, found: list[dict[str, Any]]) -> str:
    seconds = sorted(record["seconds"] for record in found)
    line = (
        f"seed {seed} {options.model} ({weights}) B={options.batch_size} share {options.share} "
        f"{options.attack} {' '.join([*options.set, *options.defense])}: match {_mean(found, 'token_match_rate'):.3f} "
        f"recall {_mean(found, 'token_recall'):.3f} exact {_mean(found, 'exact_rate'):.3f} "
        f"R-1/R-2 {100 * _mean(found, 'rouge1'):.1f}/{100 * _mean(found, 'rouge2'):.1f} "
        f"verified {sum(bool(record['verified']) for record in found)}/{len(found)} "
        f"seconds median {statistics.median(seconds):.1f} most {seconds[-1]:.1f}, "
        f"of CPU median {statistics.median(record['cpu_seconds'] for record in found):.1f} "
        f"evaluations median {statistics.median(record['evaluations'] for record in found):.0f}"
    )
    alone = [record["stages"]["continuous"] for record in found if "continuous" in record["stages"]]
    if alone:
        line += (
            f"; continuous stage alone (in {len(alone)}): match {_mean(alone, 'token_match_rate'):.2f} "
            f"recall {_mean(alone, 'token_recall'):.2f}"
        )
    return line


def _mean(records: list[dict[str, Any]], figure: str) -> float:
    return statistics.fmean(record[figure] for record in records)


if __name__ == "__main__":
    main()
