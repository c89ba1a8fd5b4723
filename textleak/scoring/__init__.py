"""How much was recovered: an attack's answer beside what was really in the batch.

This room and `runs` are the only ones that meet the truth. `metrics` holds the figures as plain functions on
token ids; `adapters` the same as `evaluate.Metric` classes (a slow import, so only on request); `score` puts
an answer's figures together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from textleak.events import Label, Recovery, Sentence
from textleak.scoring import metrics
from textleak.scoring.metrics import (
    assign,
    exact_rate,
    rouge,
    token_match_rate,
    token_recall,
    words_rouge,
)

__all__ = [
    "Scores",
    "SentenceScore",
    "assign",
    "exact_rate",
    "named_rate",
    "output_ids",
    "rouge",
    "score",
    "score_sentences",
    "token_match_rate",
    "token_recall",
    "uncounted",
    "words_rouge",
]


class Vocabulary(Protocol):
    """What scoring needs of a model: which tokens are special or unknown, and how tokens read."""

    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def unknown_ids(self) -> frozenset[int]: ...
    def decode(self, ids: Sequence[int], /) -> str: ...
    def token_texts(self, ids: Sequence[int], /) -> list[str]: ...


class Reference(Protocol):
    """What was in the batch (`textleak.private.share.Secret`)."""

    @property
    def sentences(self) -> tuple[str, ...]: ...
    @property
    def ids(self) -> tuple[tuple[int, ...], ...]: ...
    @property
    def labels(self) -> tuple[Label, ...] | None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SentenceScore:
    """One reference and the output assigned to it.

    Attributes:
        reference: the sentence that was in the batch.
        recovered: the decoded output, "" where there is none.
        reference_tokens: the tokens that count (special and unknown ones left out), as the tokenizer writes them.
        recovered_tokens: what the output has at the same positions ("" for nothing), then its surplus.
        token_match_rate: share of `reference_tokens` that are right, position by position.
        token_recall: share of `reference_tokens` found at any position.
        exact: every token right and none too many; never so where some of the text is unknown tokens.
        rouge1: F-measure on the model's tokens, likewise `rouge2` and `rougeL`.
        rouge1_words: F-measure by rouge-score's own tokenizer, likewise `rouge2_words` and `rougeL_words`.
        label: the true class, None for tasks whose labels are the tokens.
        recovered_label: the class that the attack found.
        unknown_tokens: of the reference, those that the vocabulary has no entry for. Whoever finds one has none of
            the text in it, so they count in no figure.
    """

    reference: str
    recovered: str
    reference_tokens: tuple[str, ...]
    recovered_tokens: tuple[str, ...]
    token_match_rate: float
    token_recall: float
    exact: bool
    rouge1: float
    rouge2: float
    rougeL: float
    rouge1_words: float
    rouge2_words: float
    rougeL_words: float
    label: Label | None
    recovered_label: Label | None
    unknown_tokens: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """The figures of a batch: means over its references, 0 to 1.

    Attributes:
        sentences: in the order of the references.
        surplus: decoded outputs that no reference was assigned to; they lower `token_match_rate`.
        unknown_tokens: of all references, in no figure.

    Example:
        >>> scores = textleak.score(recovery, secret, model)
        >>> scores.sentences[0].recovered_tokens, scores.exact_rate
        (('the', 'cat', 'sat'), 1.0)
    """

    sentences: tuple[SentenceScore, ...]
    token_match_rate: float
    token_recall: float
    exact_rate: float
    rouge1: float
    rouge2: float
    rougeL: float
    rouge1_words: float
    rouge2_words: float
    rougeL_words: float
    surplus: tuple[str, ...] = ()
    unknown_tokens: int = 0

    def _repr_html_(self) -> str:
        """Each sentence's tokens by what became of them, for a notebook."""
        from textleak.scoring.chips import chips

        rates = f"token match rate {self.token_match_rate:.2f}, recall {self.token_recall:.2f}"
        rows = (chips(one.reference_tokens, one.recovered_tokens) for one in self.sentences)
        return f"<p>{rates}</p>{''.join(rows)}"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, under the names that `run --json` uses."""
        return dataclasses.asdict(self)


def output_ids(sentence: Sentence) -> tuple[int, ...]:
    """Token ids of an answer by position, `metrics.OPEN` where it leaves one open."""
    by_position = {position.position: position.id for position in sentence.positions}
    return tuple(by_position.get(index, metrics.OPEN) for index in range(max(by_position, default=-1) + 1))


def score(recovery: Recovery, secret: Reference, model: Vocabulary) -> Scores:
    """The figures of an attack's answer."""
    return score_sentences(recovery.sentences, secret, model)


def score_sentences(sentences: Sequence[Sentence], secret: Reference, model: Vocabulary) -> Scores:
    """The figures of any answer, for example of one stage of an attack."""
    special = uncounted(model)
    outputs = [output_ids(sentence) for sentence in sentences]
    chosen = assign(secret.ids, outputs, special)
    scores = [
        _score_one(
            index,
            secret,
            None if output is None else sentences[output],
            model,
        )
        for index, output in enumerate(chosen)
    ]
    pairs, unassigned = metrics.pair_up(secret.ids, outputs, special)

    def mean(figure: str) -> float:
        return sum(float(getattr(one, figure)) for one in scores) / len(scores) if scores else 0.0

    return Scores(
        sentences=tuple(scores),
        token_match_rate=metrics.diluted(mean("token_match_rate"), pairs, unassigned, special),
        token_recall=mean("token_recall"),
        exact_rate=mean("exact"),
        rouge1=mean("rouge1"),
        rouge2=mean("rouge2"),
        rougeL=mean("rougeL"),
        rouge1_words=mean("rouge1_words"),
        rouge2_words=mean("rouge2_words"),
        rougeL_words=mean("rougeL_words"),
        surplus=tuple(model.decode(metrics.counted(output)) for output in unassigned),
        unknown_tokens=sum(one.unknown_tokens for one in scores),
    )


def uncounted(model: Vocabulary) -> frozenset[int]:
    """Tokens that are in no figure: special ones, and the one that stands for what the vocabulary lacks."""
    return model.special_ids | model.unknown_ids


def named_rate(named: frozenset[int], secret: Reference, model: Vocabulary) -> float | None:
    """Which part of a batch's distinct tokens are among those that its gradient names; None where none is named."""
    own = {token for ids in secret.ids for token in ids} - uncounted(model)
    return len(own & named) / len(own) if own and named else None


def _score_one(index: int, secret: Reference, answer: Sentence | None, model: Vocabulary) -> SentenceScore:
    special = uncounted(model)
    reference = secret.ids[index]
    unknown = sum(token in model.unknown_ids for token in reference)
    output = None if answer is None else output_ids(answer)
    recovered = "" if output is None else model.decode(metrics.counted(output))
    in_tokens = metrics.sentence_rouge(reference, output, special)
    in_words = words_rouge(
        *(model.decode(metrics.counted(tokens, special)) for tokens in (reference, output or ()))
    )
    return SentenceScore(
        reference=secret.sentences[index],
        recovered=recovered,
        reference_tokens=tuple(model.token_texts(metrics.counted(reference, special))),
        recovered_tokens=_aligned(reference, output or (), model),
        token_match_rate=metrics.sentence_match_rate(reference, output, special),
        token_recall=metrics.sentence_recall(reference, output, special),
        exact=not unknown and metrics.sentence_exact(reference, output, special),
        rouge1=in_tokens["rouge1"],
        rouge2=in_tokens["rouge2"],
        rougeL=in_tokens["rougeL"],
        rouge1_words=in_words["rouge1"],
        rouge2_words=in_words["rouge2"],
        rougeL_words=in_words["rougeL"],
        label=secret.labels[index] if secret.labels is not None else None,
        recovered_label=answer.label if answer is not None else None,
        unknown_tokens=unknown,
    )


def _aligned(reference: metrics.Tokens, output: metrics.Tokens, model: Vocabulary) -> tuple[str, ...]:
    """The output's tokens at the reference's positions, then its tokens where the reference has none."""
    special = uncounted(model)
    wanted = [index for index, token in enumerate(reference) if token not in special]
    surplus = [
        index
        for index, token in enumerate(output)
        if index not in set(wanted) and metrics.counted((token,), special)
    ]
    at = [output[index] if index < len(output) else metrics.OPEN for index in (*wanted, *surplus)]
    return tuple("" if token == metrics.OPEN else model.token_texts([token])[0] for token in at)
