"""Whether the input of a later layer at the end of a beginning lies in that layer's span.

In a causal model a later block's input at a position depends on the tokens up to there, so a beginning of a sentence is
right when that input lies in the span of the block's gradients (Petrov et al. 2024, sec. 4.2).

Shapes: F beginnings, K tokens tried after each, T positions, N rows, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from textleak.exact.subspace import InputSpan, layer_span
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.probes.layers import following_layers, layer_inputs
from textleak.models.probes.packing import packed_inputs, packs
from textleak.shared.gradient import SharedGradient

# Tokens of all rows that run through the first layers at once, and tokens tried after one beginning in one row: both
# bound the memory.
_TOKENS_A_PASS, _TRIED_A_ROW = 8192, 256
# Later layers' inputs that can be asked (our choice).
_DEEPEST = 16


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LaterInput:
    """The span of a later layer's input.

    Attributes:
        model: the public model.
        layer: a module that reads it.
        span: where it lies in the batch's sentences.
        packs: whether beginnings can be run once for all tokens after them.
    """

    model: TextModel
    layer: str
    span: InputSpan
    packs: bool

    def misfits(self, beginnings: Sequence[Row], tokens: Sequence[int]) -> Tensor:
        """How far each beginning (all of one length) with each token after it lies outside: (F, K)."""
        if not self.packs:
            rows = [(*row, token) for row in beginnings for token in tokens]
            return torch.tensor(self.row_misfits(rows)).view(len(beginnings), len(tokens))
        found = []
        for start in range(0, len(tokens), _TRIED_A_ROW):
            some = tokens[start : start + _TRIED_A_ROW]
            size = max(1, _TOKENS_A_PASS // (len(beginnings[0]) + len(some)))
            parts = [beginnings[f : f + size] for f in range(0, len(beginnings), size)]
            inputs = [packed_inputs(self.model, [self.layer], part, some)[self.layer] for part in parts]
            found.append(torch.cat([self._misfit(part_FKI) for part_FKI in inputs]).cpu())
        return torch.cat(found, 1)

    def row_misfits(self, rows: Sequence[Row]) -> list[float]:
        """How far the last input of each row (all of one length) lies outside; nothing attends to padding in them."""
        if not rows:
            return []
        model, ids_NT = self.model, torch.tensor(rows, device=self.model.device)
        parts = torch.split(ids_NT, max(1, _TOKENS_A_PASS // ids_NT.shape[1]))
        masks = [
            None if model.language.padding == "masked" else (part != model.pad_id).long() for part in parts
        ]
        inputs = [
            layer_inputs(model, part, [self.layer], mask=mask)[self.layer][:, -1]
            for part, mask in zip(parts, masks, strict=True)
        ]
        found: list[float] = torch.cat([self._misfit(part_NI) for part_NI in inputs]).tolist()
        return found

    def _misfit(self, inputs: Tensor) -> Tensor:
        eps = torch.finfo(self.model.dtype).eps
        return self.span.misfit(inputs.flatten(0, -2), eps=eps).view(inputs.shape[:-1])


class LaterInputs:
    """Spans of later layers, each decomposed when it's first asked for.

    The next blocks' inputs come first; what else these blocks read decides where those don't.
    """

    def __init__(self, model: TextModel, shared: SharedGradient) -> None:
        """Nothing is computed yet."""
        self._found: list[LaterInput] = []
        self._more = self._search(model, shared)

    def __getitem__(self, index: int) -> LaterInput | None:
        """The check with this index; None where there are fewer."""
        while len(self._found) <= index:
            check = next(self._more, None)
            if check is None:
                return None
            self._found.append(check)
        return self._found[index]

    @staticmethod
    def _search(model: TextModel, shared: SharedGradient) -> Iterator[LaterInput]:
        packed: bool | None = None
        groups = following_layers(model, _DEEPEST)
        for layers in sorted(groups, key=lambda g: g[0].weight_name not in model.attention_names):
            read = [layer for layer in layers if layer.weight_name in shared.gradients]
            span = layer_span(shared, read) if read else None
            if span is not None and shows(span):
                if packed is None:
                    packed = model.language.padding == "masked" and packs(model, read[0].name)
                yield LaterInput(model=model, layer=read[0].name, span=span, packs=packed)


def shows(span: InputSpan) -> bool:
    """Whether a span leaves room outside for what isn't in it."""
    return span.clear and span.rank < span.size
