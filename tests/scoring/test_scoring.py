"""What the figures mean: hand-computed cases, invariances, and agreement of the `evaluate` adapters."""

from __future__ import annotations

import dataclasses
import random

import pytest

from textleak import scoring
from textleak.events import Position, Recovery, Sentence, Stop
from textleak.scoring import metrics

CLS, SEP = 1, 2
SPECIAL = frozenset({0, CLS, SEP})


def framed(*tokens: int) -> tuple[int, ...]:
    return (CLS, *tokens, SEP)


def random_batch(rng: random.Random, *, references: int, outputs: int) -> tuple[list, list]:
    def sentence() -> tuple[int, ...]:
        return framed(*(rng.randrange(3, 9) for _ in range(rng.randrange(2, 7))))

    return [sentence() for _ in range(references)], [sentence() for _ in range(outputs)]


UNKNOWN = 99


class Letters:
    """A vocabulary in which token 3 is "c", 4 is "d" and so on; 99 stands for what it lacks."""

    special_ids = SPECIAL
    unknown_ids = frozenset({UNKNOWN})

    def token_texts(self, ids):
        return [f"<{id}>" if id in SPECIAL else chr(ord("a") + id - 1) for id in ids]

    def decode(self, ids):
        return " ".join(self.token_texts([id for id in ids if id not in SPECIAL]))


@dataclasses.dataclass(frozen=True)
class FakeSecret:
    ids: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...] | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(Letters().decode(ids) for ids in self.ids)


def answer(*sentences: tuple[int, ...], labels: tuple[int, ...] | None = None) -> Recovery:
    letters = Letters()
    return Recovery(
        sentences=tuple(
            Sentence(
                positions=tuple(
                    Position(position=at, id=id, text=letters.token_texts([id])[0], special=id in SPECIAL)
                    for at, id in enumerate(ids)
                ),
                text=letters.decode(ids),
                label=labels[index] if labels else None,
            )
            for index, ids in enumerate(sentences)
        ),
        stop=Stop.CONVERGED,
        final_loss=0.0,
        steps=1,
        evaluations=1,
        channel="matching",
    )


def test_a_perfect_answer_scores_one_everywhere():
    rng = random.Random(0)
    for _ in range(20):
        references, _ = random_batch(rng, references=3, outputs=0)
        assert metrics.token_match_rate(references, references, SPECIAL) == 1
        assert metrics.token_recall(references, references, SPECIAL) == 1
        assert metrics.exact_rate(references, references, SPECIAL) == 1
        assert metrics.rouge(references, references, SPECIAL) == {"rouge1": 1, "rouge2": 1, "rougeL": 1}


def test_the_order_of_the_batch_changes_no_figure():
    rng = random.Random(1)
    for _ in range(50):
        references, outputs = random_batch(rng, references=4, outputs=rng.randrange(1, 7))
        figures = []
        for _ in range(3):
            rng.shuffle(references)
            rng.shuffle(outputs)
            batch = (references, outputs, SPECIAL)
            figures.append(
                (
                    metrics.token_match_rate(*batch),
                    metrics.token_recall(*batch),
                    metrics.exact_rate(*batch),
                    *metrics.rouge(*batch).values(),
                )
            )
        assert figures[1] == pytest.approx(figures[0])
        assert figures[2] == pytest.approx(figures[0])


def test_the_assignment_maximizes_the_positions_that_match():
    from itertools import permutations

    rng = random.Random(2)
    for _ in range(30):
        references, outputs = random_batch(rng, references=4, outputs=4)
        chosen = scoring.assign(references, outputs, SPECIAL)
        got = sum(metrics.matches(references[r], outputs[o], SPECIAL) for r, o in enumerate(chosen))
        best = max(
            sum(metrics.matches(references[r], outputs[o], SPECIAL) for r, o in enumerate(order))
            for order in permutations(range(4))
        )
        assert got == best


def test_special_tokens_are_not_counted_whether_right_or_wrong():
    reference = framed(3, 4, 5, 6)
    assert metrics.token_match_rate([reference], [framed(3, 9, 5, 9)], SPECIAL) == 0.5
    wrong_frame = (7, 3, 9, 5, 9, 7)
    assert metrics.token_match_rate([reference], [wrong_frame], SPECIAL) == 0.5
    special_in_the_middle = (CLS, 3, SEP, 5, 6, SEP)
    assert metrics.token_match_rate([reference], [special_in_the_middle], SPECIAL) == 0.75


def test_the_right_words_in_the_wrong_order_are_recalled_but_do_not_match():
    reference, reversed_ = framed(3, 4, 5, 6), framed(6, 5, 4, 3)
    assert metrics.token_match_rate([reference], [reversed_], SPECIAL) == 0
    assert metrics.token_recall([reference], [reversed_], SPECIAL) == 1
    assert metrics.rouge([reference], [reversed_], SPECIAL) == {"rouge1": 1, "rouge2": 0, "rougeL": 0.25}


def test_recall_counts_a_token_as_often_as_it_occurs():
    assert metrics.token_recall([framed(3, 3, 3, 4)], [framed(3, 5, 5, 5)], SPECIAL) == 0.25
    assert metrics.token_recall([framed(3, 4)], [framed(3, 3)], SPECIAL) == 0.5


def test_a_missing_output_counts_zero():
    references = [framed(3, 4), framed(5, 6)]
    assert metrics.token_match_rate(references, [framed(5, 6)], SPECIAL) == 0.5
    assert metrics.exact_rate(references, [framed(5, 6)], SPECIAL) == 0.5
    assert metrics.token_recall(references, [], SPECIAL) == 0
    assert metrics.rouge(references, [], SPECIAL) == {"rouge1": 0, "rouge2": 0, "rougeL": 0}


def test_tokens_of_surplus_outputs_join_the_denominator():
    # 4 right positions over 4 reference tokens and the 2 non-special tokens of the surplus output.
    outputs = [framed(8, 8), framed(3, 4, 5, 6)]
    assert metrics.token_match_rate([framed(3, 4, 5, 6)], outputs, SPECIAL) == pytest.approx(4 / 6)
    assert metrics.token_recall([framed(3, 4, 5, 6)], outputs, SPECIAL) == 1


def test_a_sentence_is_exact_only_without_surplus_or_missing_tokens():
    reference = framed(3, 4, 5)
    assert metrics.sentence_exact(reference, framed(3, 4, 5), SPECIAL)
    assert metrics.sentence_exact(reference, (9, 3, 4, 5), SPECIAL) is False
    assert metrics.sentence_exact(reference, framed(3, 4, 5, 6), SPECIAL) is False
    assert metrics.sentence_exact(reference, framed(3, 4), SPECIAL) is False
    assert metrics.sentence_exact(reference, None, SPECIAL) is False
    assert metrics.sentence_exact(reference, (CLS, 3, 4, 5), SPECIAL)


def test_rouge_on_tokens_sees_what_rouge_on_words_cannot():
    assert scoring.words_rouge("?!", "...")["rouge1"] == 0
    assert metrics.sentence_rouge((30, 31), (30, 32))["rouge1"] == 0.5
    assert scoring.words_rouge("The cat sat.", "the cat sat") == {"rouge1": 1, "rouge2": 1, "rougeL": 1}


def test_an_answer_is_scored_against_the_secret():
    secret = FakeSecret(ids=(framed(3, 4, 5), framed(6, 7)), labels=(1, 0))
    scores = scoring.score(answer(framed(6, 7), framed(3, 9, 5), labels=(0, 1)), secret, Letters())
    first, second = scores.sentences
    assert (first.reference, first.recovered) == ("c d e", "c i e")
    assert (first.reference_tokens, first.recovered_tokens) == (("c", "d", "e"), ("c", "i", "e"))
    assert (first.label, first.recovered_label) == (1, 1)
    assert first.token_match_rate == pytest.approx(2 / 3)
    assert second.exact
    assert scores.token_match_rate == pytest.approx((2 / 3 + 1) / 2)
    assert scores.exact_rate == 0.5
    assert scores.to_json()["sentences"][1]["rouge1"] == 1


def test_listed_tokens_stand_beside_each_other_by_position():
    secret = FakeSecret(ids=(framed(3, 4, 5),))
    scores = scoring.score(answer((CLS, 3, metrics.OPEN, 5, 7, 8, SEP)), secret, Letters())
    assert scores.sentences[0].reference_tokens == ("c", "d", "e")
    assert scores.sentences[0].recovered_tokens == ("c", "", "e", "g", "h")


def test_an_answer_of_nothing_scores_zero():
    scores = scoring.score(answer(), FakeSecret(ids=(framed(3, 4),)), Letters())
    assert scores.token_match_rate == scores.rouge1 == 0
    assert scores.sentences[0].recovered_tokens == ("", "")


def test_open_positions_are_no_tokens():
    recovery = answer((CLS, 3, metrics.OPEN, 5, SEP))
    assert scoring.output_ids(recovery.sentences[0]) == (CLS, 3, metrics.OPEN, 5, SEP)
    scores = scoring.score(recovery, FakeSecret(ids=(framed(3, 4, 5),)), Letters())
    assert scores.sentences[0].recovered == "c e"
    assert scores.sentences[0].token_recall == pytest.approx(2 / 3)


@pytest.mark.slow  # importing evaluate takes seconds
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_evaluate_adapters_agree_with_the_plain_functions(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    from evaluate import combine

    from textleak.scoring.adapters import ExactRate, Rouge, TokenMatchRate, TokenRecall

    together = combine([TokenMatchRate(), TokenRecall(), ExactRate(), Rouge()])
    rng = random.Random(3)
    for _ in range(500):
        count = rng.randrange(1, 5)
        references, outputs = random_batch(rng, references=count, outputs=count)
        got = together.compute(predictions=outputs, references=references, special_ids=sorted(SPECIAL))
        batch = (references, outputs, SPECIAL)
        assert got == pytest.approx(
            {
                "token_match_rate": metrics.token_match_rate(*batch),
                "token_recall": metrics.token_recall(*batch),
                "exact_rate": metrics.exact_rate(*batch),
                **metrics.rouge(*batch),
            }
        )
    assert TokenMatchRate().compute(predictions=[], references=[]) == {"token_match_rate": 0}
    one_by_one = TokenMatchRate().compute(
        predictions=[framed(5, 6), framed(3, 4)],
        references=[framed(3, 4), framed(5, 6)],
        special_ids=sorted(SPECIAL),
        batch_size=1,
    )
    assert one_by_one == {"token_match_rate": 0}
    accumulated = TokenRecall()
    accumulated.add_batch(predictions=[framed(5, 6)], references=[framed(6, 7)])
    assert accumulated.compute(special_ids=sorted(SPECIAL)) == {"token_recall": 0.5}


def test_a_token_that_stands_for_what_the_vocabulary_lacks_is_no_content():
    secret = FakeSecret(ids=(framed(3, UNKNOWN, UNKNOWN, 4, 5),))
    scores = scoring.score(answer(framed(3, UNKNOWN, UNKNOWN, 4, 6)), secret, Letters())
    (one,) = scores.sentences
    assert scores.unknown_tokens == one.unknown_tokens == 2
    assert one.reference_tokens == ("c", "d", "e")
    assert one.recovered_tokens == ("c", "d", "f")
    assert scores.token_match_rate == scores.token_recall == pytest.approx(2 / 3)
    assert one.rouge1 == pytest.approx(2 / 3)


def test_a_sentence_of_which_some_is_unknown_tokens_never_came_back_word_for_word():
    secret = FakeSecret(ids=(framed(3, UNKNOWN), framed(UNKNOWN, UNKNOWN)))
    scores = scoring.score(answer(*secret.ids), secret, Letters())
    assert [one.exact for one in scores.sentences] == [False, False]
    assert [one.token_match_rate for one in scores.sentences] == [1.0, 0.0]
    invented = scoring.score(answer(framed(UNKNOWN, UNKNOWN)), FakeSecret(ids=(framed(3, 4),)), Letters())
    assert (invented.token_match_rate, invented.token_recall, invented.unknown_tokens) == (0.0, 0.0, 0)
