"""Holds what an update told against how it was made."""

from __future__ import annotations

from tests.inference.recorded import Recorded
from textleak.inference import Findings, Value
from textleak.inference.rate import TIMES_CLIP, TIMES_LEFT, TIMES_STEPS

RIGHT, UNDETERMINED, OPEN, WRONG = "right", "undetermined", "can't tell", "WRONG"
ASKED = ("sent", "optimizer", "learning rate", "steps", "dropout", "dropout rate", "tokens", "LoRA")


def marks(findings: Findings, recorded: Recorded) -> dict[str, str]:
    """For each question that applies, whether its answer is right, left open or wrong.

    Of a clipped step of SGD the update holds the rate times the clipped norm alone, of one in bfloat16 the rate too
    roughly to say that none was clipped, of Adam's several steps without decay little but the rates' sum: it is
    undetermined where that is told, and rightly.
    """
    found = {what: _mark(what, findings, recorded) for what in ASKED}
    wrong = dict.fromkeys(_wrong(findings, recorded), WRONG)
    return {what: mark for what, mark in found.items() if mark} | wrong


def _wrong(findings: Findings, recorded: Recorded) -> list[str]:
    """Answers to other questions that are wrong: words that were in no batch, sentences that a step hadn't."""
    words, count = findings.value("vocabulary"), findings.value("sentences")
    return [
        *(["vocabulary"] if isinstance(words, list) and not recorded.looked_up.issuperset(words) else []),
        *(["sentences"] if isinstance(count, int) and count != recorded.settings.batch_size else []),
    ]


def _mark(what: str, findings: Findings, recorded: Recorded) -> str:
    settings = recorded.settings
    value = findings.value("dropout" if what == "dropout rate" else what)
    if settings.optimizer is None and what in ("optimizer", "learning rate", "steps"):
        return "" if value in (None, 0) else WRONG
    if what == "LoRA" and settings.rank is None:
        return "" if value is False else WRONG
    if value is None or (what == "dropout rate" and value == "on"):
        return OPEN
    if isinstance(value, dict) and what == "learning rate":
        return UNDETERMINED if _is_product(value, recorded) else WRONG
    rate = settings.dropout or 0.0
    right = {
        "sent": lambda: value == ("update" if settings.optimizer else "gradient"),
        "optimizer": lambda: value == settings.optimizer,
        "learning rate": lambda: abs(value / settings.lr - 1) <= 0.01,
        "steps": lambda: (value == 1) == (settings.steps == 1),
        "dropout": lambda: (value == 0.0) == (rate == 0.0),
        "dropout rate": lambda: abs(value - rate) <= 0.02,
        "tokens": lambda: value == recorded.tokens,
        "LoRA": lambda: value["rank"] == settings.rank,
    }[what]()
    return RIGHT if right else WRONG


def _is_product(value: dict[str, Value], recorded: Recorded) -> bool:
    settings = recorded.settings
    true = {TIMES_STEPS: settings.lr * settings.steps}
    if settings.steps == 1:  # where nothing was clipped, all is left
        true[TIMES_LEFT] = settings.lr * recorded.clipped
    if recorded.clipped < 1:
        true[TIMES_CLIP] = settings.lr * (settings.clip or 0.0)
    return all(what in true and abs(told / true[what] - 1) <= 0.01 for what, told in value.items())
