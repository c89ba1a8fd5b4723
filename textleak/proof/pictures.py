"""Pictures as an answer: near enough is equal, and what is clearly another must be clearly farther."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from textleak.clients.view import AnyModel, View
from textleak.models.vision import PictureExamples
from textleak.proof.answers import ROUGHLY, Answer, Comparison
from textleak.proof.distances import Gradient, distance_to

# How much a picture's values are changed to be clearly another: 30 dB (our choice, as for `Pictures.equal`).
_CHANGED = 10 ** (-30 / 20)


@dataclasses.dataclass(frozen=True)
class Pictures(Answer):
    """Pictures of values 0 to 1 with their classes.

    They are never quite the true ones: cutting off values beyond 0 and 1 moves them. So `equal` is near enough: there
    LeNet's are at 30 dB or more from the truth (our choice; pictures 30 dB away are farther than 1e-2 there, but on a
    ResNet with sigmoids 1e-5).
    """

    equal: ClassVar[float] = 1e-3
    others: ClassVar[str] = "Pictures that are clearly others"

    pictures_BCHW: Tensor
    labels: tuple[int, ...]

    def complete(self, model: AnyModel) -> bool:
        """Whether there is one, and all classes are told."""
        return len(self.pictures_BCHW) > 0 and not self.unsaid(model)

    def unsaid(self, model: AnyModel) -> str | None:
        """Classes: an answer that was shown on the way may have none yet."""
        del model
        if len(self.labels) >= len(self.pictures_BCHW):
            return None
        return (
            "A picture's class stays open, so the answer has no gradient of its own that could be compared."
        )

    def own(self, view: View) -> Gradient:
        """Their gradient."""
        model = view.image_model
        pixels_BCHW = model.normalized(self.pictures_BCHW.to(device=model.device, dtype=model.dtype))
        return view.own(PictureExamples(pixels_BCHW=pixels_BCHW, targets=model.targets(self.labels)))

    def near(self, compared: Comparison) -> tuple[str, ...]:
        """What the first that fits as well is, where one does; errors as of `Comparison.go_on`."""
        shared, model = compared.view.shared, compared.view.model
        classes = None if shared.known.labels is not None else model.num_labels
        for what, other in compared.in_time(self._others(classes)):
            if distance_to(shared, other.own(compared.roughly)) > ROUGHLY * compared.bar:
                continue
            if not distance_to(shared, other.own(compared.exactly)) > compared.bar:
                return (what,)
        return ()

    def _others(self, classes: int | None) -> Iterator[tuple[str, Pictures]]:
        """Pictures that are clearly others: each in turn with noise, brighter, or of another class.

        Args:
            classes: how many there are; None where the labels are known.
        """
        generator = torch.Generator().manual_seed(0)  # which noise it is doesn't matter
        for b, picture_CHW in enumerate(self.pictures_BCHW):
            noise_CHW = torch.randn(picture_CHW.shape, generator=generator).to(picture_CHW)
            changes = {"with noise": _CHANGED * noise_CHW, "brighter": torch.full_like(noise_CHW, _CHANGED)}
            for what, change_CHW in changes.items():
                others_BCHW = self.pictures_BCHW.clone()
                others_BCHW[b] = (picture_CHW + change_CHW).clamp(0, 1)
                yield f"picture {b + 1} {what}", Pictures(others_BCHW, self.labels)
            if classes is not None:
                other = (self.labels[b] + 1) % classes
                labels = (*self.labels[:b], other, *self.labels[b + 1 :])
                yield f"picture {b + 1} of class {other}", Pictures(self.pictures_BCHW, labels)
