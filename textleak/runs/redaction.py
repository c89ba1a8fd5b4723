"""Records without what is private, and without what only the truth tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from textleak.events import Event, Phase, Progress, Sentence

# Settings that tell of the private batch: its text, classes, and files.
_PRIVATE = ("sentences", "labels", "pictures", "conversions")
_TEXTS = ("reference", "recovered", "reference_tokens", "recovered_tokens", "label", "recovered_label")
# What an update tells of an audit's batch in words of it.
TOLD_OF_TEXT = ("vocabulary", "labels")
# What only the truth tells: what was in the batch, and every figure that compares with it.
_TRUTH = (
    "reference",
    "reference_tokens",
    "label",
    "exact",
    "token_match_rate",
    "token_recall",
    "exact_rate",
    "unknown_tokens",
    "summary",
)
_SCORES = ("rouge1", "rouge2", "rougeL", "rouge1_words", "rouge2_words", "rougeL_words", "stages", "surplus")
_PICTURE_SCORES = ("psnr", "mse", "ssim", "lpips", "pictures", "conversions")


def redacted_event(event: Event) -> Event:
    """The event without any text, token id, label or words that could quote one."""
    if isinstance(event, Progress):
        return dataclasses.replace(
            event,
            sentences=tuple(_redacted_sentence(s) for s in event.sentences),
            others=(),
            image=(),
            labels=(),
            detail="",
        )
    if isinstance(event, Phase):
        return dataclasses.replace(event, detail="")
    return event


def _redacted_sentence(sentence: Sentence) -> Sentence:
    positions = tuple(
        dataclasses.replace(position, id=-1, text="", candidates=()) for position in sentence.positions
    )
    return Sentence(positions=positions, text="")


def redacted_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without the private batch."""
    return _told_without_text({key: value for key, value in settings.items() if key not in _PRIVATE})


def redacted_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with figures only."""
    return _told_without_text(_without(result, ("notes", "surplus", *_PRIVATE), emptied=_TEXTS))


def _told_without_text(kept: dict[str, Any]) -> dict[str, Any]:
    """The same; where it is of an audit, without what the update tells in words of the batch."""
    if "told" in kept:
        kept["told"] = [one for one in kept["told"] if one["what"] not in TOLD_OF_TEXT]
    return kept


def without_truth(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result as an attacker could write it, who doesn't know what was in the batch."""
    return _without(result, (*_TRUTH, *_SCORES, *_PICTURE_SCORES))


def _without(
    result: Mapping[str, Any], left_out: Collection[str], emptied: Collection[str] = ()
) -> dict[str, Any]:
    """A result without some fields, its sentences' and pictures' too, and with null for others of these."""
    kept = {key: value for key, value in result.items() if key not in left_out}
    for samples in ("sentences", "images"):
        if samples in result:
            kept[samples] = [
                {
                    key: None if key in emptied else value
                    for key, value in sample.items()
                    if key not in left_out
                }
                for sample in result[samples]
            ]
    return kept
