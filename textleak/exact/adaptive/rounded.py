"""Spans of an update of several local steps: the inputs move little, and what else there is, is rounding (our choice).

A difference of weights keeps the rounding of every step, which is as large in one entry as in another. Its singular
values are level, and inputs show as far as they stand out of them. The steps' drift adds a few directions of its own to
a span, which lets a few more tokens in.

Shapes: O and I a layer's output and input size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from torch import Tensor

from textleak.exact.subspace import InputSpan, span_of
from textleak.numerics import svd

# A singular value is an input's where it is above this many times the largest that rounding makes (our choice; measured
# on minilm after 4 and 16 steps of SGD at 1e-2: those of rounding up to 1.1, with the drift's up to 1.6).
_ABOVE = 1.3
# The drift turns directions too: about as much as so many times that rounding (our choice; measured likewise: 16 steps
# put the inputs 10 times as far outside, squared, as rounding alone, 4 steps hardly farther).
_DRIFT = 3.0
_ROUNDS = 4


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RoundedSpan:
    """A span that stands out of rounding.

    Attributes:
        span: where the inputs lie.
        edge: the largest singular value that rounding makes.
    """

    span: InputSpan
    edge: float


def rounded_span(stacked_OI: Tensor, layers: Sequence[str]) -> RoundedSpan | None:
    """The span of one input in an update of several steps; None where all of it is rounding.

    Args:
        stacked_OI: the gradients of layers that read one input, one after the other, float64.
        layers: their names.
    """
    _, s_S, basis_SI = svd(stacked_OI)
    shape = (stacked_OI.shape[0], stacked_OI.shape[1])
    edge = _edge(s_S, shape)
    rank = int((s_S > _ABOVE * edge).sum())
    if rank == 0:
        return None
    span = span_of(layers, s_S[:rank], basis_SI[:rank], shape=shape, noise=_DRIFT * edge, clear=True)
    return RoundedSpan(span=span, edge=edge)


def _edge(s_S: Tensor, shape: tuple[int, int]) -> float:
    """The largest singular value of errors that are independent and alike in all entries (Marchenko & Pastur 1967).

    Of a matrix with R directions of its own they leave (O − R) (I − R) entries' worth.
    """
    rank = len(s_S) // 2
    edge = 0.0
    for _ in range(_ROUNDS):
        left = [size - rank for size in shape]
        spread = math.sqrt(float(s_S[rank:].square().sum()) / math.prod(left))
        edge = spread * sum(math.sqrt(size) for size in left)
        rank = min(int((s_S > _ABOVE * edge).sum()), len(s_S) - 1)
    return edge
