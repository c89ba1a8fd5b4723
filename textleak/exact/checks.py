"""How far a sentence is from being one of the batch: what its tokens' inputs further in have outside the spans.

Shapes: K sentences, T positions, L layers, N pairs, H heads, A a head's size, I a layer's input size, S sketch
directions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from textleak.exact.pairs import Pairs
from textleak.exact.remainder import LayerRemainder
from textleak.exact.subspace import InputSpan
from textleak.models import TextModel
from textleak.models.probes.attention import FirstAttention, project
from textleak.models.probes.layers import layer_inputs

# Directions outside a span that an input is measured along, where all of them would be slower (our choice).
_SKETCH = 64
# Layers whose inputs are checked (our choice: two tell about as much as four, in a third of the time).
_LAYERS = 2
# Tokens of all sentences that run through the first block at once.
_TOKENS_A_PASS = 2048


class Check(Protocol):
    """Scores sentences of one length, given as indices of pairs, one a position."""

    def outside(self, rows_KT: Tensor) -> Tensor:
        """For each token the part of its input's squared norm that lies outside, (K, T)."""
        ...


class ContextCheck:
    """What the first attention mixes, computed from a table of all pairs' queries, keys and values: cheap."""

    def __init__(self, model: TextModel, attention: FirstAttention, pairs: Pairs, span: InputSpan) -> None:
        """Tabulate the pairs' queries, keys, values and the values' parts outside the span."""
        heads, dtype = attention.heads, torch.float32
        parts = [
            torch.unflatten(project(model, layer, pairs.inputs_NI), -1, (heads, -1))
            for layer in (attention.query, attention.key, attention.value)
        ]
        self.queries_NHA = (parts[0] / parts[0].shape[-1] ** 0.5).to(dtype)
        self.keys_NHA, self.values_NHA = parts[1].to(dtype), parts[2].to(dtype)
        sketch_SI = span.directions_outside(_SKETCH)
        sketch_SI *= ((span.size - span.rank) / len(sketch_SI)) ** 0.5
        self.along_NHS = torch.einsum(
            "nha,sha->nhs", parts[2], torch.unflatten(sketch_SI, 1, (heads, -1))
        ).to(dtype)

    def outside(self, rows_KT: Tensor) -> Tensor:
        """See `Check`."""
        queries, keys, values, along = (
            table[rows_KT].transpose(1, 2)
            for table in (self.queries_NHA, self.keys_NHA, self.values_NHA, self.along_NHS)
        )
        weights_KHTT = (queries @ keys.transpose(2, 3)).softmax(-1)
        whole_KT = (weights_KHTT @ values).square().sum((1, 3))
        return (weights_KHTT @ along).sum(1).square().sum(-1) / whole_KT


class LayerCheck:
    """The inputs of some layers further in, by running the network as far as them."""

    def __init__(self, model: TextModel, pairs: Pairs, bases: dict[str, Tensor]) -> None:
        """Keep, for each layer, the directions (R, I) of its span."""
        self.model, self.tokens_N, self.bases = model, pairs.tokens_N.to(model.device), bases

    @classmethod
    def of(
        cls, model: TextModel, pairs: Pairs, inputs: Sequence[LayerRemainder], *, least: int
    ) -> LayerCheck | None:
        """Of the first of some layers whose spans are clear; None where none is.

        Those with `least` directions, or where none has so many, those with the most.
        """
        spans = {
            left.layers[0].name: left.span for left in inputs if left.span is not None and left.span.clear
        }
        least = min(least, max((span.rank for span in spans.values()), default=0))
        bases = {
            name: span.basis_RI.to(model.device, model.dtype)
            for name, span in spans.items()
            if span.rank >= least
        }
        return cls(model, pairs, dict(itertools.islice(bases.items(), _LAYERS))) if bases else None

    def outside(self, rows_KT: Tensor) -> Tensor:
        """See `Check`; the mean over the layers."""
        ids_KT = self.tokens_N[rows_KT.to(self.tokens_N.device)]
        at_once = max(1, _TOKENS_A_PASS // ids_KT.shape[1])
        return parts_outside(self.model, ids_KT, self.bases, at_once=at_once).mean(0).clamp_min(0)


def parts_outside(model: TextModel, ids_KT: Tensor, bases: Mapping[str, Tensor], *, at_once: int) -> Tensor:
    """For each layer and token the part of its input's squared norm that lies outside, up to rounding: (L, K, T).

    Args:
        model: the public model.
        ids_KT: the sentences.
        bases: for each of L layers the directions (R, I) of its span.
        at_once: sentences that run through the network at once.
    """
    found = []
    for part_KT in torch.split(ids_KT, at_once):
        inputs = layer_inputs(model, part_KT, list(bases))
        parts = [
            1 - (x_KTI @ bases[name].T).square().sum(-1) / x_KTI.square().sum(-1)
            for name, x_KTI in inputs.items()
        ]
        found.append(torch.stack(parts))
    return torch.cat(found, 1)


def descend(
    check: Check,
    row: Sequence[int],
    options: Sequence[Sequence[int]],
    *,
    sweeps: int,
    solved_at: float,
    exchanges: Callable[[Sequence[int]], list[list[int]]] | None = None,
) -> tuple[list[int], float]:
    """Replace one token after the other, the worst first, by what leaves the least outside; then exchange two.

    Two tokens in each other's place hardly change what the attention mixes, and neither can be mended alone.

    Args:
        check: scores sentences.
        row: pair indices to start from.
        options: for each position the pairs tried there; none where it is fixed.
        sweeps: rounds over all positions, at most.
        solved_at: mean part outside at which it is found.
        exchanges: rows in which two tokens of a row have changed places.

    Returns:
        The row, and its mean part outside.
    """
    row = list(row)
    outside_T = check.outside(torch.tensor([row]))[0]
    best = float(outside_T.mean())
    for _ in range(sweeps):
        before = list(row)
        for t in outside_T.argsort(descending=True).tolist():
            tried = [[*row[:t], option, *row[t + 1 :]] for option in options[t] if option != row[t]]
            row, best, outside_T = _best_of(check, tried, row, best, outside_T)
            if best <= solved_at:
                return row, best
        if row == before and exchanges is not None:
            row, best, outside_T = _best_of(check, exchanges(row), row, best, outside_T)
        if row == before or best <= solved_at:
            break
    return row, best


def _best_of(
    check: Check, tried: Sequence[list[int]], row: list[int], best: float, outside_T: Tensor
) -> tuple[list[int], float, Tensor]:
    """The best of some rows, if it is better than the row there is: with its parts outside and their mean."""
    if not tried:
        return row, best, outside_T
    outside_KT = check.outside(torch.tensor(tried))
    means_K = outside_KT.mean(1)
    k = int(means_K.argmin())
    if float(means_K[k]) >= best:
        return row, best, outside_T
    return tried[k], float(means_K[k]), outside_KT[k]
