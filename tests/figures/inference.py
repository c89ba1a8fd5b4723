"""What updates of plain training loops tell: a row an update, each answer held against how it was made.

python -m tests.figures.inference --seed 0 --count 20                   before any attack
python -m tests.figures.inference --seed 0 --count 20 --audit 120       after a whole audit of the checkpoints alone
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import textleak
from tests.inference.answers import ASKED, OPEN, RIGHT, UNDETERMINED, WRONG, marks
from tests.inference.recorded import Recorded, Settings, left, record
from textleak.inference import Findings, Told, told
from textleak.models import TextModel


def main() -> None:
    """Parse, record, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--evidence", action="store_true", help="print every answer too")
    parser.add_argument(
        "--audit",
        type=float,
        default=None,
        metavar="SECONDS",
        help="ask a whole audit, an attack with this limit",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = textleak.load_model(options.model)
    totals: Counter[tuple[str, str]] = Counter()
    rows: Counter[str] = Counter()
    for index in range(options.skip, options.count):
        settings = Settings.drawn(1000 * options.seed + index)
        began = time.process_time()
        recorded, findings, verdict = _asked(model, settings, options.audit)
        seconds = time.process_time() - began
        found = marks(findings, recorded)
        totals.update(found.items())
        rows[next(mark for mark in (WRONG, OPEN, UNDETERMINED, RIGHT) if mark in found.values())] += 1
        open_ = [what for what, mark in found.items() if mark == OPEN]
        wrong = [f"{what} {findings.value(what)!r}" for what, mark in found.items() if mark == WRONG]
        line = (
            f"{index:3d} {words(settings)}, {recorded.tokens} tokens: {len(found)} asked, {seconds:.1f} CPU-s"
        )
        line += verdict
        line += f"; can't tell {', '.join(open_)}" if open_ else ""
        line += "; undetermined learning rate" if UNDETERMINED in found.values() else ""
        line += f"; WRONG {', '.join(wrong)}" if wrong else ""
        sys.stdout.write(line + "\n")
        if options.evidence:
            for one in findings.told:
                sys.stdout.write(f"      {one.what}: {str(one.value)[:60]} | {one.evidence}\n")
            sys.stdout.write(f"      client: {findings.client}\n")
        sys.stdout.flush()
    for what in ASKED:
        counts = ", ".join(f"{totals[what, kind]} {kind}" for kind in (RIGHT, UNDETERMINED, OPEN, WRONG))
        sys.stdout.write(f"{what}: {counts}\n")
    sys.stdout.write(f"updates: {', '.join(f'{count} {kind}' for kind, count in rows.items())}\n")


def _asked(model: TextModel, settings: Settings, time_limit: float | None) -> tuple[Recorded, Findings, str]:
    """An update, what it tells, and what an audit of it came to, in words; without one, nothing."""
    if time_limit is None:
        recorded = record(model, settings)
        return recorded, told(recorded.sent, model, before=recorded.before, after=recorded.after), ""
    with tempfile.TemporaryDirectory() as folder:
        recorded = record(model, settings, Path(folder))
        said: Any = textleak.audit(**left(Path(folder)), time_limit=time_limit)
    findings = Findings(told=tuple(Told(**one) for one in said["told"]), client=tuple(said["client"]))
    found = [one["recovered"].strip() for one in said["sentences"]]
    right = sum(text in recorded.texts for text in found)
    return (
        recorded,
        findings,
        f", {said['verdict']}, proof {said['proof']}, {right} of {len(found)} sentences right",
    )


def words(settings: Settings) -> str:
    """How an update was made, in a few words."""
    made = "gradient"
    if settings.optimizer:
        several = "" if settings.steps == 1 else f" ({'fresh batches' if settings.fresh else 'one batch'})"
        made = f"{settings.optimizer} lr {settings.lr:g} decay {settings.weight_decay:g}"
        made += f", steps {settings.steps}{several}"
    parts = [made, f"B {settings.batch_size}", f"dropout {settings.dropout or 'off'}"]
    parts += [f"clip {settings.clip:g}"] if settings.clip else []
    parts += ["bf16"] if settings.bf16 else []
    parts += [f"LoRA {settings.rank}"] if settings.rank else []
    return ", ".join(parts)


if __name__ == "__main__":
    main()
