"""Dummies of a batch whose client drops: the masks of its dropout stand beside the embeddings, as further dummies.

Shapes: K candidates, B sentences, T tokens, H heads.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.attacks.dummies.text import Dummies
from textleak.clients.train_mode import training
from textleak.clients.view import View
from textleak.matching import Leaves
from textleak.models.batches import Batch, TextExamples
from textleak.models.masks import Dropout, dropouts, given_masks
from textleak.seeds import seeded


def dropped_by(view: View, lengths: tuple[int, ...]) -> tuple[Dropout, ...]:
    """What the client's procedure drops of a batch of such lengths, told by running it on any text."""
    model = view.text_model
    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long().to(model.device)
    batch = Batch(ids_BT=model.content_ids[:1].expand(mask_BT.shape), mask_BT=mask_BT)
    labels = None if model.num_labels is None else [0] * len(lengths)
    batch, targets = model.targets(batch, labels, torch.Generator().manual_seed(0))
    guess = view.client.running(TextExamples(batch=batch, targets=targets))
    with torch.no_grad(), seeded(0, model.device):
        return dropouts(lambda: guess.loss(model))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DroppedDummies(Dummies):
    """Stand-ins for a batch and for the masks under which its gradient was taken.

    A mask is relaxed: any number from 0, dropped, to 1, kept. It begins at the chance of being kept, where the network
    runs as without dropout.

    Attributes:
        calls: of dropout, in order; each has a mask.
    """

    calls: tuple[Dropout, ...] = ()

    @property
    def masks(self) -> dict[str, Dropout]:
        """The masks' leaves by name."""
        return {f"mask {i}": call for i, call in enumerate(self.calls)}

    @property
    def free(self) -> tuple[str, ...]:
        """The leaves that are optimized."""
        return (*super().free, *self.masks)

    @property
    def kin(self) -> None:
        """None: a mask fits one batch's shape."""

    def draw(self, candidates: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Where candidates start."""
        drawn = super().draw(candidates, generator)
        kept = {
            name: drawn["embeddings"].new_full((candidates, *call.shape), 1 - call.rate)
            for name, call in self.masks.items()
        }
        return {**drawn, **kept}

    def along_tokens(self, name: str) -> tuple[int, ...]:
        """The dimensions of a leaf that go along the tokens of its sentences; candidates and sentences come first."""
        if name not in self.masks:
            return super().along_tokens(name)
        shape, longest = self.masks[name].shape, max(self.lengths)
        if shape[0] != len(self.lengths):
            return ()
        if len(shape) == 4 and shape[2:] == (longest, longest):  # attention's: (B, H, T, T)
            return (3, 4)
        return (2,) if len(shape) == 3 and shape[1] == longest else ()

    def within(self, free: Leaves) -> dict[str, Tensor]:
        """The same with every mask from 0 to 1."""
        return {name: leaf.clamp(0, 1) if name in self.masks else leaf for name, leaf in free.items()}

    def losses(self, leaves: Leaves) -> Tensor:
        """The model function."""
        if not self.calls:
            return super().losses(leaves)
        with training(self.model.network), given_masks([leaves[name] for name in self.masks]):
            return super().losses(leaves)
