"""What is left of a shared gradient, where the head has a loss of its own: the same proof, without classes.

Whatever the loss is, a sentence's part in the gradient is a sum over its logits, each as strongly as the loss pulls at
it (`models.own_labels`). So the proof asks for those strengths where that of a classifier asks for classes.

Shapes: T tokens of a sentence, U its logits, R rank, I and O a layer's input and output size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.exact.remainder import Member, Remainder, like_identity
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.gradient import opened
from textleak.models.guesses import padded
from textleak.models.own_labels import by_output
from textleak.numerics import exact

# Logits of a sentence at most: each takes a backward pass (our choice).
_MOST = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OwnRemainder(Remainder):
    """What is left, at some inputs."""

    def member(
        self, row: Row, found: Sequence[Member] = (), batch_size: int | None = None
    ) -> tuple[Member, Remainder] | None:
        """The sentence's part in the batch, by logits, and what is left without it; None where it isn't in it."""
        del found, batch_size
        judge = self.inputs[self.judge]
        if judge.span is None:
            return None
        # A loss of many logits takes several inputs to tell how strongly each of them is there.
        judges = [left for left in self.inputs if left.span is not None and left.span.rank >= judge.span.rank]
        frames = [frame for left in judges if (frame := self._frame(row, left)) is not None]
        names = [layer.weight_name for left in judges for layer in left.layers]
        with opened(self.exact, names) as parameters, torch.enable_grad():
            logits_U = _logits(self.exact, row)
            if len(logits_U) > _MOST:
                return None
            own = []
            for gradients in by_output(logits_U, parameters):
                for one in zip(*gradients, strict=True):
                    by_name = {name: exact(g) for name, g in zip(names, one, strict=True)}
                    pairs = zip(frames, judges, strict=True)
                    own.append(torch.stack([frame.seen(left.stacked(by_name)) for frame, left in pairs]))
        parts_U, _ = like_identity(torch.stack(own))
        if parts_U is None:
            return None
        total, rough = (self._total(model, row, parts_U) for model in (self.exact, self.rough))
        errors = {key: self.rounding * (rough[key] - total[key]) for key in total}
        left = dataclasses.replace(self, inputs=tuple(input_.less(total, errors) for input_ in self.inputs))
        return Member(row=row, parts=tuple(parts_U.tolist()), chances=()), left

    def members(
        self, rows: Sequence[Row], found: Sequence[Member], batch_size: int | None
    ) -> tuple[list[Member], Remainder] | None:
        """None: without classes no whole numbers tell several faint sentences at once."""
        del rows, found, batch_size
        return None

    def _total(self, model: TextModel, row: Row, parts_U: Tensor) -> dict[str, Tensor]:
        """What the sentence adds to the layers' gradients."""
        names = [layer.weight_name for input_ in self.inputs for layer in input_.layers]
        with opened(model, names) as parameters, torch.enable_grad():
            logits_U = _logits(model, row)
            gradients = torch.autograd.grad(logits_U @ parts_U.to(logits_U), parameters)
        return {name: exact(g) for name, g in zip(names, gradients, strict=True)}


def _logits(model: TextModel, row: Row) -> Tensor:
    return model.logits(*padded(model, [row])).flatten()
