"""The same figures as `evaluate.Metric` classes, for those who script with `evaluate`. They need no hub.

Importing this module imports `evaluate`, which takes seconds; nothing else in textleak does. Inputs are token
ids:

    from evaluate import combine
    from textleak.scoring.adapters import TokenMatchRate, TokenRecall

    combine([TokenMatchRate(), TokenRecall()]).compute(
        predictions=[[5, 6, 7]], references=[[5, 6, 8]], special_ids=[101, 102], batch_size=1
    )

`batch_size` says how many consecutive pairs were one client's batch, within which outputs are assigned to
references; by default all that was added is one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import datasets
import evaluate

from textleak.scoring import metrics

Figures = Callable[[Sequence[metrics.Tokens], Sequence[metrics.Tokens], frozenset[int]], dict[str, float]]


class _TokenMetric(evaluate.Metric):  # type: ignore[misc]  # evaluate has no types
    """A metric over token ids; subclasses name the plain function."""

    figures: ClassVar[Figures]

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description=__doc__ or "",
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("int64")),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def compute(self, **inputs: Any) -> dict[str, float] | None:  # noqa: ANN401
        """As `evaluate.Metric.compute`; nothing added or given counts 0 instead of failing in the cache."""
        given = [inputs.get("predictions"), inputs.get("references")]
        if all(values is not None and len(values) == 0 for values in given):
            return type(self).figures([], [], frozenset())
        if self.writer is None and self.cache_file_name is None and given == [None, None]:
            return type(self).figures([], [], frozenset())
        answer: dict[str, float] | None = super().compute(**inputs)
        return answer

    def _compute(
        self,
        predictions: Sequence[Sequence[int]],
        references: Sequence[Sequence[int]],
        special_ids: Sequence[int] = (),
        batch_size: int | None = None,
    ) -> dict[str, float]:
        special = frozenset(int(token) for token in special_ids)
        size = batch_size or max(1, len(references))
        batches = [
            type(self).figures(references[start : start + size], predictions[start : start + size], special)
            for start in range(0, len(references), size)
        ]
        # A batch weighs as many sentences as it has, so that the mean is over sentences.
        sizes = [len(references[start : start + size]) for start in range(0, len(references), size)]
        return {
            name: sum(batch[name] * n for batch, n in zip(batches, sizes, strict=True)) / sum(sizes)
            for name in batches[0]
        }


class TokenMatchRate(_TokenMetric):
    """Positions whose token is right, over the reference's tokens (see `metrics.token_match_rate`)."""

    figures: ClassVar[Figures] = staticmethod(
        lambda *batch: {"token_match_rate": metrics.token_match_rate(*batch)}
    )


class TokenRecall(_TokenMetric):
    """Multiset recall of the reference's tokens at any position (see `metrics.token_recall`)."""

    figures: ClassVar[Figures] = staticmethod(lambda *batch: {"token_recall": metrics.token_recall(*batch)})


class ExactRate(_TokenMetric):
    """Share of the sentences recovered without a single wrong token (see `metrics.exact_rate`)."""

    figures: ClassVar[Figures] = staticmethod(lambda *batch: {"exact_rate": metrics.exact_rate(*batch)})


class Rouge(_TokenMetric):
    """ROUGE-1, -2 and -L F-measures on the model's tokens (see `metrics.rouge`)."""

    figures: ClassVar[Figures] = staticmethod(metrics.rouge)
