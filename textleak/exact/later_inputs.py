"""Whether the input of a later layer at the end of a beginning lies in that layer's span.

In a causal model a later block's input at a position depends on the tokens up to there, so a beginning of a sentence is
right when that input lies in the span of the block's gradients (Petrov et al. 2024, sec. 4.2).

Shapes: F beginnings, K tokens tried after each, T positions, N rows, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from textleak.exact.subspace import InputSpan, layer_span
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.probes.layers import following_layers, layer_inputs
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
            inputs = [_packed_inputs(self.model, self.layer, part, some) for part in parts]
            found.append(torch.cat([self._misfit(part_FKI) for part_FKI in inputs]).cpu())
        return torch.cat(found, 1)

    def row_misfits(self, rows: Sequence[Row]) -> list[float]:
        """How far the last input of each row (all of one length) lies outside."""
        if not rows:
            return []
        ids_NT = torch.tensor(rows, device=self.model.device)
        parts = torch.split(ids_NT, max(1, _TOKENS_A_PASS // ids_NT.shape[1]))
        inputs = [layer_inputs(self.model, part, [self.layer])[self.layer][:, -1] for part in parts]
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
        packs: bool | None = None
        groups = following_layers(model, _DEEPEST)
        for layers in sorted(groups, key=lambda g: g[0].weight_name not in model.attention_names):
            read = [layer for layer in layers if layer.weight_name in shared.gradients]
            span = layer_span(shared, read) if read else None
            if span is not None and shows(span):
                if packs is None:
                    packs = _packs(model, read[0].name)
                yield LaterInput(model=model, layer=read[0].name, span=span, packs=packs)


def shows(span: InputSpan) -> bool:
    """Whether a span leaves room outside for what isn't in it."""
    return span.clear and span.rank < span.size


# Many tokens after few beginnings


def _packed_inputs(model: TextModel, layer: str, beginnings: Sequence[Row], tokens: Sequence[int]) -> Tensor:
    """What a layer reads at each token that follows each beginning, (F, K, I), the beginning run only once.

    All tokens stand in one row, at one position, and see the beginning and themselves.
    """
    F, T, K = len(beginnings), len(beginnings[0]), len(tokens)
    ids_FT = torch.tensor(beginnings, dtype=torch.long).view(F, T)
    ids = torch.cat([ids_FT, torch.tensor(tokens).expand(F, -1)], 1)
    positions = torch.cat([torch.arange(T), torch.full((K,), T)]).expand(F, -1)
    seen = torch.eye(T + K, dtype=torch.bool)
    seen[:, :T] |= torch.ones(T + K, T, dtype=torch.bool).tril()
    mask = torch.zeros(T + K, T + K, dtype=model.dtype)
    mask = mask.masked_fill(~seen, torch.finfo(model.dtype).min).expand(F, 1, -1, -1)
    inputs = layer_inputs(
        model,
        ids.to(model.device),
        [layer],
        mask=mask.to(model.device),
        positions=positions.to(model.device),
    )
    return inputs[layer][:, T:]


def _packs(model: TextModel, layer: str) -> bool:
    """Whether the network takes rows as `_packed_inputs` makes them: some read masks or positions their own way."""
    if "position_ids" not in inspect.signature(model.network.forward).parameters:
        return False
    first, second, third, *tried = model.content_ids[:6].tolist()
    beginnings: list[Row] = [(first, second), (third, first)]
    try:
        packed = _packed_inputs(model, layer, beginnings, tried)
    except (TypeError, ValueError, RuntimeError):  # whatever a network says to a mask that it can't read
        return False
    rows = torch.tensor([(*row, token) for row in beginnings for token in tried], device=model.device)
    plain = layer_inputs(model, rows, [layer])[layer][:, -1].view_as(packed)
    return bool((packed - plain).norm() <= 1e-2 * plain.norm())  # a wrong mask changes far more than rounding
