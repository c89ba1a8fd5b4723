"""What an audit comes to, in a word and a sentence: a pure function of what was found.

LEAKS: text that is proved, or more than half of the tokens where the truth is known. PARTLY: tokens or the vocabulary,
not the text: tokens that are proved each by itself are no text while nothing proves which of them stand together. NOT
FOUND: this attack found nothing within this time, which says nothing of others. INCONCLUSIVE: it was cut off, or
couldn't read the update at all.
"""

from __future__ import annotations

import dataclasses
import enum

from textleak.events import EARLY, Stop
from textleak.words import count_of, seconds_in_words

# Share of the tokens at their place from which text counts as leaked (the issue's; our words for it are in README).
_LEAKED = 0.5
# What a result says of an attack that ended before it was through.
CUT_OFF = EARLY | {Stop.STEPS.value}


class Word(enum.Enum):
    """The verdict in a word."""

    LEAKS = "LEAKS"
    PARTLY = "PARTLY"
    NOT_FOUND = "NOT FOUND"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was found.

    Attributes:
        attack: its name.
        seconds: it took.
        moved: whether anything in the update is not zero.
        unread: why the attack could not work on the update; None where it could.
        cut_off: whether it ended before it was through: time, steps, an interrupt.
        tokens: of the answer that text turns into, special ones aside.
        likely_tokens: of them that are likely, as all of a sentence explains the update best.
        sure_tokens: of these that every other one tried in their places explains far worse.
        batch_tokens: of the whole batch, those of the tokenizer too, where the update tells or the server knows.
        proof: "gradient", "span" or None.
        proved_tokens: of them that are proved.
        proved_sentences: sentences all of whose tokens are proved, and that they stand together.
        grouped: whether it is proved of every sentence which tokens stand in it.
        fits_as_well: whether the answer's own update equals this one, and so do other texts'.
        proof_cut_off: whether the answer's own update equals this one, and time was up before others' were compared.
        match: share of tokens at their place; None where the truth isn't known.
        recall: share of tokens anywhere, likewise.
        vocabulary: tokens that the update names by itself, in no order; None where it doesn't.
    """

    attack: str
    seconds: float
    moved: bool = True
    unread: str | None = None
    cut_off: bool = False
    tokens: int = 0
    likely_tokens: int = 0
    sure_tokens: int = 0
    batch_tokens: int | None = None
    proof: str | None = None
    proved_tokens: int = 0
    proved_sentences: int = 0
    grouped: bool = True
    fits_as_well: bool = False
    proof_cut_off: bool = False
    match: float | None = None
    recall: float | None = None
    vocabulary: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an audit comes to.

    Attributes:
        word: in a word.
        sentence: in a sentence.
    """

    word: Word
    sentence: str


def judge(found: Outcome) -> Verdict:
    """The verdict on what was found."""
    if not found.moved:
        return Verdict(
            word=Word.INCONCLUSIVE,
            sentence="Nothing moved: every number of this update is zero. It gives nothing away, and says nothing of "
            "a training that moves something.",
        )
    return _leaks(found) or _partly(found) or _nothing(found)


def _leaks(found: Outcome) -> Verdict | None:
    proved = (
        "whose own update equals this one" if found.proof == "gradient" else "proved by the layers' inputs"
    )
    if found.match is not None and found.match > _LEAKED:
        much = "All" if found.match == 1 else f"{100 * found.match:.0f} % of the tokens"
        beside = f", {proved}" if found.proof else ""
        text = " of the text" if found.match == 1 else ""
        return Verdict(word=Word.LEAKS, sentence=f"{much}{text} came back at {_place(found)}{beside}.")
    if found.proof == "gradient":
        return Verdict(
            word=Word.LEAKS, sentence=f"The text came back, {count_of(found.tokens, 'token')} {proved}."
        )
    most = 2 * found.proved_tokens > max(found.tokens, found.batch_tokens or 0)
    if found.proved_sentences or (most and found.grouped):
        what = count_of(found.proved_tokens, "token")
        whole = (
            f", {count_of(found.proved_sentences, 'sentence')} among them whole"
            if found.proved_sentences
            else ""
        )
        return Verdict(word=Word.LEAKS, sentence=f"Text came back: {what}{whole}, {_each(found)}{proved}.")
    return None


def _each(found: Outcome) -> str:
    return "each " if found.proved_tokens > 1 else ""


def _place(found: Outcome) -> str:
    return "its place" if found.match == 1 else "their place"


def _partly(found: Outcome) -> Verdict | None:
    cut = " The attack was cut off; more time may find more." if found.cut_off else ""
    if found.proved_tokens:
        what = (
            f"{count_of(found.proved_tokens, 'token')} came back, {_each(found)}proved by the layers' inputs"
        )
        rest = "not the text" if found.grouped else "which of them stand together in a sentence isn't proved"
        return _part(f"{what}; {rest}.{cut}")
    if found.match:
        return _part(
            f"{100 * found.match:.0f} % of the tokens came back at their place, no more than half of the text.{cut}"
        )
    if found.fits_as_well:
        return _part(
            "A text came back whose own update equals this one; others fit as well, so it isn't proved."
        )
    if found.proof_cut_off:
        return _part(
            "A text came back whose own update equals this one; time was up before it was proved that no other's does."
        )
    if found.likely_tokens and found.match is None:
        named = (
            f" The update names {count_of(found.vocabulary, 'token')} of its batch for certain."
            if found.vocabulary
            else ""
        )
        return _part(
            f"A likely text of {count_of(found.likely_tokens, 'token')} came back, not proved: in most such "
            f"sentences a word is wrong, missing or out of place.{_sure(found)}{named}{cut}"
        )
    if found.vocabulary:
        return _part(
            f"The update names {count_of(found.vocabulary, 'token')} of its batch; their order wasn't found.{cut}"
        )
    if found.recall:
        return _part(f"{100 * found.recall:.0f} % of the tokens came back, none of them at its place.{cut}")
    return None


def _sure(found: Outcome) -> str:
    """How many of the likely tokens stand out, in a sentence with a space before it."""
    if not found.sure_tokens:
        return ""
    of = "All" if found.sure_tokens == found.likely_tokens else f"{found.sure_tokens:,}"
    return f" {of} of them fit far better than any other that was tried in their places, and such are seldom wrong."


def _part(sentence: str) -> Verdict:
    return Verdict(word=Word.PARTLY, sentence=sentence)


def _nothing(found: Outcome) -> Verdict:
    after = seconds_in_words(found.seconds)
    if found.unread is not None:
        return Verdict(
            word=Word.INCONCLUSIVE,
            sentence=f"{found.attack} can't read this update: {found.unread} What leaks can't be told.",
        )
    if found.cut_off:
        return Verdict(
            word=Word.INCONCLUSIVE,
            sentence=f"{found.attack} was cut off after {after} with nothing proved; more time may find more.",
        )
    return Verdict(
        word=Word.NOT_FOUND,
        sentence=f"{found.attack} found nothing that it can prove in {after}. Not found is not safe: another attack, "
        "or more time, may find it.",
    )
