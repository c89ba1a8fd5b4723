"""Match rate against n/D, as a table and a picture: `python -m tests.figures.n_over_d RECORDS.json ... --out FILE.svg`.

Reads what `python -m tests.figures --json` wrote. DAGER's published points are drawn beside ours; its paper gives B,
not n, so n is estimated as B times the mean length of the sentences measured here (special tokens counted).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

# Petrov et al. 2024, table 2: BERT-base (D = 768), ROUGE-1 by batch size.
DAGER = {
    "cola": {1: 1.0, 2: 1.0, 4: 0.940, 8: 0.678},
    "rotten_tomatoes": {1: 1.0, 2: 0.981, 4: 0.668, 8: 0.371},
}
DAGER_HIDDEN = 768
_NEEDS = "The picture needs matplotlib: pip install '.[figures]'"


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("records", type=Path, nargs="+", help="written by python -m tests.figures --json")
    parser.add_argument("--out", type=Path, help="picture (.svg or .png)")
    options = parser.parse_args()
    records = [record for path in options.records for record in json.loads(path.read_text(encoding="utf-8"))]
    for line in table(records):
        sys.stdout.write(line + "\n")
    if options.out:
        draw(records, options.out)


def table(records: list[dict[str, Any]]) -> list[str]:
    """One Markdown row a model, data set and batch size."""
    lines = [
        "| model | data | B | batches | n/D | token match | exact | verified | CPU-s a batch |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key, group in sorted(groups(records).items()):
        model, data, size = key
        ratios = [record["tokens"] / record["hidden_size"] for record in group]
        lines.append(
            f"| {model} | {data} | {size} | {len(group)} | {statistics.fmean(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) | {mean(group, 'token_match_rate'):.3f} | "
            f"{mean(group, 'exact_rate'):.3f} | {sum(bool(record['verified']) for record in group)} | "
            f"{statistics.median(record['cpu_seconds'] for record in group):.1f} |"
        )
    return lines


def draw(records: list[dict[str, Any]], out: Path) -> None:
    """Every batch as a point, DAGER's published means as crosses."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit(_NEEDS) from None
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    for (model, data), group in sorted(by(records, "model", "data").items()):
        ratios = [record["tokens"] / record["hidden_size"] for record in group]
        matches = [record["token_match_rate"] for record in group]
        axes.plot(ratios, matches, "o", alpha=0.5, label=f"auto, {model}, {data}")
    lengths = {
        data: sum(record["tokens"] for record in group) / sum(record["batch_size"] for record in group)
        for (data,), group in by(records, "data").items()
    }
    for data, points in DAGER.items():
        if data in lengths:
            ratios = [size * lengths[data] / DAGER_HIDDEN for size in points]
            axes.plot(
                ratios, list(points.values()), "x--", label=f"DAGER, BERT-base, {data} (R-1, published)"
            )
    axes.set_xlabel("tokens in the batch over hidden size, n/D")
    axes.set_ylabel("token match rate")
    axes.set_ylim(-0.03, 1.05)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(out)


def groups(records: list[dict[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Records by model, data set and batch size."""
    return by(records, "model", "data", "batch_size")


def by(records: list[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Records by some of their entries."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for record in records:
        found.setdefault(tuple(record[name] for name in names), []).append(record)
    return found


def mean(records: list[dict[str, Any]], figure: str) -> float:
    """Mean of one figure."""
    return statistics.fmean(record[figure] for record in records)


if __name__ == "__main__":
    main()
