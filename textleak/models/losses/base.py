"""What a loss of a head's own says of itself, so that a client can train it and an attack read its labels.

An attack needs no more of it than this: whatever the loss is, the batch's gradient is linear in the loss's gradient at
the logits. With the tokens found, that gradient follows in closed form, and so do the labels that left it.

Shapes: any leading dimensions (K candidates), B sentences, T tokens, L predictions a sentence, C outputs of each.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from textleak.events import Label
from textleak.models.batches import Targets
from textleak.registry import Registry


class Loss(abc.ABC):
    """A loss that a head of its own is trained with; subclasses are frozen dataclasses.

    Attributes:
        name: of the task, as it was registered.
        auto: name of transformers' class that puts such a head on a network.
        ending: how the names of such networks' classes end.
        tells: what the head tells, in words.
        pooled: whether it makes one prediction of a whole sentence.
        outputs: how many numbers a fresh head gives; None where their number isn't a choice.
        pads: whether the loss is taken over the padding too.
    """

    name: ClassVar[str]
    auto: ClassVar[str]
    ending: ClassVar[str]
    tells: ClassVar[str]
    pooled: ClassVar[bool] = False
    outputs: ClassVar[int | None] = 2
    pads: ClassVar[bool] = False

    def configure(self, config: Any) -> None:  # noqa: ANN401, B027 - most need nothing
        """Have a network that is built from the configuration, transformers', know of the loss."""

    def owns(self, kinds: Sequence[str], config: Any) -> bool:  # noqa: ANN401
        """Whether a network's head is trained with it.

        Args:
            kinds: names of the network's class.
            config: its configuration.
        """
        del config
        return any(kind.endswith(self.ending) for kind in kinds)

    def logits(self, output: Any) -> Tensor:  # noqa: ANN401
        """What the head gives, (N, L, C), of what the network gives."""
        logits: Tensor = output.logits
        return logits

    def in_sum(self) -> Loss | None:
        """The same with a sum over all predictions and outputs in place of their mean; None where there is no such."""
        return None

    @abc.abstractmethod
    def targets(
        self, labels: Sequence[Label], mask_BT: Tensor, outputs: int | None, dtype: torch.dtype
    ) -> Targets:
        """What the mean loss of a batch is taken against, on the mask's device.

        Args:
            labels: one for each sentence, checked.
            mask_BT: 1 for tokens, 0 for padding on the right.
            outputs: C, where it is the network's.
            dtype: of the loss.
        """

    @abc.abstractmethod
    def losses(self, logits: Tensor, targets: Targets) -> Tensor:
        """Each prediction's loss, (..., L), of logits (..., L, C)."""

    @abc.abstractmethod
    def why_not(self, label: Label, length: int, outputs: int | None) -> str:
        """Why this can't be the label of a sentence of so many tokens, a sentence; "" where it can."""

    @abc.abstractmethod
    def drawn(self, length: int, outputs: int | None, generator: torch.Generator) -> Label:
        """A label of a sentence of so many tokens, as training data have it."""

    @abc.abstractmethod
    def told(self, deltas_BLC: Tensor, logits_BLC: Tensor, mask_BT: Tensor) -> tuple[Label, ...] | None:
        """The labels that leave a gradient at the logits; None where none do.

        Args:
            deltas_BLC: the gradient of the batch's loss at its logits.
            logits_BLC: the logits, in the same precision.
            mask_BT: 1 for tokens, 0 for padding.
        """

    def reached(self, mask_BT: Tensor, logits_BLC: Tensor) -> Tensor:
        """Which logits the loss can have a gradient at, (B, L, C)."""
        del mask_BT
        return torch.ones_like(logits_BLC, dtype=torch.bool)


LOSSES: Registry[Loss] = Registry("task", "textleak.models.losses")


def loss_of(task: str) -> Loss | None:
    """The loss of a task; None for tasks whose labels are classes of sentences or tokens."""
    return LOSSES.build(task, {}) if task in tuple(LOSSES) else None


def nearest_whole(value: float, tolerance: float) -> float | int:
    """A number, or the whole one that it is but for rounding."""
    return round(value) if abs(value - round(value)) <= tolerance else value
