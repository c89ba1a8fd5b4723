"""How much leaked, in a sentence: what every viewer and every record says first of a result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from textleak.events import Stop
from textleak.words import count_of

# Our choices, of a picture's PSNR: an eye hardly tells the difference, sees what is shown, may guess it.
_ALIKE_DB, SEEN_DB, GUESSED_DB = 30.0, 20.0, 12.0
# And of a text's tokens, which part is most of it.
MOST = 0.75


def how_much(result: Mapping[str, Any]) -> str:
    """How much leaked, or an audit's verdict, in a sentence; and more where it was cut off, or weights are random."""
    if "verdict" in result:
        return f"{result['verdict']}: {result['verdict_reason']}"
    said = _of_pictures(result) if "images" in result else _of_text(result) + _named(result)
    said += _cut_off(result)
    if result.get("weights") == "random":
        said += " On random weights: no statement about a trained model."
    return said


_CUT_OFF = {
    Stop.TIME.value: " Time was up before the attack was through: more may find more.",
    Stop.INTERRUPTED.value: " It was interrupted before it was through: more time may find more.",
    Stop.STOPPED.value: " It was stopped before it was through: more time may find more.",
}


def _cut_off(result: Mapping[str, Any]) -> str:
    """That an attack was ended early, where more could have been found: a sentence with a space before it, or none."""
    whole = result.get("token_match_rate") == 1 or (result.get("psnr") or 0) >= _ALIKE_DB
    if whole or result.get("verified"):
        return ""
    return _CUT_OFF.get(str(result.get("stop")), "")


def _named(result: Mapping[str, Any]) -> str:
    """What rows name beside an answer that hasn't all of it: a sentence with a space before it, or none."""
    count = result.get("named_tokens")
    if not count or result.get("verified") or result.get("token_recall") == 1:
        return ""
    return (
        f" The word embedding's rows name {count_of(count, 'token')} of the batch for certain, in no order."
    )


# What an answer came through, in words.
_CHANNELS = {
    "embedding": "the embedding gradient",
    "span": "the span of a layer's gradient",
    "replay": "replaying the client's steps",
    "inputs together": "the inputs that the update holds most of",
    "moved rows": "the word embedding's rows that moved",
    "adapters' directions": "the directions that adapters moved in",
}


def _of_text(result: Mapping[str, Any]) -> str:
    channel = _CHANNELS.get(str(result.get("channel")), "gradient matching")
    if result.get("token_match_rate") is None:
        return _unscored(result, channel)
    found = tokens_found(result)
    unknown = result.get("unknown_tokens") or 0
    lost = f"{count_of(unknown, 'token')} {'has' if unknown == 1 else 'have'} no entry in this model's vocabulary"
    if not found.all:
        return f"No text could be recovered: {lost}." if unknown else "No token was recovered."
    worst = max(found.recovered, found.in_place) / found.all
    # Our choice of steps.
    if found.in_place == found.all:
        amount = "All of the text"
    elif worst == 1:
        amount = "Every token"
    elif worst >= MOST:
        amount = "Most of the text"
    elif worst >= 0.25:
        amount = "A part of the text"
    elif worst > 0:
        amount = "Little of the text"
    else:
        amount = ""
    apart = f"; {lost} and {'counts' if unknown == 1 else 'count'} nowhere" if unknown else ""
    if not amount:
        return f"No token was recovered: 0 of {found.all:,}{apart}."
    if unknown and amount == "All of the text":
        amount = "All of the text that the vocabulary has"
    return (
        f"{amount} leaked through {channel}: {found.recovered:,} of {count_of(found.all, 'token')} recovered, "
        f"{found.in_place:,} in place{apart}."
    )


def _unscored(result: Mapping[str, Any], channel: str) -> str:
    """What can be said without the truth."""
    if result.get("proof") == "span":
        return f"{count_of(result['proved_tokens'], 'token')} recovered through {channel}, each proved by it."
    if result.get("verified"):
        return f"The text was recovered through {channel}: its own gradient equals the shared one."
    if result.get("stop") == Stop.UNTOLD.value:
        return f"A text was found through {channel} whose own gradient equals the shared one; others fit as well."
    return f"A text was found through {channel}; without the truth nobody can say how much of it is right."


def _of_pictures(result: Mapping[str, Any]) -> str:
    psnr, count = result["psnr"], len(result["images"])
    what = "The picture" if count == 1 else f"The {count} pictures"
    if psnr is None:
        was = "was" if count == 1 else "were"
        if result.get("verified"):
            return f"{what} {was} recovered: the answer's own gradient equals the shared one."
        return f"{what} {was} looked for; without the truth nobody can say how near the answer is."
    if psnr >= _ALIKE_DB:
        return f"{what} leaked: PSNR {psnr:.1f} dB, nearly identical to the original."
    if psnr >= SEEN_DB:
        return f"{what} leaked in outline and color: PSNR {psnr:.1f} dB."
    if psnr >= GUESSED_DB:
        return f"Little of it leaked: PSNR {psnr:.1f} dB."
    return f"Nothing to be recognized was recovered: PSNR {psnr:.1f} dB."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """Tokens of the true sentences: recovered at any position, recovered in place, and how many there are."""

    recovered: int
    in_place: int
    all: int


def tokens_found(result: Mapping[str, Any]) -> Found:
    """What was recovered of a result's sentences."""
    recovered = in_place = total = 0
    for sentence in result.get("sentences", ()):
        # Rates times the count, not the tokens, as a redacted result has no tokens.
        count = int(sentence.get("tokens") or len(sentence.get("reference_tokens") or ()))
        total += count
        here = round((sentence.get("token_match_rate") or 0.0) * count)
        in_place += here
        recovered += max(here, round((sentence.get("token_recall") or 0.0) * count))
    return Found(recovered=recovered, in_place=in_place, all=total)
