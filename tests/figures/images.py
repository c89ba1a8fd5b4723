"""The README's figures on pictures, measured again: `python -m tests.figures.images [OPTIONS]`, one call a row.

Attacks batches of the sample pictures (or of a folder's), each gradient through a file and back, and prints what came
back, then a line a setting. Several --defense make a ladder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from textleak import seeds
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.data.pictures import chosen_pictures
from textleak.defenses import DEFENSES
from textleak.jobs.parts import chosen_client
from textleak.models.loading.images import load_image_model
from textleak.private.share import share
from textleak.scoring.pixels import score_pictures
from textleak.settings import Choice, parse_assignment
from textleak.shared.gradient import SharedGradient

# Zhu et al. 2019, sec. 5: noise, half precision, pruned shares.
LADDER = (
    "none",
    *(
        f"{noise}={size}"
        for noise in ("gaussian:sigma", "laplace:scale")
        for size in ("1e-4", "1e-3", "1e-2", "1e-1")
    ),
    "quantize:to=fp16",
    "quantize:to=bf16",
    *(f"prune:ratio={ratio}" for ratio in ("0.01", "0.1", "0.2", "0.3", "0.5", "0.7")),
)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--attack", default="dlg")
    parser.add_argument("--size", type=int, help="height and width; default the model's own")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="of the attack")
    parser.add_argument("--dataset", default=None, help="a folder of pictures; default the samples")
    parser.add_argument("--first", type=int, default=0, help="number of the first picture")
    parser.add_argument("--limit", type=int, default=20, help="batches")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--know", default=None)
    parser.add_argument(
        "--client", action="append", default=[], help="name[:key=value,...], as for textleak image"
    )
    parser.add_argument("--defense", action="append", metavar="SPEC", help="repeatable: a row each")
    parser.add_argument("--ladder", action="store_true", help="a row for each defense of DLG's paper")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all records here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = LADDER if options.ladder else tuple(options.defense or ["none"])
    records = []
    for defense in rows:
        found = [record for seed in options.seed or [0] for record in one_seed(options, defense, seed)]
        sys.stdout.write(_summary(options, defense, found) + "\n")
        sys.stdout.flush()
        records += found
        if options.json:
            options.json.write_text(json.dumps(records, indent=1), encoding="utf-8")


def one_seed(options: argparse.Namespace, defense: str, seed: int) -> list[dict[str, Any]]:
    """Figures of every batch for one seed and defense, printed as they come."""
    model = load_image_model(
        options.model, weights_seed=seeds.derive(seed, "weights"), device="cpu", size=options.size
    )
    settings: dict[str, Any] = {}
    for assignment in options.set:
        settings |= parse_assignment(assignment)
    choices = () if defense == "none" else (Choice.model_validate(defense),)
    defenses = [DEFENSES.build(choice.name, choice.options) for choice in choices]
    kinds = map(Choice.model_validate, options.client)
    client = chosen_client(kinds)
    found = []
    for number in range(options.limit):
        first = options.first + number * options.batch_size
        indices = list(range(first, first + options.batch_size))
        pictures = chosen_pictures([], indices, options.dataset, model.shape)
        values_BCHW = torch.stack([picture.values_CHW for picture in pictures])
        shared, secret = share(
            model,
            values_BCHW,
            client=client,
            defenses=defenses,
            know=options.know,
            seed=1000 * seed + number,
        )
        with tempfile.TemporaryDirectory() as folder:
            shared.save(Path(folder) / "gradient.safetensors")
            shared = SharedGradient.load(Path(folder) / "gradient.safetensors")
        began, cpu = time.perf_counter(), time.process_time()
        steps = begin(ATTACKS.build(options.attack, settings), shared, model, seed=1000 * seed + number)
        recovery = to_end(steps)
        recovered_BCHW = torch.tensor(recovery.image).permute(0, 3, 1, 2)
        scores = score_pictures(secret.pictures_BCHW, secret.labels, recovered_BCHW, recovery.labels)
        record = {
            "defense": defense,
            "seed": seed,
            "pictures": [picture.name for picture in pictures],
            "psnr": [one.psnr for one in scores.images],
            "ssim": [one.ssim for one in scores.images],
            "labels_right": sorted(recovery.labels) == sorted(secret.labels)
            and all(one.label == one.recovered_label for one in scores.images),
            "seconds": time.perf_counter() - began,
            "cpu_seconds": time.process_time() - cpu,
            "evaluations": recovery.evaluations,
            "final_loss": recovery.final_loss,
            "stop": recovery.stop.name,
            "notes": recovery.notes,
        }
        found.append(record)
        sys.stdout.write(
            f"  {' '.join(f'{value:5.1f}' for value in record['psnr'])} dB  labels {record['labels_right']}  "
            f"{record['seconds']:6.1f} s  {record['cpu_seconds']:6.1f} CPU-s  {record['evaluations']:5d} evaluations  "
            f"{record['stop']} {', '.join(record['pictures'])} {' '.join(record['notes'])}\n"
        )
        sys.stdout.flush()
    return found


def _summary(options: argparse.Namespace, defense: str, found: Sequence[dict[str, Any]]) -> str:
    psnr = [value for record in found for value in record["psnr"]]
    return (
        f"{options.model} {options.attack} {' '.join(options.set)} B={options.batch_size} defense {defense}: "
        f"PSNR mean {statistics.fmean(psnr):.1f} median {statistics.median(psnr):.1f} least {min(psnr):.1f} "
        f"SSIM {statistics.fmean(value for r in found for value in r['ssim']):.3f} "
        f">= 40 dB {sum(value >= 40 for value in psnr)}/{len(psnr)} "
        f"labels {sum(r['labels_right'] for r in found)}/{len(found)} "
        f"seconds median {statistics.median(r['seconds'] for r in found):.1f} "
        f"most {max(r['seconds'] for r in found):.1f} "
        f"CPU-seconds median {statistics.median(r['cpu_seconds'] for r in found):.1f} "
        f"evaluations median {statistics.median(r['evaluations'] for r in found):.0f}"
    )


if __name__ == "__main__":
    main()
