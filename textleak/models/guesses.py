"""What the network would read, and be asked to predict, if a guess of the batch were the truth.

Shapes: any leading dimensions (K candidates), B sentences, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.events import Label
from textleak.models.batches import Batch, Targets, TextExamples
from textleak.models.losses.classes import Classes
from textleak.models.text import TextModel


def inputs_and_targets(
    model: TextModel, *, ids: Tensor, mask: Tensor, labels: Tensor | None = None, hidden: Tensor | None = None
) -> tuple[Tensor, Targets]:
    """Ids as the network reads them, and the targets of the loss.

    Args:
        model: the public model.
        ids: (..., B, T) the text's tokens.
        mask: (..., B, T) 1 for tokens, 0 for padding on the right.
        labels: (..., B) classes, for classification.
        hidden: (..., B, T) true where the network reads a mask and predicts the token, for masked language
            modeling.

    Returns:
        Inputs (..., B, T), and targets with the mean over the batch in their weights.
    """
    if model.task == "classification":
        assert labels is not None
        sentences = labels.shape[-1]
        weights = mask.new_full((*labels.shape, 1), 1.0, dtype=model.loss_dtype) / sentences
        return ids, Targets(labels=labels[..., None], weights=weights)
    if model.task == "causal-lm":
        return ids, model.causal_targets(ids, mask)
    assert hidden is not None
    assert model.mask_id is not None
    chosen = hidden.to(model.loss_dtype) * mask
    return ids.masked_fill(hidden, model.mask_id), model.language.over(ids, chosen)


def padded(model: TextModel, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Sentences of symbols as one tensor (B, T), and where they stand: 1 for symbols, 0 for padding on the right."""
    longest = max(map(len, rows))
    symbols_BT = torch.tensor([[*row, *[model.pad_id] * (longest - len(row))] for row in rows])
    lengths_B1 = torch.tensor([[len(row)] for row in rows])
    mask_BT = (torch.arange(longest) < lengths_B1).long()
    return symbols_BT.to(model.device), mask_BT.to(model.device)


def examples_of(
    model: TextModel, rows: Sequence[Sequence[int]], classes: Sequence[Label] = ()
) -> TextExamples:
    """Sentences of symbols as the network reads them, and what it is asked to predict.

    Args:
        model: the public model.
        rows: each sentence's symbols: token ids, or id + V for a token that the network saw as a mask.
        classes: label of each sentence, for classification and for a loss of the head's own.
    """
    symbols_BT, mask_BT = padded(model, rows)
    if any(isinstance(label, tuple) for label in classes) and model.num_labels is not None:
        model = model.trained_with(Classes())
    if model.own_loss is not None:
        batch = Batch(ids_BT=symbols_BT, mask_BT=mask_BT)
        targets = model.own_loss.targets(classes, mask_BT, model.outputs, model.loss_dtype)
        return TextExamples(batch=batch, targets=targets)
    inputs_BT, targets = inputs_and_targets(
        model,
        ids=symbols_BT % model.vocab_size,
        mask=mask_BT,
        labels=torch.tensor(classes).to(model.device),
        hidden=symbols_BT >= model.vocab_size,
    )
    return TextExamples(batch=Batch(ids_BT=inputs_BT, mask_BT=mask_BT), targets=targets)
