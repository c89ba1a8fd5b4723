"""What an audit comes to: a word for each outcome, and never one that says nothing leaks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from textleak.events import Recovery, Sentence, Stop
from textleak.jobs.advice import Facts, advice
from textleak.jobs.audit import _grouped
from textleak.jobs.verdict import Outcome, Word, judge

NOTHING = Outcome(attack="auto", seconds=12.0)
FACTS = Facts(
    proof="gradient",
    embeddings=True,
    vocabulary=5,
    tokens=8,
    hidden_size=16,
    noise=False,
    told_client=True,
    told_lengths=True,
)


def found(**what: object) -> Outcome:
    return dataclasses.replace(NOTHING, **what)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcome", "word"),
    [
        (found(proof="gradient", tokens=8, proved_tokens=8), Word.LEAKS),
        (found(proof="span", tokens=20, proved_tokens=8, proved_sentences=1), Word.LEAKS),
        (found(proof="span", tokens=10, proved_tokens=6), Word.LEAKS),
        (found(proof="span", tokens=10, proved_tokens=10, grouped=False), Word.PARTLY),
        (found(proof="span", tokens=10, proved_tokens=4, proved_sentences=1, grouped=False), Word.LEAKS),
        (found(proof="span", tokens=10, proved_tokens=6, grouped=False, match=0.6), Word.LEAKS),
        (found(match=0.51, recall=0.6, tokens=8), Word.LEAKS),
        (found(match=1.0, tokens=8), Word.LEAKS),
        (found(match=0.5, tokens=8), Word.PARTLY),
        (found(proof="span", tokens=10, proved_tokens=5), Word.PARTLY),
        (found(proof="span", tokens=1, proved_tokens=1, batch_tokens=10), Word.PARTLY),
        (found(match=0.0, recall=0.4, tokens=8), Word.PARTLY),
        (found(vocabulary=7), Word.PARTLY),
        (found(fits_as_well=True, tokens=8), Word.PARTLY),
        (found(proof_cut_off=True, cut_off=True, tokens=8), Word.PARTLY),
        (found(vocabulary=7, cut_off=True), Word.PARTLY),
        (found(tokens=8), Word.NOT_FOUND),
        (found(tokens=8, match=0.0, recall=0.0), Word.NOT_FOUND),
        (found(tokens=8, cut_off=True), Word.INCONCLUSIVE),
        (found(unread="No channel reads it."), Word.INCONCLUSIVE),
        (found(moved=False), Word.INCONCLUSIVE),
    ],
)
def test_each_outcome_has_its_word(outcome: Outcome, word: Word) -> None:
    verdict = judge(outcome)
    assert verdict.word is word
    assert verdict.sentence.endswith(".")
    assert "safe" not in verdict.sentence.replace("Not found is not safe", "")


def test_what_was_not_found_is_not_called_safe() -> None:
    assert "Not found is not safe" in judge(found(tokens=8)).sentence
    assert "auto" in judge(found(tokens=8)).sentence
    assert "12 s" in judge(found(tokens=8)).sentence


def test_a_half_is_not_most_of_the_text() -> None:
    assert judge(found(match=0.5, tokens=8)).word is Word.PARTLY
    assert judge(found(match=0.500001, tokens=8)).word is Word.LEAKS


@pytest.mark.parametrize(
    "partly", [{"vocabulary": 7}, {"match": 0.3}, {"recall": 0.3}, {"proved_tokens": 2, "tokens": 9}]
)
def test_an_attack_that_was_cut_off_says_so_beside_what_it_found(partly: dict[str, float]) -> None:
    for cut_off in (True, False):
        verdict = judge(found(**{"vocabulary": None, **partly, "cut_off": cut_off}))
        assert verdict.word is Word.PARTLY
        assert ("more time may find more" in verdict.sentence) is cut_off


def test_tokens_that_are_proved_one_by_one_are_no_text() -> None:
    verdict = judge(found(proof="span", tokens=28, proved_tokens=13, grouped=False))
    assert verdict.sentence == (
        "13 tokens came back, each proved by the layers' inputs; which of them stand together in a sentence isn't "
        "proved."
    )


def test_nothing_that_moved_gives_nothing_away_and_says_nothing_more() -> None:
    verdict = judge(found(moved=False, vocabulary=None))
    assert verdict.sentence.startswith("Nothing moved")


def test_advice_follows_from_how_the_text_came_back() -> None:
    lines = advice(Word.LEAKS, FACTS)
    assert any("--share no-embeddings" in line for line in lines)
    assert any("8 inputs in 16 dimensions" in line for line in lines)
    without = advice(Word.LEAKS, dataclasses.replace(FACTS, embeddings=False, tokens=16, noise=True))
    assert not any("no-embeddings" in line or "dimensions" in line or "noise" in line for line in without)


def test_advice_on_noise_says_what_was_measured_at_which_strength_and_where() -> None:
    table = (Path(__file__).parents[1] / "figures" / "README.md").read_text("utf-8")
    lines = " ".join(advice(Word.LEAKS, FACTS))
    assert "tests/figures/README.md#defenses" in lines
    for defense, left in (
        ("gaussian:sigma=1e-3", "54"),
        ("gaussian:sigma=1e-2", "0.6"),
        ("prune:ratio=0.9", "99.6"),
    ):
        assert f"| `{defense}` | {left} (" in table
        assert f"{left} %" in lines


def test_a_likely_text_is_told_as_that() -> None:
    verdict = judge(found(tokens=8, likely_tokens=8, vocabulary=7))
    assert verdict.word is Word.PARTLY
    assert verdict.sentence == (
        "A likely text of 8 tokens came back, not proved: in most such sentences a word is wrong, missing or out of "
        "place. "
        "The update names 7 tokens of its batch for certain."
    )
    assert judge(found(tokens=8, likely_tokens=8, vocabulary=None)).word is Word.PARTLY
    some, every = (judge(found(tokens=8, likely_tokens=8, sure_tokens=sure)).sentence for sure in (5, 8))
    assert " 5 of them fit far better than any other that was tried in their places" in some
    assert " All of them fit far better" in every
    assert judge(found(tokens=8, likely_tokens=8, match=0.0, recall=0.0)).word is Word.NOT_FOUND


def test_what_was_not_found_is_looked_for_further() -> None:
    lines = advice(Word.INCONCLUSIVE, dataclasses.replace(FACTS, told_client=False, told_lengths=False))
    assert any("--client" in line for line in lines)
    assert any("--know batch-size=N" in line for line in lines)
    assert not any("Share no embedding" in line for line in lines)
    untold = advice(Word.PARTLY, dataclasses.replace(FACTS, tokens=0))
    assert not any("More tokens a step" in line for line in untold)
    itself = advice(Word.INCONCLUSIVE, dataclasses.replace(FACTS, told_lengths=False, says_known=True))
    assert any("textleak share --know" in line for line in itself)
    assert not any("--know batch-size=N" in line for line in itself)


@pytest.mark.parametrize(
    ("stop", "said", "grouped"),
    [
        (Stop.PROVED, (), (True, True)),
        (Stop.READ, (True, False), (True, False)),
        (Stop.INTERRUPTED, (), (False, False)),  # before the attack said which tokens stand together
    ],
)
def test_tokens_stand_together_where_the_attack_proved_it(
    stop: Stop, said: tuple[bool, ...], grouped: tuple[bool, ...]
) -> None:
    sentences = (Sentence(positions=(), text="a"), Sentence(positions=(), text="b"))
    recovery = Recovery(sentences=sentences, stop=stop, final_loss=None, grouped=said)
    assert _grouped(recovery) == grouped
    assert _grouped(dataclasses.replace(recovery, sentences=sentences[:1], grouped=())) == (True,)
