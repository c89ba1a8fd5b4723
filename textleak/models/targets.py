"""What training takes a batch's loss against: classes, the next tokens, those behind masks, or a head's own labels.

Shapes: B sentences, T tokens, L predictions a sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from textleak.errors import InputError
from textleak.events import Label
from textleak.models.batches import Batch, Targets
from textleak.words import count_of

if TYPE_CHECKING:
    from textleak.models.text import TextModel

MASKED_SHARE = 0.15  # Devlin et al. 2019, sec. 3.1


def targets_of(
    model: TextModel, batch: Batch, labels: Sequence[Label] | None, generator: torch.Generator
) -> tuple[Batch, Targets]:
    """See `TextModel.targets`."""
    if model.own_loss is not None:
        if labels is None:
            labels = [model.own_loss.drawn(length, model.outputs, generator) for length in batch.lengths]
        targets = model.own_loss.targets(labels, batch.mask_BT, model.outputs, model.loss_dtype)
        if not bool(targets.weights.any()):
            raise InputError(
                "The batch has no loss.",
                why="The client gives every one of its classes the weight 0.",
                fix="Add a sentence of a class that counts, or change loss:weights=.",
            )
        return batch, targets
    if model.task == "classification":
        return batch, _class_targets(model, batch, labels, generator)
    if labels is not None:
        raise InputError(
            f"Labels {list(labels)} were given for {model.task}.",
            why="The tokens themselves are the labels of language modeling.",
            fix="Leave the labels out, or choose the task classification.",
        )
    if model.task == "causal-lm":
        if max(batch.lengths) < 2:
            raise InputError(
                f"The batch has only sentences of one token for {model.name}.",
                why="A causal language model predicts each token from those before it: there is none.",
                fix="Give a longer sentence.",
            )
        targets = model.causal_targets(batch.ids_BT, batch.mask_BT)
        if model.language.prompt and not bool(targets.weights.any(-1).all()):
            raise InputError(
                "A sentence has no token with a loss.",
                why=f"The client takes none of the first {max(model.language.prompt)} tokens.",
                fix="Give a longer sentence, or a shorter prompt.",
            )
        return batch, targets
    return _masked_targets(model, batch, generator)


def _class_targets(
    model: TextModel, batch: Batch, labels: Sequence[Label] | None, generator: torch.Generator
) -> Targets:
    assert model.num_labels is not None
    B = len(batch.ids_BT)
    if labels is None:
        labels = torch.randint(model.num_labels, (B,), generator=generator).tolist()
    if len(labels) != B:
        raise InputError(
            f"{count_of(len(labels), 'label')} given for {count_of(B, 'sentence')}.",
            fix="Give one for each, or none.",
        )
    check_labels(labels, model.num_labels, model.name)
    return Targets(
        labels=torch.tensor(list(labels), device=model.device)[:, None],
        weights=torch.full((B, 1), 1 / B, device=model.device, dtype=model.loss_dtype),
    )


def _masked_targets(model: TextModel, batch: Batch, generator: torch.Generator) -> tuple[Batch, Targets]:
    if model.mask_id is None:
        raise InputError(
            f"The tokenizer of {model.name!r} has no mask token.", fix="Choose another --task or --model."
        )
    special = torch.tensor(sorted(model.special_ids), device=model.device)
    maskable = (batch.mask_BT == 1) & ~torch.isin(batch.ids_BT, special)
    draws = torch.rand(batch.ids_BT.shape, generator=generator).to(model.device)
    draws = draws.masked_fill(~maskable, torch.inf)
    # At least one in each sentence (our choice): a sentence without any would leave no trace in the
    # gradient, and a batch without any has no loss.
    first = draws == draws.amin(-1, keepdim=True)
    hidden = ((draws < MASKED_SHARE) | first) & maskable
    return (
        Batch(ids_BT=batch.ids_BT.masked_fill(hidden, model.mask_id), mask_BT=batch.mask_BT),
        model.language.over(batch.ids_BT, hidden.to(model.loss_dtype)),
    )


def cross_entropies(logits_NLC: Tensor, targets: Targets, smoothing: float = 0.0) -> Tensor:
    """Each prediction's cross entropy, (N, L), against labels (N, L), or probabilities of them (N, L, C), smoothed."""
    labels = targets.labels
    if targets.soft:
        soft_NLC = labels.to(logits_NLC.dtype)
        if smoothing:
            soft_NLC = (1 - smoothing) * soft_NLC + smoothing / logits_NLC.shape[-1]
        soft: Tensor = -(soft_NLC * logits_NLC.log_softmax(-1)).sum(-1)
        return soft
    found = functional.cross_entropy(
        logits_NLC.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing
    )
    return found.view(labels.shape)


def check_own_labels(model: TextModel, labels: Sequence[Label], lengths: Sequence[int]) -> None:
    """Make sure that labels are what the loss of a model's own head takes.

    Args:
        model: with such a loss.
        labels: one for each sentence.
        lengths: tokens of each.

    Raises:
        InputError: the first one that isn't.
    """
    assert model.own_loss is not None
    for label, length in zip(labels, lengths, strict=True):
        why = model.own_loss.why_not(label, length, model.outputs)
        if why:
            raise InputError(
                f"A label doesn't fit: the head of {model.name} tells {model.own_loss.tells}.",
                why=why,
                fix="Leave --label out to have labels drawn.",
            )


def check_labels(labels: Sequence[Label], num_labels: int, name: str) -> None:
    """Make sure that each label is a class of the model that is called `name`.

    Raises:
        InputError: the first one that isn't.
    """
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < num_labels:
            raise InputError(
                f"Label {f'{label:g}' if isinstance(label, float) else label} is out of range.",
                why=f"{name} has {num_labels} classes.",
                fix=f"Use a label from 0 to {num_labels - 1}.",
            )
