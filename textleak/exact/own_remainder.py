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

from textleak.exact.remainder import (
    Frame,
    LayerRemainder,
    Member,
    Remainder,
    about_largest,
    like_identity,
)
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.gradient import opened
from textleak.models.guesses import padded
from textleak.models.own_labels import by_output
from textleak.models.probes.layers import layer_inputs
from textleak.numerics import exact

# Logits of a sentence at most: each takes a backward pass (our choice).
_MOST = 512


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OwnRemainder(Remainder):
    """What is left, at some inputs.

    Attributes:
        longest: tokens of the batch's longest sentence, up to which the loss is taken over padding; 0 where it isn't.
    """

    longest: int = 0

    def among(
        self, rows: Sequence[Row], found: Sequence[Member] = (), batch_size: int | None = None
    ) -> tuple[list[Member], Remainder] | None:
        """Those of some sentences that are in the batch, with their parts by logits, and what is left without them."""
        del found, batch_size
        members: list[Member] = []
        left = self
        for row in dict.fromkeys(map(self._unpadded, rows)):
            one = left._member(row)
            if one is not None:
                members.append(one[0])
                left = one[1]
        return (members, left) if members else None

    def _member(self, row: Row) -> tuple[Member, OwnRemainder] | None:
        """The sentence's part in the batch, by logits, and what is left without it; None where it isn't in it."""
        judge = self.inputs[self.judge]
        if judge.span is None:
            return None
        # A loss of many logits takes several inputs to tell how strongly each of them is there.
        judges = [left for left in self.inputs if left.span is not None and left.span.rank >= judge.span.rank]
        frames = [self._frame(row, left) for left in judges]
        names = [layer.weight_name for left in judges for layer in left.layers]
        with opened(self.exact, names) as parameters, torch.enable_grad():
            logits_U = self._logits(self.exact, row)
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
        inputs = (
            input_.less(input_.stacked(total), [about_largest(input_.stacked(errors))])
            for input_ in self.inputs
        )
        left = dataclasses.replace(self, inputs=tuple(inputs))
        return Member(row=row, parts=tuple(parts_U.tolist()), chances=()), left

    def members(
        self,
        rows: Sequence[Row],
        found: Sequence[Member],
        batch_size: int | None,
        *,
        weighed: bool = False,
    ) -> tuple[list[Member], Remainder] | None:
        """None: without classes no whole numbers tell several faint sentences at once."""
        del rows, found, batch_size, weighed
        return None

    def _frame(self, row: Row, input_: LayerRemainder) -> Frame:
        """How an input, of which something is left, shows a sentence."""
        name = input_.layers[0].name
        ids_1T, mask_1T = self._read(self.exact, row)
        return input_.frame(layer_inputs(self.exact, ids_1T, [name], mask=mask_1T)[name][0])

    def _total(self, model: TextModel, row: Row, parts_U: Tensor) -> dict[str, Tensor]:
        """What the sentence adds to the layers' gradients."""
        names = [layer.weight_name for input_ in self.inputs for layer in input_.layers]
        with opened(model, names) as parameters, torch.enable_grad():
            logits_U = self._logits(model, row)
            gradients = torch.autograd.grad(logits_U @ parts_U.to(logits_U), parameters)
        return {name: exact(g) for name, g in zip(names, gradients, strict=True)}

    def _logits(self, model: TextModel, row: Row) -> Tensor:
        return model.logits(*self._read(model, row)).flatten()

    def _read(self, model: TextModel, row: Row) -> tuple[Tensor, Tensor]:
        """The sentence as the network reads it in the batch, with padding if it counts: ids and mask (1, T)."""
        longest = (model.pad_id,) * max(self.longest, len(row))
        ids_2T, mask_2T = padded(model, [row, longest])
        return ids_2T[:1], mask_2T[:1]

    def _unpadded(self, row: Row) -> Row:
        """Padding that was taken for tokens, as all of it that its loss reaches looks, left out."""
        count = len(row)
        while self.longest and count > 1 and row[count - 1] == self.exact.pad_id:
            count -= 1
        return row[:count]
