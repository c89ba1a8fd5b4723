"""The figures of one setting: means over its sentences with their intervals, and what else a row of a table says.

A *setting* is a cell without its seed. What is drawn for an interval are batches, all seeds of a batch together.
"""

from __future__ import annotations

import dataclasses
import statistics as plain_statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from textleak.evaluation.answers import FIGURES, Records
from textleak.evaluation.records import Record
from textleak.reports.settings import Setting, named
from textleak.reports.statistics import Interval, bootstrap_mean, bootstrap_means

# A sentence has a record's figures under the same names, but for one.
_OF_SENTENCE = {"exact_rate": "exact"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SettingFigures:
    """What one setting gave.

    Attributes:
        setting: its values along the axes.
        words: the setting told by what varies in the evaluation.
        seeds: that were pooled.
        batches: that were done; `failed`, that weren't.
        sentences: scored, over all seeds.
        tokens: n, the mean over batches; `hidden_size`, D.
        tokens_per_hidden: n/D: mean, least and most over batches.
        figures: each figure's mean and interval; empty where nothing was scored.
        secrets: share of the planted secrets that were recovered in full; None where none was planted.
        secrets_recovered: how many, of `secrets_planted`.
        cut_off: batches that were ended, by time or by hand, before they had an answer known to be right.
        verified: batches whose answer reproduces the shared gradient, of `verifiable`.
        named: share of a batch's distinct tokens that its gradient names for certain, all of them where the answer is
            proved: the mean over batches; None where nothing but answers names any.
        seconds: median of a batch; likewise `cpu_seconds`.
        epsilon: of `dpsgd`.
        weights: "pretrained" or "random", as loaded; "" where nothing was.
    """

    setting: Setting
    words: str
    seeds: tuple[int, ...]
    batches: int
    failed: int
    sentences: int
    tokens: float | None
    hidden_size: int | None
    tokens_per_hidden: tuple[float, float, float] | None
    figures: Mapping[str, Interval]
    secrets: Interval | None
    secrets_recovered: int
    secrets_planted: int
    cut_off: int
    verified: int
    verifiable: int
    named: float | None
    seconds: float | None
    cpu_seconds: float | None
    epsilon: float | None
    weights: str

    @property
    def match(self) -> Interval | None:
        """The token match rate."""
        return self.figures.get("token_match_rate")

    @property
    def recall(self) -> Interval | None:
        """The share of tokens that were recovered at any place."""
        return self.figures.get("token_recall")

    @property
    def worse(self) -> float:
        """The worst of match, recall and what is named for whoever's text it is: tokens in no order say most of it."""
        means = [one.mean for one in (self.match, self.recall) if one is not None]
        return max(*means, self.named or 0.0) if means else -1.0

    @property
    def exact(self) -> Interval | None:
        """The share of sentences that were recovered word for word."""
        return self.figures.get("exact_rate")


def cluster_of(record: Record) -> Hashable:
    """What makes two batches the same draw: their sentences (under another seed they are no new ones)."""
    return tuple(sentence.reference for sentence in record.sentences) or (record.cell.seed, record.batch)


def values_of(record: Record, figure: str) -> list[float]:
    """A figure of each sentence of a batch, so that their mean is the batch's.

    Outputs that no sentence was assigned to lower a batch's token match rate: each sentence carries its share.
    """
    own = [float(getattr(sentence, _OF_SENTENCE.get(figure, figure))) for sentence in record.sentences]
    if figure != "token_match_rate" or record.token_match_rate is None or not record.surplus or not sum(own):
        return own
    scale = record.token_match_rate * len(own) / sum(own)
    return [value * scale for value in own]


def scored_of(group: Iterable[Record]) -> list[Record]:
    """The batches that have figures."""
    return [record for record in group if record.status == "done" and record.sentences]


def figures_of(setting: Setting, group: Sequence[Record], axes: Sequence[str], seed: int) -> SettingFigures:
    """What the batches of one setting add up to.

    Args:
        setting: which one.
        group: its records, of all seeds.
        axes: by which it is told apart from others.
        seed: of the bootstrap's draws.
    """
    records = Records(group)
    done, counts = records.done, records.counts()
    scored = scored_of(done)
    clusters = [cluster_of(record) for record in scored for _ in record.sentences]
    figures: dict[str, Interval] = {}
    if clusters:
        columns = [[x for record in scored for x in values_of(record, figure)] for figure in FIGURES]
        intervals = bootstrap_means(np.array(columns).T, clusters, seed=seed)
        figures = dict(zip(FIGURES, intervals, strict=True))
    secrets = [
        (float(secret.recovered), cluster_of(record))
        for record in scored
        for sentence in record.sentences
        for secret in sentence.secrets
    ]
    ratios = [record.tokens_per_hidden for record in done if record.tokens_per_hidden is not None]
    tokens = [record.tokens for record in done if record.tokens is not None]
    return SettingFigures(
        setting=setting,
        words=named(setting, axes) or named(setting, ("attack", "model")),
        seeds=tuple(sorted({record.cell.seed for record in group})),
        batches=counts.done,
        failed=counts.failed,
        sentences=len(clusters),
        tokens=plain_statistics.fmean(tokens) if tokens else None,
        hidden_size=next((record.hidden_size for record in done if record.hidden_size), None),
        tokens_per_hidden=(plain_statistics.fmean(ratios), min(ratios), max(ratios)) if ratios else None,
        figures=figures,
        secrets=bootstrap_mean(*zip(*secrets, strict=True), seed=seed) if secrets else None,
        secrets_recovered=counts.secrets_recovered,
        secrets_planted=counts.secrets,
        cut_off=counts.cut_off,
        verified=counts.verified,
        verifiable=counts.verifiable,
        named=done.named_rate(),
        seconds=plain_statistics.median(record.seconds for record in done) if done else None,
        cpu_seconds=plain_statistics.median(record.cpu_seconds for record in done) if done else None,
        epsilon=next((record.epsilon for record in done if record.epsilon is not None), None),
        weights=next((record.weights for record in done if record.weights), ""),
    )


def leaked(one: SettingFigures) -> tuple[float, float, float, int]:
    """A key by which the setting that leaked most is the greatest; unscored ones come last.

    Of two that leaked alike, the one that was cut off more often: with more time it may have more.
    """
    if one.match is None or one.exact is None:
        return (-1.0, 0.0, 0.0, 0)
    return (one.match.mean, one.exact.mean, one.cut_off / max(one.batches, 1), one.sentences)


# Words


def percent(rate: float) -> str:
    """A rate in percent as few digits as are honest: 0 and 100 only where they are exact."""
    hundredfold = 100 * rate
    if rate in (0, 1) or 9.5 <= hundredfold < 99.5:
        return f"{hundredfold:.0f}"
    shown = f"{hundredfold:.1f}"
    return {"0.0": "<0.1", "100.0": ">99.9"}.get(shown, shown)


def amount(one: SettingFigures) -> str:
    """How many of the tokens were recovered: in place with its interval, and at any place where that is more."""
    assert one.match is not None
    recall = one.recall.mean if one.recall is not None else one.match.mean
    if max(one.match.mean, recall) == 0:
        return f"nothing{in_range(one.match)}"
    words = f"{percent(one.match.mean)} % of the tokens in place{in_range(one.match)}"
    if percent(recall) != percent(one.match.mean):
        words += f", {percent(recall)} % at any place"
    return words


def beside(one: SettingFigures) -> str:
    """What rows name beside what an attack recovered, where that is more, as a sentence goes on with it; else ""."""
    found = [figure.mean for figure in (one.match, one.recall) if figure is not None]
    if one.named is None or one.named <= max(found, default=0.0):
        return ""
    return (
        f", while rows of the word embedding name {percent(one.named)} % of the distinct tokens for certain"
    )


def in_range(interval: Interval) -> str:
    """A rate's interval as a sentence says it."""
    if interval.low is None or interval.high is None:
        return " (one batch, so no interval)"
    if interval.low == interval.high:
        return " (in every batch)"
    return f" (95 % interval {percent(interval.low)} to {percent(interval.high)} %)"
