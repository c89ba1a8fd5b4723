"""The loss of a language model as its client takes it: over which tokens, in which mean, against which labels.

Plain is the mean over all tokens that are no padding, which transformers' own models compute.

Shapes: any leading dimensions (K candidates), B sentences, T tokens of the longest one, N = K·B.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from textleak.models.batches import Targets

Reduction = Literal["mean", "sum", "mean-of-means"]
"""Of all tokens' losses the mean, or the sum; or each sentence's own mean, and the mean of these."""
Padding = Literal["masked", "counted", "left"]
"""On the right and no label; on the right and a label as any other; or on the left and no label."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language:
    """How a batch's loss is made of its tokens'.

    Attributes:
        smoothing: part of each label that is spread over the whole vocabulary (Szegedy et al. 2016).
        reduction: how the tokens' losses are joined.
        prompt: how many tokens at the beginning have no loss: of each sentence, or one number for all.
        padding: where it stands, and whether it counts. On the left, the last padding predicts the first token, as in
            transformers' models, whose positions go on counting from the padding.
    """

    smoothing: float = 0.0
    reduction: Reduction = "mean"
    prompt: tuple[int, ...] = ()
    padding: Padding = "masked"

    @property
    def apart(self) -> bool:
        """Whether what a sentence adds to the loss doesn't depend on the others but for one factor."""
        return self.padding == "masked" and len(self.prompt) <= 1

    def causal_targets(self, ids: Tensor, mask: Tensor, *, pad_id: int, dtype: torch.dtype) -> Targets:
        """Each token predicts the next: ids and mask (..., B, T), 1 for tokens, 0 for padding on the right.

        With padding on the left, the prediction after the last padding stands at the end of the padding on the right
        (see `turned`).
        """
        left = self.padding == "left"
        B, T = mask.shape[-2:]
        labels = torch.cat(
            [ids[..., 1:], ids[..., :1] if left else torch.full_like(ids[..., :1], pad_id)], -1
        )
        after = torch.ones_like(mask) if self.padding == "counted" else mask
        last = (1 - mask[..., -1:]) if left else torch.zeros_like(mask[..., :1])
        predicted = torch.cat([after[..., 1:], last], -1).to(dtype)
        if self.prompt:
            where_T = torch.arange(1, T + 1, device=mask.device) % T
            counts_B1 = torch.tensor(self.prompt, device=mask.device).expand(B)[:, None]
            predicted = predicted * (where_T >= counts_B1)
        return self.over(labels, predicted)

    def over(self, labels: Tensor, predicted: Tensor) -> Targets:
        """Labels (..., B, T) of the tokens that have a loss: `predicted` is 1 there, 0 elsewhere."""
        if self.reduction == "sum":
            return Targets(labels=labels, weights=predicted, summed=True)
        if self.reduction == "mean":
            return Targets(
                labels=labels, weights=predicted / predicted.sum((-2, -1), keepdim=True).clamp(min=1)
            )
        means = predicted / predicted.sum(-1, keepdim=True).clamp(min=1)
        return Targets(labels=labels, weights=means / predicted.shape[-2])

    def described(self) -> Iterator[str]:
        """What it does otherwise than a plain one, in words that go on "the client ..."."""
        if self.reduction == "sum":
            yield "summed the tokens' losses"
        if self.reduction == "mean-of-means":
            yield "took each sentence's own mean, and the mean of these"
        if self.prompt and len(set(self.prompt)) == 1:
            yield f"took no loss of the first {self.prompt[0]} tokens"
        elif self.prompt:
            yield f"took no loss of the first tokens ({', '.join(map(str, self.prompt))} of the texts as listed)"
        if self.padding == "counted":
            yield "counted padding as labels"
        if self.padding == "left":
            yield "padded on the left"
        if self.smoothing:
            yield f"smoothed its labels by {self.smoothing:.3g}"


PLAIN = Language()


def turned(values: Tensor, mask_NT: Tensor, *, back: bool = False) -> Tensor:
    """Rows (N, T, ...) padded on the right as rows padded on the left, the same padding before what it came after.

    Args:
        values: the rows.
        mask_NT: where tokens stand, with padding on the right.
        back: from the left to the right.
    """
    T = mask_NT.shape[-1]
    padding_N1 = T - mask_NT.sum(-1, keepdim=True)
    from_NT = (torch.arange(T, device=mask_NT.device) + (padding_N1 if back else -padding_N1)) % T
    index = from_NT.view(*from_NT.shape, *(1,) * (values.dim() - 2)).expand_as(values)
    return values.gather(1, index)
