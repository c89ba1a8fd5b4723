"""Which tokens could stand at a position: those whose first-layer input lies in the gradient's span.

The whole vocabulary is looked at along a few directions outside the span first, as what is inside has nothing along
them; what passes is judged exactly, by what rounding of the gradient accounts for.

Shapes: V vocabulary, N tokens, I the layer's input size, R directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from textleak.exact.subspace import OUTSIDE, InputSpan
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.mapped import let_go
from textleak.models.probes.additive import additive_inputs
from textleak.models.probes.layers import LocalLayer, layer_inputs

# Tokens of all rows that run through the network at once: more leave the caches (measured).
_TOKENS_A_PASS = 4096
# Tokens that tell how large inputs are, to within a factor of two (our choice).
_SAMPLED = 256


class Vocabulary:
    """The tokens whose input at a position lies in a span; each position is looked at once.

    Where texts may be of two parts, a token of a second one is written as id + V (`TextModel.marked`).

    Attributes:
        model: the public model.
        layer: a layer that shows the span.
        span: where its input lies in the batch's sentences.
    """

    def __init__(
        self,
        model: TextModel,
        layer: LocalLayer,
        span: InputSpan,
        *,
        rounded: torch.dtype | None = None,
        most: int | None = None,
    ) -> None:
        """Choose directions.

        Args:
            model: the public model.
            layer: a layer that shows the span.
            span: where its input lies in the batch's sentences.
            rounded: what the layer rounds its inputs to.
            most: tokens at a position at most, the surest; None for all of them.
        """
        self.model, self.layer, self.span, self.rounded, self.most = model, layer, span, rounded, most
        self.outside_RI = span.few_outside_RI.to(model.device, model.dtype)
        self.made = None if layer.columns else additive_inputs(model, layer)
        self.along = None if self.made is None else self.made.squared_along(self.outside_RI)
        self.known: dict[int, tuple[Tensor, Tensor]] = {}

    def inside(self, position: int) -> tuple[Tensor, Tensor]:
        """The tokens that could stand there, surest first, and their inputs: (N,) and (N, I).

        Where the layer doesn't know positions, the same at all of them.
        """
        position = position if self.layer.depends_on_position else 0
        if position not in self.known:
            self.known[position] = self._scan(position)
            if self.model.wide:
                let_go([self.model.word_embedding.weight])
        return self.known[position]

    def tokens(self, position: int) -> list[int]:
        """The ids alone."""
        ids: list[int] = self.inside(position)[0].tolist()
        return ids

    def after(self, beginnings: Sequence[Row]) -> list[int]:
        """Those that could follow beginnings of one length, whatever these hold."""
        return self.tokens(len(beginnings[0]))

    def _scan(self, position: int) -> tuple[Tensor, Tensor]:
        near = list(self._near(position, self.span.margin))
        ids_N, inputs_NI = torch.cat([ids for ids, _ in near]), torch.cat([inputs for _, inputs in near])
        # A zero, as of a padding token, is in every span and leaves no trace in a gradient.
        there_N = inputs_NI.any(1)
        ids_N, inputs_NI = ids_N[there_N], inputs_NI[there_N]
        if self.rounded is not None:  # hardly farther along any direction: within the margin
            inputs_NI = inputs_NI.to(self.rounded).to(inputs_NI.dtype)
        misfits_N = self.span.misfit(inputs_NI, eps=torch.finfo(self.model.dtype).eps)
        order_N = misfits_N.argsort()[: self.most]
        order_N = order_N[misfits_N[order_N] <= OUTSIDE].to(ids_N.device)
        return ids_N[order_N], inputs_NI[order_N]

    def _near(self, position: int, margin: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Tokens whose input has at most `margin` of its squared norm along the directions, with the inputs."""
        every_V = torch.arange(self.model.marks, device=self.model.device)
        if self.made is not None and self.along is not None:
            along_V = self.along(position)
            inputs_NI = self.made.at(every_V[:: max(1, len(every_V) // _SAMPLED)], position)
            ids_N = (along_V <= 2 * margin * inputs_NI.square().sum(1).max()).nonzero().flatten()
            inputs_NI = self.made.at(ids_N, position)
            kept_N = along_V[ids_N] <= margin * inputs_NI.square().sum(1)
            yield ids_N[kept_N], inputs_NI[kept_N]
            return
        name = self.layer.name
        for ids_N in torch.split(every_V, max(1, _TOKENS_A_PASS // (position + 1))):
            read = self.model.read_marked(ids_N[:, None].expand(-1, position + 1))
            inputs_NI = self.layer.meant(layer_inputs(self.model, read, [name])[name][:, -1])
            along_N = (inputs_NI @ self.outside_RI.T).square().sum(1)
            kept_N = along_N <= margin * inputs_NI.square().sum(1)
            yield ids_N[kept_N], inputs_NI[kept_N]
