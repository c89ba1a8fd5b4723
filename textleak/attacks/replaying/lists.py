"""Tokens ranked by what an update spans, for one sentence of known length."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.errors import InputError
from textleak.exact.adaptive.rounded import rounded_span
from textleak.exact.adaptive.spans import first_layers
from textleak.exact.subspace import rank_vocabulary, span_of
from textleak.models.decoding import fixed_tokens, unreachable_tokens
from textleak.models.probes.layers import LinearLayer, LocalLayer
from textleak.numerics import exact, svd
from textleak.shared.traits import Trait

# Part of the dimensions that directions of a span are at most, where drawn steps leave many (our choice).
_MOST = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FirstUpdate:
    """What the layers that read each token by itself were moved by.

    Attributes:
        stacked_OI: their updates, one below the other, each at norm 1 so that they count alike; float64, on the CPU.
        layers: which they are.
    """

    stacked_OI: Tensor
    layers: tuple[LocalLayer, ...]

    @classmethod
    def of(cls, view: View) -> FirstUpdate:
        """Of what a server sees.

        Raises:
            InputError: no first layer's gradient was shared.
        """
        layers = first_layers(view)
        if not layers or not layers[0].depends_on_position:
            raise InputError(
                "No first layer's gradient that tells positions apart was shared.",
                why="Tokens are ranked by the directions of its update.",
                fix="Share more (--share no-embeddings, or all), or use another attack.",
            )
        seen = view.shared.gradients
        rows = [_unit(layer.as_rows(seen[layer.weight_name])) for layer in layers]
        return cls(stacked_OI=torch.cat(rows).cpu(), layers=layers)


def ranked_tokens(view: View, update: FirstUpdate, length: int, keep: int) -> list[list[int]]:
    """For each position of a sentence the tokens whose input the update spans best; those that are fixed alone.

    It spans a direction a token; where something was drawn in each step anew, as many as stand out of rounding. No
    position has a list where time was up before the vocabulary was ranked.
    """
    model = view.text_model
    stacked_OI, layers = update.stacked_OI, update.layers
    _, s_R, basis_RI = svd(stacked_OI)
    rank = min(length if view.has(Trait.REPEATABLE) else _drawn(stacked_OI, layers), len(s_R) - 1)
    span = span_of(
        [layer.name for layer in layers],
        s_R[:rank],
        basis_RI[:rank],
        shape=(len(stacked_OI), stacked_OI.shape[1]),
        noise=float(s_R[rank]),
        clear=True,
    )
    fixed, barred = fixed_tokens(model, length), unreachable_tokens(model)
    lists = []
    for position, ranked in rank_vocabulary(
        model, layers[0], span, positions=length, keep=keep + len(barred), clock=view.clock
    ):
        tokens = [token for token, _ in ranked if token not in barred][:keep]
        lists.append([fixed[position]] if position in fixed else tokens)
    return lists


def _drawn(stacked_OI: Tensor, layers: Sequence[LinearLayer]) -> int:
    rounded = rounded_span(stacked_OI, [layer.name for layer in layers])
    return 1 if rounded is None else min(rounded.span.rank, int(_MOST * rounded.span.size))


def _unit(gradient_OI: Tensor) -> Tensor:
    """A layer's gradient at norm 1."""
    precise_OI = exact(gradient_OI)
    scaled_OI: Tensor = precise_OI / precise_OI.norm().clamp_min(torch.finfo(precise_OI.dtype).tiny)
    return scaled_OI
