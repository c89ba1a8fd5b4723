"""Holds what an update told against how it was made."""

from __future__ import annotations

from tests.inference.recorded import Recorded
from textleak.inference import Findings

RIGHT, OPEN, WRONG = "right", "can't tell", "WRONG"
ASKED = ("sent", "optimizer", "learning rate", "steps", "dropout", "dropout rate", "tokens", "LoRA")


def marks(findings: Findings, recorded: Recorded) -> dict[str, str]:
    """For each question that applies, whether its answer is right, left open or wrong."""
    found = {what: _mark(what, findings, recorded) for what in ASKED}
    return {what: mark for what, mark in found.items() if mark}


def _mark(what: str, findings: Findings, recorded: Recorded) -> str:
    settings = recorded.settings
    value = findings.value("dropout" if what == "dropout rate" else what)
    if settings.optimizer is None and what in ("optimizer", "learning rate", "steps"):
        return "" if value in (None, 0) else WRONG
    if what == "LoRA" and settings.rank is None:
        return "" if value is None else WRONG
    if value is None or (what == "dropout rate" and value == "on"):
        return OPEN
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
