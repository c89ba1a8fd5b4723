"""One class a sentence, as training changes its loss: labels smoothed, classes weighted, or soft labels of any kind.

Plain cross entropy is every model's own (`models.targets`); this is what a client has told, or what an answer's labels
turn out to be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.events import Label
from textleak.models.batches import Targets
from textleak.models.losses.base import Loss

# A soft label's part may be off by this much for rounding (our choice: smoothing by 0.01 of two classes makes 0.005).
_ROUNDED = 1e-3
# Parts of a soft label are equal up to this part of them (our choice; measured: 1e-5 for those that are, and 1e-2 for a
# focal loss of three classes on a model that isn't trained).
_EQUAL = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes(Loss):
    """Cross entropy, weighted by the class, against labels that are smoothed; or against soft labels as they are.

    Attributes:
        smoothing: part of each label that is spread over all classes alike (Szegedy et al. 2016).
        weights: of the classes; none where all count alike.
        summed: whether the sentences' losses are summed, and not their mean taken.
    """

    name = "classification"
    auto = "AutoModelForSequenceClassification"
    ending = "ForSequenceClassification"
    tells = "a class of each sentence"
    pooled = True

    smoothing: float = 0.0
    weights: tuple[float, ...] = ()
    summed: bool = False

    def targets(
        self, labels: Sequence[Label], mask_BT: Tensor, outputs: int | None, dtype: torch.dtype
    ) -> Targets:
        """Soft labels that are weighted by class already, and each sentence's part of the mean, torch's own."""
        assert outputs is not None
        rows = [self._pulls(label, outputs) for label in labels]
        labels_B1C = torch.tensor(rows, dtype=dtype, device=mask_BT.device)[:, None]
        total = self._total(labels)
        weights_B1 = torch.full_like(labels_B1C[..., 0], 1 / total if total else 0.0)
        counts = (
            None if self.summed else torch.tensor([[self._count(label)] for label in labels]).to(weights_B1)
        )
        return Targets(labels=labels_B1C, weights=weights_B1, summed=self.summed, counts=counts)

    def losses(self, logits: Tensor, targets: Targets) -> Tensor:
        """The cross entropy."""
        return -(targets.labels.to(logits.dtype) * logits.log_softmax(-1)).sum(-1)

    def why_not(self, label: Label, length: int, outputs: int | None) -> str:
        """A class, or a probability of each."""
        del length
        classes = outputs or 0
        if isinstance(label, tuple):
            good = len(label) == classes and all(0 <= part <= 1 for part in label)
            return "" if good else f"A soft label is a probability of each of {classes} classes."
        if isinstance(label, int) and 0 <= label < classes:
            return ""
        return f"The model has {classes} classes, 0 to {classes - 1}."

    def drawn(self, length: int, outputs: int | None, generator: torch.Generator) -> Label:
        """Any class."""
        del length
        return int(torch.randint(outputs or 2, (), generator=generator))

    def told(self, deltas_BLC: Tensor, logits_BLC: Tensor, mask_BT: Tensor) -> tuple[Label, ...] | None:
        """The classes whose smoothed and weighted labels leave that; else soft labels, where they are any."""
        del mask_BT
        deltas_BC, chances_BC = deltas_BLC[:, 0], logits_BLC[:, 0].softmax(-1)
        C = chances_BC.shape[1]
        classes: list[int] = []
        for delta_C, chance_C in zip(deltas_BC, chances_BC, strict=True):
            pulls_CC = torch.tensor([self._pulls(c, C) for c in range(C)]).to(delta_C)
            made_CC = pulls_CC.sum(1, keepdim=True) * chance_C - pulls_CC
            # How far each class leaves it, whatever the sentence's part of the mean is.
            along_C = (made_CC @ delta_C).clamp_min(0) / made_CC.square().sum(1)
            classes.append(int((delta_C - along_C[:, None] * made_CC).norm(dim=1).argmin()))
        total = self._total(classes)
        wanted = [(delta_C * total).tolist() for delta_C in deltas_BC]
        soft: list[tuple[float, ...]] = []
        for class_, row, chance_C in zip(classes, wanted, chances_BC.tolist(), strict=True):
            pulls = self._pulls(class_, C)
            soft.append(tuple(sum(pulls) * p - d for p, d in zip(chance_C, row, strict=True)))
            if min(soft[-1]) < -_ROUNDED or abs(sum(soft[-1]) - sum(pulls)) > _ROUNDED:
                return None
        hard = [self._pulls(class_, C) for class_ in classes]
        pairs = zip(soft, hard, strict=True)
        if all(abs(a - b) <= _ROUNDED for one, two in pairs for a, b in zip(one, two, strict=True)):
            return tuple(classes)
        return tuple(tuple(max(0.0, part) for part in row) for row in soft)

    def _pulls(self, label: Label, classes: int) -> tuple[float, ...]:
        """How strongly each class is pulled up; a soft label's parts as they are."""
        if isinstance(label, tuple):
            return tuple(map(float, label))
        weights = self.weights or (1.0,) * classes
        spread = self.smoothing / classes
        return tuple(weights[c] * (spread + (1 - self.smoothing) * (c == label)) for c in range(classes))

    def _total(self, labels: Sequence[Label]) -> float:
        """What the sentences' losses are divided by."""
        return 1.0 if self.summed else sum(map(self._count, labels))

    def _count(self, label: Label) -> float:
        """How much a sentence counts in that."""
        return self.weights[label] if self.weights and isinstance(label, int) else 1.0


def weighed(deltas_BC: Tensor, chances_BC: Tensor) -> tuple[tuple[int, ...], tuple[float, ...]] | None:
    """The classes of some sentences, and the weights of classes, that leave a gradient at the logits; None for none.

    Only how the weights of classes that are there compare can be told: the least one is 1, as is any other class's.

    Args:
        deltas_BC: the gradient of the batch's mean loss at its logits.
        chances_BC: the model's predictions, in the same precision.
    """
    made_BCC = chances_BC[:, None] - torch.eye(chances_BC.shape[1]).to(chances_BC)
    along_BC = (made_BCC @ deltas_BC[..., None])[..., 0].clamp_min(0) / made_BCC.square().sum(-1)
    off_BC = (deltas_BC[:, None] - along_BC[..., None] * made_BCC).norm(dim=-1)
    off_B, class_B = off_BC.min(1)
    part_B = along_BC.gather(1, class_B[:, None])[:, 0]
    parts = {c: part_B[class_B == c] for c in class_B.tolist()}
    fits = (
        bool((off_B <= _ROUNDED * deltas_BC.norm(dim=1)).all()) and abs(float(part_B.sum()) - 1) <= _ROUNDED
    )
    alike = all(bool((some.max() - some.min()) <= _ROUNDED * some.max()) for some in parts.values())
    if not (fits and alike and bool((part_B > 0).all())):
        return None
    means = {c: float(some.mean()) for c, some in parts.items()}
    least = min(means.values())
    weights = tuple(means.get(c, least) / least for c in range(chances_BC.shape[1]))
    return tuple(class_B.tolist()), weights


def smoothing_of(label: tuple[float, ...] | tuple[int, ...]) -> tuple[int, float] | None:
    """The class and the smoothing that make a soft label; None where none do."""
    class_, rest = max(range(len(label)), key=label.__getitem__), sorted(label)[:-1]
    # Smoothing leaves equal parts; a loss that weighs sentences nearly alike ones, where the model is hardly trained.
    if not rest or rest[-1] - rest[0] > _EQUAL * rest[-1]:
        return None
    return class_, len(label) * sum(rest) / len(rest)
