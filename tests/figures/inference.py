"""What updates of plain training loops tell: a row an update, each answer held against how it was made.

python -m tests.figures.inference --seed 0 --count 20                   before any attack
python -m tests.figures.inference --seed 0 --count 20 --audit 120       and after a whole audit of the checkpoints alone
python -m tests.figures.inference --seed 0 --count 20 --changed         after defenses that nobody tells of

Both counts of the latter stand side by side: what the update alone tells, and what an audit has filled in from a text
that it has proved.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import textleak
from tests.inference.answers import ASKED, OPEN, RIGHT, UNDETERMINED, WRONG, marks
from tests.inference.recorded import Recorded, Settings, left, record
from textleak.defenses import DEFENSES
from textleak.defenses.base import Step
from textleak.inference import Findings, Kind, Told, told
from textleak.settings import Choice

_WORST = (WRONG, OPEN, UNDETERMINED, RIGHT)


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
    parser.add_argument("--changed", action="store_true", help="by one or two defenses that nobody tells of")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = textleak.load_model(options.model)
    counted = {when: Counts() for when in ("before any attack", "after the audit")}
    for index in range(options.skip, options.count):
        settings = Settings.drawn(1000 * options.seed + index)
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            recorded = record(model, settings, Path(folder) if options.audit else None)
            defenses = ""
            if options.changed:
                sent, defenses = changed(recorded)
                kind: Kind = "update" if recorded.after else "gradient"
                findings = told(sent, model, before=recorded.before, kind=kind)
            else:
                findings = told(recorded.sent, model, before=recorded.before, after=recorded.after)
            line = f"{index:3d} {words(settings)}{defenses}, {recorded.tokens} tokens, "
            line += f"{time.process_time() - began:.1f} CPU-s: "
            line += counted["before any attack"].added(findings, recorded)
            if options.audit:
                findings, verdict = _audited(recorded, Path(folder), options.audit)
                line += f"\n    {verdict}, {time.process_time() - began:.1f} CPU-s: "
                line += counted["after the audit"].added(findings, recorded)
        sys.stdout.write(line + "\n")
        if options.evidence:
            for one in findings.told:
                sys.stdout.write(f"      {one.what}: {str(one.value)[:60]} | {one.evidence}\n")
            sys.stdout.write(f"      client: {findings.client}\n")
        sys.stdout.flush()
    for when, counts in counted.items():
        if counts.updates:
            sys.stdout.write(f"{when}:\n{counts}\n")


def changed(recorded: Recorded) -> tuple[dict[str, Tensor], str]:
    """What one or two defenses that are drawn make of what was sent, and which they are."""
    draws = random.Random(f"changed {recorded.settings.seed}")
    sigma = float(torch.cat([t.flatten() for t in recorded.sent.values()]).std()) * 10 ** draws.uniform(-3, 1)
    kept = 10 ** draws.uniform(-3.5, -0.01)
    choices = [
        f"gaussian:sigma={sigma:.3g}",
        f"laplace:scale={sigma:.3g}",
        f"topk:ratio={kept:.3g}",
        f"prune:ratio={1 - kept:.6g}",
        f"prune:ratio={1 - kept:.6g},which=random",
        *("sign", "quantize:to=int8", "quantize:to=bf16", "quantize:to=fp16"),
    ]
    chosen = draws.sample(choices, draws.choice([1, 2]))
    step = Step(batch_size=recorded.settings.batch_size, generator=torch.Generator().manual_seed(0))
    sent = dict(recorded.sent)
    for spec in chosen:
        choice = Choice.model_validate(spec)
        sent = dict(DEFENSES.build(choice.name, choice.options).on_shared(sent, step))
    return sent, f", {' + '.join(chosen)}"


class Counts:
    """How many answers and updates are right, undetermined, open or wrong."""

    def __init__(self) -> None:
        """None yet."""
        self.answers: Counter[tuple[str, str]] = Counter()
        self.updates: Counter[str] = Counter()

    def added(self, findings: Findings, recorded: Recorded) -> str:
        """Count one more update, and say in words how its answers were."""
        found = marks(findings, recorded)
        self.answers.update(found.items())
        self.updates[next(mark for mark in _WORST if mark in found.values())] += 1
        open_ = [what for what, mark in found.items() if mark == OPEN]
        wrong = [f"{what} {findings.value(what)!r}" for what, mark in found.items() if mark == WRONG]
        parts = [f"{len(found)} asked"]
        parts += [f"can't tell {', '.join(open_)}"] if open_ else []
        parts += ["undetermined learning rate"] if UNDETERMINED in found.values() else []
        parts += [f"WRONG {', '.join(wrong)}"] if wrong else []
        return "; ".join(parts)

    def __str__(self) -> str:
        """A line a question, and one of whole updates."""
        lines = [
            f"{what}: {', '.join(f'{self.answers[what, kind]} {kind}' for kind in reversed(_WORST))}"
            for what in ASKED
        ]
        lines.append(f"updates: {', '.join(f'{count} {kind}' for kind, count in self.updates.items())}")
        return "\n".join(lines)


def _audited(recorded: Recorded, folder: Path, time_limit: float) -> tuple[Findings, str]:
    """What an audit of the checkpoints fills in, and what it came to, in words."""
    said: Any = textleak.audit(**left(folder), time_limit=time_limit)
    findings = Findings(told=tuple(Told(**one) for one in said["told"]), client=tuple(said["client"]))
    found = [one["recovered"].strip() for one in said["sentences"]]
    right = sum(text in recorded.texts for text in found)
    return findings, f"{said['verdict']}, proof {said['proof']}, {right} of {len(found)} sentences right"


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
