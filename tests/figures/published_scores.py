"""An evaluation's R-1/R-2 as LAMP's authors count them: `python -m tests.figures.published_scores DIR ...`.

Their code (eth-sri/lamp, attack.py, commit c140a00) decodes texts with [CLS] and [SEP], which rouge-score reads as two
words more that are always right. Beside these: by words without them, and by the model's tokens.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from textleak.evaluation.records import Record
from textleak.evaluation.store import read_records
from textleak.scoring.rouge import RougeScorer

_SCORER = RougeScorer(["rouge1", "rouge2"])


def counted(reference: str, recovered: str) -> tuple[float, float]:
    """R-1 and R-2, F-measures from 0 to 1, with the two special tokens."""
    found = _SCORER.score(f"[CLS] {reference} [SEP]", f"[CLS] {recovered} [SEP]")
    return found["rouge1"].fmeasure, found["rouge2"].fmeasure


def line(records: Iterable[Record]) -> str:
    """A cell's figures, its sentences' means × 100."""
    there = list(records)
    sentences = [sentence for record in there for sentence in record.sentences]
    published = zip(*(counted(s.reference, s.recovered) for s in sentences), strict=True)
    shown = {
        "as published": published,
        "words": ([s.rouge1_words for s in sentences], [s.rouge2_words for s in sentences]),
        "tokens": ([s.rouge1 for s in sentences], [s.rouge2 for s in sentences]),
    }
    figures = (
        f"{name} {'/'.join(f'{100 * statistics.fmean(each):.1f}' for each in both)}"
        for name, both in shown.items()
    )
    cpu = statistics.median(record.cpu_seconds for record in there)
    steps = sorted({record.steps for record in there})
    return f"{len(there)} batches; {', '.join(figures)}; {cpu:.0f} CPU-s a batch, {steps[0]} to {steps[-1]} steps"


def main() -> None:
    """Print a line a cell."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", type=Path, nargs="+", help="of evaluations")
    for folder in parser.parse_args().folders:
        done = (record for record in read_records(folder) if record.status == "done")
        for cell, same in itertools.groupby(sorted(done, key=lambda r: str(r.cell)), key=lambda r: r.cell):
            sys.stdout.write(f"{cell.attack} B={cell.batch_size} {cell.data}: {line(same)}\n")


if __name__ == "__main__":
    main()
