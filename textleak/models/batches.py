"""A batch of sentences as a network reads it, and what its loss is taken against.

Shapes: B sentences, T tokens of the longest one, L predictions a sentence (1 for classification, T otherwise),
C classes of a prediction.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, cast

from torch import Tensor

from textleak.models.base import Model

if TYPE_CHECKING:
    from textleak.models.text import TextModel


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What the network reads, padded on the right.

    Attributes:
        ids_BT: token ids.
        mask_BT: 1 where a token stands, 0 where padding does.
    """

    ids_BT: Tensor
    mask_BT: Tensor

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sentence, special tokens counted."""
        return tuple(self.mask_BT.sum(-1).tolist())

    @property
    def sentences(self) -> tuple[tuple[int, ...], ...]:
        """The ids of each sentence without padding."""
        return tuple(
            tuple(ids[:length]) for ids, length in zip(self.ids_BT.tolist(), self.lengths, strict=True)
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Targets:
    """What the loss is taken against: loss = Σ weights · cross entropy.

    Attributes:
        labels: class ids, long (..., L), or probabilities of the classes, float (..., L, C).
        weights: (..., L), 0 where nothing is predicted; the mean over the batch is in them.
        summed: whether the loss is a sum instead, so that some of the batch weigh what they do in all of it.
        counts: how much each prediction counts in what the sum is divided by, (..., L); None for as much as it weighs.
    """

    labels: Tensor
    weights: Tensor
    summed: bool = False
    counts: Tensor | None = None

    @property
    def soft(self) -> bool:
        """Whether the labels are probabilities."""
        return self.labels.dtype.is_floating_point

    def expand(self, candidates: int) -> Targets:
        """The same targets for each of K candidates: a leading dimension more, nothing copied."""
        return dataclasses.replace(
            self,
            labels=self.labels.expand(candidates, *self.labels.shape),
            weights=self.weights.expand(candidates, *self.weights.shape),
            counts=None if self.counts is None else self.counts.expand(candidates, *self.counts.shape),
        )

    def mean_over(self, rows: slice) -> Targets:
        """Those of some sentences (B, L), whose loss is the mean over these alone; or the sum."""
        labels, weights, counts = self.labels[rows], self.weights[rows], self.counts
        if counts is not None:
            # Where all that are left count nothing, there is no mean; nothing comes of them here.
            weights = (weights * (counts.sum() / counts[rows].sum())).nan_to_num(0.0, 0.0, 0.0)
            counts = counts[rows]
        elif not self.summed:
            weights = weights / weights.sum()
        return dataclasses.replace(self, labels=labels, weights=weights, counts=counts)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextExamples:
    """Sentences as the network reads them, and what their loss is taken against.

    Attributes:
        batch: what the network reads (B, T).
        targets: labels and weights of its predictions (B, L).
    """

    batch: Batch
    targets: Targets

    def __len__(self) -> int:
        """B."""
        return len(self.batch.ids_BT)

    def only(self, rows: slice) -> TextExamples:
        """Some of the sentences, padded to the longest of them; the loss is the mean over these, or the sum."""
        batch, targets = self.batch, self.targets.mean_over(rows)
        longest = max(batch.lengths[rows])
        if targets.weights.shape[1] == batch.mask_BT.shape[1]:  # a prediction a token
            targets = dataclasses.replace(
                targets, labels=targets.labels[:, :longest], weights=targets.weights[:, :longest]
            )
        return TextExamples(
            batch=Batch(ids_BT=batch.ids_BT[rows, :longest], mask_BT=batch.mask_BT[rows, :longest]),
            targets=targets,
        )

    def loss(self, model: Model) -> Tensor:
        """The batch's loss on a text model, a scalar."""
        inputs, mask = self.batch.ids_BT[None], self.batch.mask_BT[None]
        return cast("TextModel", model).loss(inputs, mask, self.targets.expand(1)).sum()
