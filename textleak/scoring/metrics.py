"""The figures of a recovery, as plain functions on token ids.

A sentence is a tuple of token ids, special tokens included, -1 where an output leaves a position open; the
index is the position. Special tokens are never counted, whether right or wrong. Nothing here knows a model or
a tensor.

`R` references, `O` outputs; a *pair* is a reference and the output assigned to it (None where there is none).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cache
from itertools import zip_longest
from typing import Any

from textleak.assignment import assignment

Tokens = Sequence[int]
Pair = tuple[Tokens, Tokens | None]

OPEN = -1
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


def counted(tokens: Tokens, special: Collection[int] = ()) -> list[int]:
    """The tokens that count: neither special nor open, in order."""
    return [token for token in tokens if token != OPEN and token not in special]


def matches(reference: Tokens, output: Tokens | None, special: Collection[int] = ()) -> int:
    """How many positions of the reference hold exactly the right token in the output."""
    pairs = zip(reference, output or (), strict=False)
    return sum(right == token and token not in special for right, token in pairs)


def overlap(reference: Tokens, output: Tokens | None, special: Collection[int] = ()) -> int:
    """How many of the reference's tokens the output has at any position, each as often as it occurs."""
    shared = Counter(counted(reference, special)) & Counter(counted(output or (), special))
    return shared.total()


def assign(
    references: Sequence[Tokens], outputs: Sequence[Tokens], special: Collection[int] = ()
) -> list[int | None]:
    """The output that stands for each reference, by the Hungarian method.

    Maximizes the positions that match in the whole batch; among equal assignments, the tokens recovered at
    any position. The answer doesn't depend on the order of the sentences.

    Returns:
        For each of the R references the index of its output, None where there are too few outputs.
    """
    chosen: list[int | None] = [None] * len(references)
    if not references or not outputs:
        return chosen
    # Sorted, so that ties are broken by what the sentences are and not by how they came.
    rows = sorted(range(len(references)), key=lambda index: tuple(references[index]))
    columns = sorted(range(len(outputs)), key=lambda index: tuple(outputs[index]))
    # One match outweighs any number of tokens at wrong positions.
    weight = 1 + sum(len(reference) for reference in references)
    gain_RO = [
        [
            weight * matches(references[row], outputs[column], special)
            + overlap(references[row], outputs[column], special)
            for column in columns
        ]
        for row in rows
    ]
    for row, column in assignment(gain_RO, maximize=True):
        chosen[rows[row]] = columns[column]
    return chosen


def pair_up(
    references: Sequence[Tokens], outputs: Sequence[Tokens], special: Collection[int] = ()
) -> tuple[list[Pair], list[Tokens]]:
    """Each reference with its output, and the outputs that no reference was assigned to."""
    chosen = assign(references, outputs, special)
    pairs: list[Pair] = [
        (reference, None if index is None else outputs[index])
        for reference, index in zip(references, chosen, strict=True)
    ]
    taken = set(chosen)
    return pairs, [output for index, output in enumerate(outputs) if index not in taken]


def sentence_match_rate(reference: Tokens, output: Tokens | None, special: Collection[int] = ()) -> float:
    """Share of the reference's tokens that the output has at their own positions."""
    return _share(matches(reference, output, special), len(counted(reference, special)))


def sentence_recall(reference: Tokens, output: Tokens | None, special: Collection[int] = ()) -> float:
    """Share of the reference's tokens that the output has at any position (multiset recall)."""
    return _share(overlap(reference, output, special), len(counted(reference, special)))


def sentence_exact(reference: Tokens, output: Tokens | None, special: Collection[int] = ()) -> bool:
    """Whether the output has every token of the reference at its position and no other token."""
    if output is None:
        return False
    return all(
        right == token
        for right, token in zip_longest(reference, output, fillvalue=OPEN)
        if counted((right, token), special)
    )


def sentence_rouge(
    reference: Tokens, output: Tokens | None, special: Collection[int] = ()
) -> dict[str, float]:
    """ROUGE-1, -2 and -L F-measures on the model's own tokens.

    By rouge-score, but not with its tokenizer, which keeps only [a-z0-9]. As there, two equal sentences
    of one token have a ROUGE-2 of 0.
    """
    texts = [" ".join(map(str, counted(tokens or (), special))) for tokens in (reference, output)]
    return _rouge(_token_scorer(), *texts)


def words_rouge(reference: str, output: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L F-measures on text by rouge-score's own tokenizer, as published attacks report."""
    return _rouge(_word_scorer(), reference, output)


def token_match_rate(
    references: Sequence[Tokens], outputs: Sequence[Tokens], special: Collection[int] = ()
) -> float:
    """The token match rate of a batch, 0 to 1.

    For one sentence: positions whose token is exactly right, over the reference's tokens. For a batch: the
    mean over the references, each with the output that `assign` gives it; a missing output counts 0. Tokens
    of outputs that no reference was assigned to join the denominator as positions that are wrong.
    """
    pairs, unassigned = pair_up(references, outputs, special)
    return diluted(_mean(sentence_match_rate(*pair, special) for pair in pairs), pairs, unassigned, special)


def diluted(
    rate: float, pairs: Sequence[Pair], unassigned: Sequence[Tokens], special: Collection[int] = ()
) -> float:
    """A match rate with the tokens of unassigned outputs in its denominator."""
    wanted = sum(len(counted(reference, special)) for reference, _ in pairs)
    surplus = sum(len(counted(output, special)) for output in unassigned)
    return rate * _share(wanted, wanted + surplus)


def token_recall(
    references: Sequence[Tokens], outputs: Sequence[Tokens], special: Collection[int] = ()
) -> float:
    """Multiset recall of the references' tokens at any position of their outputs; mean over the batch."""
    pairs, _ = pair_up(references, outputs, special)
    return _mean(sentence_recall(*pair, special) for pair in pairs)


def exact_rate(
    references: Sequence[Tokens], outputs: Sequence[Tokens], special: Collection[int] = ()
) -> float:
    """Share of the references that were recovered without a single wrong, missing or surplus token."""
    pairs, _ = pair_up(references, outputs, special)
    return _mean(sentence_exact(*pair, special) for pair in pairs)


def rouge(
    references: Sequence[Tokens], outputs: Sequence[Tokens], special: Collection[int] = ()
) -> dict[str, float]:
    """ROUGE-1, -2 and -L F-measures on the model's tokens; means over the batch."""
    pairs, _ = pair_up(references, outputs, special)
    scores = [sentence_rouge(*pair, special) for pair in pairs]
    return {kind: _mean(score[kind] for score in scores) for kind in ROUGE_TYPES}


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _mean(values: Iterable[float]) -> float:
    numbers = [float(value) for value in values]
    return sum(numbers) / len(numbers) if numbers else 0.0


class _Whitespace:
    """The tokenizer rouge-score is given: one token id a word."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


@cache
def _token_scorer() -> Callable[[str, str], dict[str, Any]]:
    return _scorer(_Whitespace())


@cache
def _word_scorer() -> Callable[[str, str], dict[str, Any]]:
    return _scorer(None)


def _scorer(tokenizer: _Whitespace | None) -> Callable[[str, str], dict[str, Any]]:
    from textleak.scoring.rouge import RougeScorer

    score: Callable[[str, str], dict[str, Any]]
    score = RougeScorer(list(ROUGE_TYPES), use_stemmer=False, tokenizer=tokenizer).score
    return score


def _rouge(score: Callable[[str, str], dict[str, Any]], reference: str, output: str) -> dict[str, float]:
    return {kind: float(value.fmeasure) for kind, value in score(reference, output).items()}
