"""Which tokens a batch holds, from few measurements of what the first layers read, as LoRA's adapters give them.

What the first layers read is made of one row a token and one a position, all of them known: which tokens' rows the
measurements are made of is a sparse regression (`pursuit`). The number of measurements doesn't limit the tokens.

Shapes: M measurements, V vocabulary, N tokens found, P positions, I the first layers' input size, J its coordinates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from textleak.clients.view import Clock
from textleak.exact.adapters.measured import Measured
from textleak.exact.adapters.pursuit import NOTHING, Parts, Pursuit, part_within, parts, whitening
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.probes.additive import additive_inputs
from textleak.models.probes.layers import LocalLayer, layer_inputs
from textleak.numerics import exact

# Positions that are reckoned with where no length is known (our choice).
_LONGEST = 64
# Tokens that tell what all have in common, and what is added to their variances (our choice).
_COMMON, _RIDGE = 8192, 1e-6
# Tokens that run through the network at once.
_TOKENS_A_PASS = 4096
# Relative norm that the tokens may leave of the gradient (our choice; measured in float32: 3e-7 to 2e-6).
LEFT = 1e-4
# What is left of a token's part once all its sentences are taken off, relatively (our choice; measured on minilm in
# float32: 1e-7 to 1e-5).
_GONE = 1e-3
# From where on it is looked whether that is so much that nothing is missing, as it was rounded (our choice, as above).
_NEARLY, _ALL = 0.05, 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Bag:
    """The distinct tokens of a batch.

    Attributes:
        tokens: their ids, ascending.
        parts_NM: the coefficients of their rows in the measurements.
        places_TM: those of the positions' rows, 0 where a position has none; the first one's are in the tokens' rows.
        complete: whether they make all of the gradient.
        reading_IN: makes parts of a gradient of the same layers, the tokens' first, then the positions'.
    """

    tokens: Row
    parts_NM: Tensor
    places_TM: Tensor
    complete: bool
    reading_IN: Tensor

    def without(self, own_MI: Tensor, *, times: int = 1) -> Bag:
        """What is left where a part of the batch is taken off; tokens that stand nowhere else are left out.

        Args:
            own_MI: that part's gradient.
            times: how often it is there.
        """
        own_NM = (exact(own_MI) @ self.reading_IN).T * times
        parts_NM = self.parts_NM - own_NM[: len(self.tokens)]
        places_TM = self.places_TM - own_NM[len(self.tokens) :]
        left_N = parts_NM.norm(dim=1) > _GONE * self.parts_NM.norm(dim=1)
        before_T = self.places_TM.norm(dim=1)
        left_T = (before_T > 0) & (places_TM.norm(dim=1) > _GONE * before_T)
        all_T = torch.ones_like(left_T)
        return dataclasses.replace(
            self,
            tokens=tuple(token for token, left in zip(self.tokens, left_N.tolist(), strict=True) if left),
            parts_NM=parts_NM[left_N],
            places_TM=places_TM * left_T[:, None],
            reading_IN=self.reading_IN[:, torch.cat([left_N, all_T])],
        )


def find_bag(
    model: TextModel,
    first: Measured,
    *,
    longest: int | None,
    clock: Clock,
) -> Generator[int, None, Bag | None]:
    """The tokens of a batch; yields how many were taken so far.

    Args:
        model: the public model.
        first: the first layers' input, with a gradient that isn't all zero.
        longest: positions of the longest sentence, where it is known.
        clock: when to give up.

    Returns:
        The tokens; None where what the layers read isn't made of tokens and positions.
    """
    layer = first.layers[0]
    assert isinstance(layer, LocalLayer)
    positions = min(longest or _LONGEST, model.max_length) if layer.depends_on_position else 0
    rows = _rows(model, layer, positions)
    if rows is None:
        return None
    tokens_VI, places_TI, bias_I = rows
    others_PI = torch.cat([places_TI, bias_I])
    others_PI = others_PI[others_PI.any(1)]
    gradient_MI = first.gradient_MI.to(tokens_VI.device)
    common_NI = _common(model, tokens_VI)
    mean_I = common_NI.mean(0)
    white_JI = whitening(common_NI - mean_I, torch.cat([mean_I[None], others_PI]), ridge=_RIDGE)
    pursuit = Pursuit(gradient_MI, white_JI)
    tokens_VJ = tokens_VI @ pursuit.white_JI.to(tokens_VI).T
    whole_V = tokens_VJ.square().sum(1)
    taken_V = torch.zeros_like(whole_V)
    chosen: list[int] = []
    while pursuit.left > NOTHING and pursuit.room > 0 and not clock.over:
        along_VR = tokens_VJ @ pursuit.directions().to(tokens_VJ)
        within_V = part_within(along_VR, whole_V - taken_V, whole_V)
        token = int(within_V.argmax())
        if not within_V[token]:
            break
        chosen.append(token)
        unit_J = pursuit.take(pursuit.outside(tokens_VJ[token].to(pursuit.left_JR)[None])[0])
        taken_V += (tokens_VJ @ unit_J.to(tokens_VJ)).square()
        yield len(chosen)
        if (
            pursuit.left <= _NEARLY
            and parts(gradient_MI, torch.cat([tokens_VI[chosen], others_PI])).left <= _ALL
        ):
            break
    made = parts(gradient_MI, torch.cat([tokens_VI[chosen], others_PI]))
    return _bag(made, chosen, rows=rows, full=pursuit.room <= 0)


def _bag(made: Parts, chosen: Sequence[int], *, rows: tuple[Tensor, Tensor, Tensor], full: bool) -> Bag:
    """The tokens taken that are really there, with their parts.

    Args:
        made: parts of the tokens taken, then of the positions with a row of their own, and of the norm's bias.
        chosen: the tokens.
        rows: all tokens', all positions', and the bias.
        full: whether so many were taken that any gradient would be made of them.
    """
    tokens_VI, places_TI, bias_I = rows
    placed_T = places_TI.any(1)
    there = made.there_N[: len(chosen)].tolist()
    parts_NM = made.parts_NM * made.there_N[:, None]
    places_TM = parts_NM.new_zeros(len(placed_T), parts_NM.shape[1])
    places_TM[placed_T] = parts_NM[len(chosen) :][: int(placed_T.sum())]
    order = sorted((token, n) for n, token in enumerate(chosen) if there[n])
    tokens = [token for token, _ in order]
    made_of_NI = exact(torch.cat([tokens_VI[tokens], places_TI, bias_I]))
    return Bag(
        tokens=tuple(tokens),
        parts_NM=made.parts_NM[[n for _, n in order]],
        places_TM=places_TM,
        complete=bool(chosen) and made.left <= LEFT and not full,
        reading_IN=torch.linalg.pinv(made_of_NI)[:, : len(tokens) + len(places_TI)],
    )


def _rows(model: TextModel, layer: LocalLayer, positions: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """A row a token (V, I), a row a position (T, I), and what the norm adds to each input (1, I)."""
    made = additive_inputs(model, layer)
    if made is not None:
        tokens_VI, places_PI = made.directions(positions)
        return tokens_VI, places_PI[:-1], places_PI[-1:]
    if layer.depends_on_position:
        return None
    every_V1 = torch.arange(model.vocab_size, device=model.device)[:, None]
    parts_VI = [
        layer_inputs(model, part_N1, [layer.name])[layer.name][:, 0]
        for part_N1 in torch.split(every_V1, _TOKENS_A_PASS)
    ]
    return torch.cat(parts_VI), parts_VI[0][:0], parts_VI[0][:0]


def _common(model: TextModel, tokens_VI: Tensor) -> Tensor:
    """Rows of arbitrary tokens."""
    generator = torch.Generator().manual_seed(0)  # public: any will do
    order = torch.randperm(len(model.content_ids), generator=generator)[:_COMMON]
    return tokens_VI[model.content_ids[order.to(model.device)]]
