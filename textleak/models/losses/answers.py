"""Where an answer begins and ends in a text: cross entropy over its places (question answering)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from textleak.events import Label
from textleak.models.batches import Targets
from textleak.models.losses.base import LOSSES, Loss


def pair_of(label: Label) -> tuple[int, int]:
    """A label's two places; the beginning of the text for whatever is no such label."""
    if isinstance(label, tuple) and len(label) == 2:
        return int(label[0]), int(label[1])
    return 0, 0


@LOSSES.register("question-answering")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(Loss):
    """Cross entropy of the first and of the last place, over all places of the batch, padding counted, and their mean.

    transformers' own loss counts padding too.
    """

    auto = "AutoModelForQuestionAnswering"
    ending = "ForQuestionAnswering"
    tells = "where an answer begins and ends"
    outputs = None
    pads = True

    def logits(self, output: Any) -> Tensor:  # noqa: ANN401 - transformers' output
        """(N, 2, T)."""
        return torch.stack([output.start_logits, output.end_logits], -2)

    def targets(
        self, labels: Sequence[Label], mask_BT: Tensor, outputs: int | None, dtype: torch.dtype
    ) -> Targets:
        """The places."""
        del outputs
        places_B2 = torch.tensor([pair_of(label) for label in labels], device=mask_BT.device)
        return Targets(
            labels=places_B2,
            weights=torch.full(places_B2.shape, 1 / (2 * len(places_B2)), dtype=dtype, device=mask_BT.device),
        )

    def losses(self, logits: Tensor, targets: Targets) -> Tensor:
        """The cross entropy of each end."""
        labels = targets.labels
        found = functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        return found.view(labels.shape)

    def why_not(self, label: Label, length: int, outputs: int | None) -> str:
        """Two places in the text."""
        del outputs
        places = label if isinstance(label, tuple) and len(label) == 2 else ()
        if not places or not all(isinstance(place, int) and 0 <= place < length for place in places):
            return f"It is the answer's first and last token, from 0 to {length - 1}: 2,4."
        return ""

    def drawn(self, length: int, outputs: int | None, generator: torch.Generator) -> Label:
        """An answer anywhere in the text."""
        del outputs
        return tuple(sorted(torch.randint(length, (2,), generator=generator).tolist()))

    def told(self, deltas_BLC: Tensor, logits_BLC: Tensor, mask_BT: Tensor) -> tuple[Label, ...]:
        """The places that alone are pulled up."""
        del logits_BLC, mask_BT
        return tuple(tuple(places) for places in deltas_BLC.argmin(-1).tolist())
