"""What a proved text tells of an update that the update alone left open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from textleak.events import Sentence
from textleak.inference.clipped import WHAT as CLIPPED
from textleak.inference.rate import TIMES_LEFT, is_round
from textleak.words import count_of

_RATE = "learning rate"


def read_back(
    told: Sequence[Mapping[str, Any]],
    sentences: Sequence[Sentence],
    *,
    proof: str,
    rate: float | None = None,
    norm: float | None = None,
) -> list[dict[str, Any]]:
    """The answers, with those that were open filled in.

    Args:
        told: each {what, value, evidence}.
        sentences: the text, proved in full.
        proof: "gradient" where its own update equals the one that was sent, "span" where each token is proved.
        rate: at which it does, where that was fitted.
        norm: that its gradient was clipped to before, likewise.
    """
    learnt = _of_the_text(sentences, proof)
    if rate is not None:
        learnt[_RATE] = _fitted(rate)
    if norm is not None:
        evidence = (
            "Fitted: clipped to this norm, the gradient of the text that was found makes this very update."
        )
        learnt[CLIPPED] = {"value": float(f"{norm:.4g}"), "evidence": evidence}
    return [
        {"what": one["what"], **learnt[one["what"]]}
        if one["what"] in learnt and (one["value"] is None or (one["what"] == _RATE and rate is not None))
        else dict(one)
        for one in told
    ]


def _of_the_text(sentences: Sequence[Sentence], proof: str) -> dict[str, dict[str, Any]]:
    tokens = [(p.position, p.id) for sentence in sentences for p in sentence.positions]
    batch = f"{count_of(len(sentences), 'sentence')} of {count_of(len(tokens), 'token')}"
    if proof != "gradient":
        # Which dropout was at work, so that each of them has an input of its own.
        evidence = f"From the recovered text, {batch}, each proved."
        return {
            "tokens": {"value": len(tokens), "evidence": evidence},
            "sentences": {"value": len(sentences), "evidence": evidence},
        }
    evidence = f"From the recovered text, {batch}, whose own update equals this one"
    learnt: dict[str, dict[str, Any]] = {
        "tokens": {"value": len(set(tokens)), "evidence": f"{evidence} (equal ones once)."},
        "sentences": {"value": len(sentences), "evidence": f"{evidence}."},
        "dropout": {"value": 0.0, "evidence": f"{evidence} with nothing dropped."},
    }
    labels = [sentence.label for sentence in sentences]
    if all(isinstance(label, int) for label in labels):
        learnt["labels"] = {"value": labels, "evidence": f"{evidence} with these labels."}
    return learnt


def _fitted(rate: float) -> dict[str, Any]:
    value = float(f"{rate:.4g}")
    evidence = "Fitted: at this rate the text that was found has this very update"
    if is_round(rate):
        return {"value": value, "evidence": f"{evidence}."}
    return {
        "value": {TIMES_LEFT: value},
        "evidence": f"{evidence}. It is no number of two figures, so the gradient may have been clipped besides.",
    }
