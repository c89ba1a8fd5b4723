"""Whether the input of a later layer at the end of a beginning lies in that layer's span.

In a causal model a later block's input at a position depends on the tokens up to there, so a beginning of a sentence is
right when that input lies in the span of the block's gradients (Petrov et al. 2024, sec. 4.2).

Shapes: F beginnings, K tokens tried after each, T positions, N rows, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from textleak.exact.subspace import OUTSIDE, InputSpan, layer_span
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.padding import OnlyThere
from textleak.models.probes.layers import LENGTH, LinearLayer, following_layers, layer_inputs, local_layers
from textleak.models.probes.packing import EachOnce, Kept, packed_inputs, packs
from textleak.numerics import exact, singular_values
from textleak.shared.gradient import SharedGradient

# Tokens of all rows that run through the first layers at once, the numbers of one input of theirs, and tokens tried
# after one beginning: all bound the memory.
_TOKENS_A_PASS, _NUMBERS_A_PASS, _TRIED_A_ROW = 8192, 2**20, 256
# Inputs follow from others where their least singular value is below so many roundings of the largest (our choice;
# measured on gpt2 and smollm2: inputs in a span are off it by 1 to 13).
_DEPENDENT = 100.0
# What is computed in two ways is the same up to so many roundings (our choice).
_SAME = 64.0
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
        sooner: an input before it that takes far less to compute; what lies outside there isn't run any further.
        known: what the first layers made of tokens so far.
        last_alone: whether the layers in between need to be run on the last token of a row alone.
    """

    model: TextModel
    layer: str
    span: InputSpan
    packs: bool
    sooner: LaterInput | None = None
    known: dict[int, Kept] = dataclasses.field(default_factory=dict)
    last_alone: bool = False

    def misfits(self, beginnings: Sequence[Row], tokens: Sequence[int]) -> Tensor:
        """How far each beginning (all of one length) with each token after it lies outside: (F, K).

        Infinite where that shows without a closer look.
        """
        shape = len(beginnings), len(tokens)
        if not self.packs:
            rows = [(*row, token) for row in beginnings for token in tokens]
            return torch.tensor(self.row_misfits(rows)).view(shape)
        if self.sooner is not None:
            places = (self.sooner.misfits(beginnings, tokens) <= OUTSIDE).nonzero().tolist()
            if len(places) * (len(beginnings[0]) + 1) < shape[0] * (len(beginnings[0]) + shape[1]):
                found_FK = torch.full(shape, torch.inf)
                left = self.row_misfits([(*beginnings[f], tokens[k]) for f, k in places])
                for (f, k), misfit in zip(places, left, strict=True):
                    found_FK[f, k] = misfit
                return found_FK
        found = []
        if any(layer.depends_on_position for layer in local_layers(self.model)):
            self.known.clear()  # nothing of it holds here
        for start in range(0, len(tokens), _TRIED_A_ROW):
            some = tokens[start : start + _TRIED_A_ROW]
            size = max(1, self._tokens_a_pass // (len(beginnings[0]) + len(some)))
            parts = [beginnings[f : f + size] for f in range(0, len(beginnings), size)]
            inputs = [
                packed_inputs(self.model, [self.layer], part, some, self.known)[self.layer] for part in parts
            ]
            found.append(torch.cat([self._misfit(part_FKI) for part_FKI in inputs]).cpu())
        return torch.cat(found, 1)

    def row_misfits(self, rows: Sequence[Row]) -> list[float]:
        """How far the last input of each row (all of one length) lies outside; nothing attends to padding in them."""
        if not rows:
            return []
        ids_NT = torch.tensor(rows, device=self.model.device)
        parts = torch.split(ids_NT, max(1, self._tokens_a_pass // ids_NT.shape[1]))
        found: list[float] = torch.cat([self._misfit(self._last_inputs(part)) for part in parts]).tolist()
        return found

    def _last_inputs(self, ids_NT: Tensor) -> Tensor:
        """The last input of each row, (N, I)."""
        model = self.model
        if model.language.padding != "masked":
            mask_NT = (ids_NT != model.pad_id).long()
            return layer_inputs(model, ids_NT, [self.layer], mask=mask_NT)[self.layer][:, -1]
        with _last_tokens(model, ids_NT) if self.last_alone else nullcontext():
            return _last_of_each(model, self.layer, ids_NT)

    def holds(self, rows: Sequence[Row]) -> bool:
        """Whether the last inputs of some rows are all inside."""
        lengths = {len(row) for row in rows}
        return all(
            misfit <= OUTSIDE
            for length in lengths
            for misfit in self.row_misfits([row for row in rows if len(row) == length])
        )

    def spanned_by(self, rows: Sequence[Row]) -> bool:
        """Whether the last inputs of some rows are independent, so that as many as the rank span all of it."""
        inputs = []
        for length in {len(row) for row in rows}:
            ids_NT = torch.tensor([row for row in rows if len(row) == length], device=self.model.device)
            parts = torch.split(ids_NT, max(1, self._tokens_a_pass // length))
            inputs += [exact(self._last_inputs(part)) for part in parts]
        inputs_NI = torch.cat(inputs)
        inputs_NI = inputs_NI / inputs_NI.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        s_N = singular_values(inputs_NI @ self.span.basis_RI.to(inputs_NI).T)
        return bool(s_N[-1] > _DEPENDENT * torch.finfo(self.model.dtype).eps * s_N[0])

    @property
    def _tokens_a_pass(self) -> int:
        return min(_TOKENS_A_PASS, _NUMBERS_A_PASS // self.model.hidden_size)

    def _misfit(self, inputs: Tensor) -> Tensor:
        inputs_NI = inputs.flatten(0, -2)
        eps = torch.finfo(self.model.dtype).eps
        near_N = self.span.may_hold(inputs_NI, eps=eps)
        near_NI = inputs_NI[near_N]
        misfits_N = self.span.misfit(near_NI, eps=eps)
        found_N = misfits_N.new_full((len(inputs_NI),), torch.inf)
        found_N[near_N.to(found_N.device)] = misfits_N
        return found_N.view(inputs.shape[:-1])


class LaterInputs:
    """Spans of later layers, each decomposed when it's first asked for.

    The next blocks' inputs come first; what else these blocks read decides where those don't.
    """

    def __init__(self, model: TextModel, shared: SharedGradient, *, sooner: bool = True) -> None:
        """Nothing is computed yet; `sooner` is whether the first of them all may rule out what the others are asked."""
        self._found: list[LaterInput] = []
        self._more = self._search(model, shared, sooner=sooner)

    def __getitem__(self, index: int) -> LaterInput | None:
        """The check with this index; None where there are fewer."""
        while len(self._found) <= index:
            check = next(self._more, None)
            if check is None:
                return None
            self._found.append(check)
        return self._found[index]

    @property
    def screened(self) -> bool:
        """Whether any check so far asks an earlier input first."""
        return any(check.sooner is not None for check in self._found)

    @staticmethod
    def _search(model: TextModel, shared: SharedGradient, *, sooner: bool) -> Iterator[LaterInput]:
        packed: bool | None = None
        groups = following_layers(model, _DEEPEST)
        first = _read(groups[0], shared) if groups and sooner else []
        for layers in sorted(groups, key=lambda g: g[0].weight_name not in model.attention_names):
            read = _read(layers, shared)
            span = layer_span(shared, read) if read else None
            if span is None or not shows(span):
                continue
            if packed is None:
                packed = model.language.padding == "masked" and packs(model, read[0].name)
                screen = _screen(model, shared, first) if packed and read != first else None
            yield LaterInput(
                model=model,
                layer=read[0].name,
                span=span,
                packs=packed,
                sooner=None if read == first else screen,
                last_alone=packed and model.wide and _asks_last_alone(model, read[0].name),
            )


def _last_of_each(model: TextModel, layer: str, ids_NT: Tensor) -> Tensor:
    """What a layer reads of the last token of each row, (N, I)."""
    positions_NT = torch.arange(ids_NT.shape[1], device=ids_NT.device).expand_as(ids_NT)
    with EachOnce(model, local_layers(model), ids_NT, positions_NT):
        return layer_inputs(model, ids_NT, [layer])[layer][:, -1]


def _last_tokens(model: TextModel, ids_NT: Tensor) -> OnlyThere:
    """While it is active, all layers but the local ones are run on the rows' last tokens alone."""
    last_NT = torch.zeros_like(ids_NT)
    last_NT[:, -1] = 1
    return OnlyThere(last_NT, [model.parameters[layer.weight_name] for layer in local_layers(model)])


def _asks_last_alone(model: TextModel, layer: str) -> bool:
    """Whether a layer's input at a token depends on those before it by what the local layers make of them alone.

    So it is up to the second attention; found by running it.
    """
    ids_1T = model.content_ids[:LENGTH][None]
    expected_1I = _last_of_each(model, layer, ids_1T)
    with _last_tokens(model, ids_1T):
        found_1I = _last_of_each(model, layer, ids_1T)
    fine = torch.finfo(model.dtype).eps <= torch.finfo(torch.float32).eps
    return fine and bool(
        (found_1I - expected_1I).norm() <= _SAME * torch.finfo(model.dtype).eps * expected_1I.norm()
    )


def _read(layers: Sequence[LinearLayer], shared: SharedGradient) -> list[LinearLayer]:
    """Those of some layers whose gradients were shared."""
    return [layer for layer in layers if layer.weight_name in shared.gradients]


def _screen(model: TextModel, shared: SharedGradient, layers: Sequence[LinearLayer]) -> LaterInput | None:
    """The check of these layers' input; None where it tells nothing."""
    span = layer_span(shared, layers) if layers else None
    if span is None or not shows(span):
        return None
    return LaterInput(model=model, layer=layers[0].name, span=span, packs=True)


def shows(span: InputSpan) -> bool:
    """Whether a span leaves room outside for what isn't in it."""
    return span.clear and span.rank < span.size
