"""What could stand where: ranked tokens for each position, from the spans of the first layers' inputs.

Where no first layer's gradient was shared, the rows of the word embedding's gradient tell which tokens there are.

Proposals are only proposals: which of them is right, in which sentence and in which order, comes out of matching.

Shapes: T positions, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import torch

from textleak.clients.view import Clock
from textleak.exact.subspace import InputSpan, rank_vocabulary, shared_spans
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.probes.layers import LocalLayer, layer_inputs
from textleak.numerics import exact
from textleak.shared.gradient import SharedGradient

# A step up in the residual by this factor parts tokens inside the span from those outside (our choice; measured
# on minilm: 1e4 to 1e12 at the step).
_CLEAR_STEP = 100.0
# Positions that are ranked where neither a length is known nor the span is clear (our choice).
_LONGEST = 64
# Lengths beyond one a sentence that are kept where the span only ranks them (our choice; see `_soft_ends`).
_MORE_ENDS = 3
# Residuals below this are rounding; all that lie below the second are inside, even where no step shows it (our choice).
_RESIDUAL_FLOOR, _CERTAINLY_INSIDE = 1e-12, 1e-6
# Tokens of all rows that run through the first layers at once: bounds the memory.
_TOKENS_A_PASS = 32768


@dataclasses.dataclass(frozen=True, kw_only=True)
class Proposals:
    """Ranked tokens by position.

    Attributes:
        tokens: for each position the proposed ids, best first.
        inside: how many of them lie in the span, 0 where there is no telling.
        ordered: whether each position has its own list; False when one list stands for all (rotary positions).
        rank: distinct layer inputs in the batch, as far as the span shows; None when it isn't clear.
        above_noise: the span's directions that stand out of the noise, which needn't be all there are.
        ends: lengths that a sentence can have, likeliest first, where they aren't known and a defense blurs the span;
            else empty.
        size: the layer's input size; a rank close to it means that the span says little.
        channel: what gives the tokens away, "span" or "embedding" (rows of the word embedding's gradient).
    """

    tokens: tuple[tuple[int, ...], ...]
    inside: tuple[int, ...]
    ordered: bool
    rank: int | None
    size: int
    channel: str = "span"
    above_noise: int = 0
    ends: tuple[int, ...] = ()

    def at(self, position: int) -> tuple[int, ...]:
        """All tokens proposed for a position."""
        return self.tokens[min(position, len(self.tokens) - 1)]

    def surest_at(self, position: int) -> tuple[int, ...]:
        """Those inside the span, or all where there is no telling."""
        position = min(position, len(self.tokens) - 1)
        return self.tokens[position][: self.inside[position]] or self.tokens[position]

    @property
    def occupied(self) -> int:
        """Leading positions at which some token lies in the span: the longest sentence, as the span shows it."""
        return len(list(itertools.takewhile(bool, self.inside)))


def span_proposals(
    model: TextModel,
    shared: SharedGradient,
    *,
    longest: int | None,
    keep: int,
    clock: Clock | None = None,
) -> tuple[tuple[LocalLayer, ...], Proposals] | None:
    """Rank the vocabulary at each of `longest` positions; None where neither spans nor rows tell anything in time.

    Args:
        model: the public model.
        shared: the shared gradient.
        longest: positions to rank; None where no length is known: as many as the span has dimensions.
        keep: tokens to keep for each.
        clock: when to give up; the vocabulary at many positions takes long.

    Returns:
        The layers that show the span, none for rows of the embedding, and the proposals.
    """
    spans = shared_spans(model, shared)
    if not spans:
        proposals = _row_proposals(model, shared)
        return None if proposals is None else ((), proposals)
    # The widest input shows the most tokens; a clear spectrum goes before any that isn't.
    layers, span = max(spans, key=lambda pair: pair[1].room)
    layer = layers[0]
    if span.clear and not layer.depends_on_position:  # one list has the tokens of all positions
        keep = max(keep, span.rank + 1)
    ends: tuple[int, ...] = ()
    if longest is None and shared.effects and not span.clear:
        ends = _soft_ends(model, layer, span)[: (shared.known.size or 1) + _MORE_ENDS]
    if longest is None:  # every position of the longest sentence adds an input of its own
        longest = max(ends, default=min(model.max_length, span.rank + 1 if span.clear else _LONGEST))
    tokens: list[tuple[int, ...]] = []
    inside: list[int] = []
    for position, ranked in rank_vocabulary(model, layer, span, positions=longest, keep=keep, clock=clock):
        if clock is not None and clock.over:
            return None
        ids = [id_ for id_, _ in ranked]
        residuals = _residuals(model, layer, span, [(*[id_] * (position + 1),) for id_ in ids])
        order = sorted(range(len(ids)), key=residuals.__getitem__) if span.clear else range(len(ids))
        tokens.append(tuple(ids[i] for i in order))
        inside.append(_inside([residuals[i] for i in order]) if span.clear else 0)
    if not tokens:
        return None
    return layers, Proposals(
        tokens=tuple(tokens),
        inside=tuple(inside),
        ordered=layer.depends_on_position,
        rank=span.rank if span.clear else None,
        size=span.size,
        above_noise=span.rank,
        ends=ends,
    )


def _soft_ends(model: TextModel, layer: LocalLayer, span: InputSpan) -> tuple[int, ...]:
    """Lengths by how much of a last token's input an unclear span explains, most first.

    Measured on minilm, 20 sentences of 8 to 15 tokens: the true length is first in all 20 after rounding to bf16 or
    int8, pruning of 90 % or noise of 1e-5, in 17 at 1e-4 and among the first three in the others.
    """
    fixed = len(model.prefix_ids) + len(model.suffix_ids)
    if not model.suffix_ids or not layer.depends_on_position or span.rank >= span.size:
        return ()
    last = torch.full((1, min(_LONGEST, model.max_length)), model.suffix_ids[-1], device=model.device)
    inputs_TI = layer.meant(layer_inputs(model, last, [layer.name])[layer.name][0])
    ranked: list[int] = span.explained(inputs_TI).argsort(descending=True).tolist()
    return tuple(position + 1 for position in ranked if position >= fixed)


def _row_proposals(model: TextModel, shared: SharedGradient) -> Proposals | None:
    """Tokens whose row of the word embedding's gradient isn't zero: only they were looked up.

    None where it wasn't shared, noise fills it, or an output head that is tied to it does.
    """
    table = model.word_embedding.weight
    gradients = [g for name, g in shared.gradients.items() if model.parameters[name] is table]
    if not gradients or shared.noise_sigma > 0:
        return None
    ids = gradients[0].any(1).nonzero().flatten().tolist()
    if not 0 < len(ids) <= model.vocab_size // 2:
        return None
    return Proposals(
        tokens=(tuple(ids),),
        inside=(len(ids),),
        ordered=False,
        rank=len(ids),
        size=model.vocab_size,
        channel="embedding",
    )


def _residuals(model: TextModel, layer: LocalLayer, span: InputSpan, rows: Sequence[Row]) -> list[float]:
    """The part of the squared norm of each row's last layer input that lies outside the span, in float64."""
    ids_NT = torch.tensor(rows, device=model.device)
    parts = torch.split(ids_NT, max(1, _TOKENS_A_PASS // ids_NT.shape[1]))
    inputs_NI = torch.cat([layer_inputs(model, part, [layer.name])[layer.name][:, -1] for part in parts])
    inputs_NI = exact(layer.meant(inputs_NI))
    basis_RI = span.basis_RI.to(inputs_NI.device)
    outside_NI = inputs_NI - (inputs_NI @ basis_RI.T) @ basis_RI
    # An input of zeros leaves no trace in a gradient, whatever span it is in.
    residual_N = (outside_NI.square().sum(-1) / inputs_NI.square().sum(-1)).nan_to_num(1.0)
    residuals: list[float] = residual_N.tolist()
    return residuals


def _inside(residuals: Sequence[float]) -> int:
    """How many of the ascending residuals come before the clearest step up; where there is none, all or none."""
    clipped = [max(r, _RESIDUAL_FLOOR) for r in residuals]
    steps = [after / before for before, after in itertools.pairwise(clipped)]
    if not steps or max(steps) < _CLEAR_STEP:
        return len(clipped) if clipped[-1] < _CERTAINLY_INSIDE else 0
    return max(i for i, step in enumerate(steps) if step >= max(steps) * 0.999) + 1
