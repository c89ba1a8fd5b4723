"""The order of a sentence's tokens in an encoder whose first layers don't know positions (our choice).

There the gradient gives away which tokens a sentence has, not where they stand. What layers further in read of a token
depends on where all the others are: the nearer an order is to the true one, the less of it lies outside the spans of
these layers' gradients. So tokens are exchanged and moved for as long as that gets less. It is no proof: whether the
order is right is for the certificate to say, as relative positions can change a gradient by little more than rounding.

Shapes: K orders, T positions, R rank, I a layer's input size.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor

from textleak.events import Followed, Label
from textleak.exact.pairs import Pairs
from textleak.exact.subspace import layer_span
from textleak.matching.discrete import Row, shuffled
from textleak.models import TextModel
from textleak.models.gradient import formed_gradient, plainly_apart
from textleak.models.guesses import examples_of
from textleak.models.own_labels import solved_labels
from textleak.models.probes.layers import following_layers, layer_inputs
from textleak.shared.gradient import SharedGradient

# Layers further in that are asked, tokens that run through them at once, starts, and lengths that are tried where it
# isn't known (our choice).
_LAYERS, _TOKENS_A_PASS, _STARTS, _LENGTHS = 6, 2048, 6, 3
# Classes that are tried, and how far an answer's own gradient may be off to be one (our choice: the certificate asks
# for 1e-4 and less; another token or class makes 1e-2 and more).
_CLASSES, _NEAR = 64, 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ordered:
    """A sentence whose own gradient is near the shared one.

    Attributes:
        row: its tokens.
        label: its class.
    """

    row: Row
    label: Label


def ordered_sentence(model: TextModel, shared: SharedGradient, pairs: Pairs) -> Iterator[Ordered | None]:
    """The only sentence of a batch, put in order; yields None for as long as it isn't found.

    Args:
        model: the public model, a classifying encoder.
        shared: the shared gradient of one sentence.
        pairs: the tokens that the first layers' gradients show, the same at every position.
    """
    spans = [
        (layers[0].name, span)
        for layers in following_layers(model, _LAYERS)
        if all(layer.weight_name in shared.gradients for layer in layers)
        and (span := layer_span(shared, layers)) is not None
        and span.rank < span.size
    ]
    if not spans or (model.num_labels or 0) > _CLASSES:
        return
    check = _Outside(model, {name: span.basis_RI.to(model.device, model.dtype) for name, span in spans})
    around = {*model.prefix_ids, *model.suffix_ids}
    tokens = sorted({*pairs.tokens_N.tolist()} - around)
    least = len(model.prefix_ids) + len(tokens) + len(model.suffix_ids)
    known = shared.known.lengths
    generator = torch.Generator().manual_seed(0)  # any starts will do
    for length in known or range(least, least + _LENGTHS):
        if not least <= length <= model.max_length or not tokens:
            continue
        ends: list[tuple[float, Row]] = []
        for _ in range(_STARTS):
            more = [tokens[i] for i in torch.randint(len(tokens), (length - least,), generator=generator)]
            inner = [*tokens, *more]
            start = [inner[i] for i in shuffled(len(inner), generator)]
            descent = Followed(_descent(check, (*model.prefix_ids, *start, *model.suffix_ids)))
            for _ in descent:
                yield None
            ends.append(descent.result)
            _, row = ends[-1]
            if min(ends) != ends[-1] or [other for _, other in ends].count(row) > 1:
                continue  # worse than another, or tried
            label, distance = _best_class(model, shared, row)
            if distance <= _NEAR and label is not None:
                yield Ordered(row=row, label=label)
                return


class _Outside:
    """How far sentences' inputs further in lie outside the spans there."""

    def __init__(self, model: TextModel, bases: dict[str, Tensor]) -> None:
        self.model, self.bases = model, bases

    def of(self, rows: Sequence[Row]) -> list[float]:
        """The logarithm of the mean part outside, summed over the layers: these count alike, whatever they tell."""
        ids_KT = torch.tensor(rows, device=self.model.device)
        found: list[float] = []
        for part_KT in torch.split(ids_KT, max(1, _TOKENS_A_PASS // ids_KT.shape[1])):
            inputs = layer_inputs(self.model, part_KT, list(self.bases))
            parts = [
                ((x_KTI - (x_KTI @ self.bases[name].T) @ self.bases[name]).square().sum(-1))
                .div(x_KTI.square().sum(-1))
                .mean(1)
                .clamp_min(torch.finfo(x_KTI.dtype).tiny)
                .log()
                for name, x_KTI in inputs.items()
            ]
            found += torch.stack(parts).sum(0).tolist()
        return found


def _descent(check: _Outside, row: Row) -> Generator[None, None, tuple[float, Row]]:
    """The order of a row's tokens that no change betters, with how far it is outside; yields after each change."""
    model = check.model
    head, tail = len(model.prefix_ids), len(row) - len(model.suffix_ids)
    (best,) = check.of([row])
    while True:
        yield
        changed = list(dict.fromkeys(_changes(row, head, tail)))
        if not changed:
            return best, row
        score, nearest = min(zip(check.of(changed), changed, strict=True))
        if not score < best:
            return best, row
        best, row = score, nearest


def _changes(row: Row, head: int, tail: int) -> Iterator[Row]:
    """Two tokens exchanged, one moved elsewhere, or one that stands twice replaced by another."""
    for t, u in itertools.combinations(range(head, tail), 2):
        if row[t] != row[u]:
            swapped = list(row)
            swapped[t], swapped[u] = row[u], row[t]
            yield tuple(swapped)
    for t in range(head, tail):
        rest = (*row[:t], *row[t + 1 :])
        for u in range(head, tail):
            moved = (*rest[:u], row[t], *rest[u:])
            if moved != row:
                yield moved
    inner = row[head:tail]
    for t in range(head, tail):
        if inner.count(row[t]) > 1:
            for token in sorted({*inner} - {row[t]}):
                yield (*row[:t], token, *row[t + 1 :])


def _fitting(model: TextModel, shared: SharedGradient, row: Row) -> Sequence[Label]:
    """The classes that there are; what solves for the label where the head has a loss of its own."""
    if model.own_loss is None:
        return range(model.num_labels or 0)
    return solved_labels(model.double(), shared.gradients, [row]).labels or ()


def _best_class(model: TextModel, shared: SharedGradient, row: Row) -> tuple[Label | None, float]:
    """The class that brings a sentence's own gradient nearest to the shared one, and how far it is then."""
    classes = shared.known.labels or _fitting(model, shared, row)
    names = list(shared.gradients)
    best: Label | None = None
    least = math.inf
    for label in classes:
        own = formed_gradient(model, examples_of(model, [row], [label]), names)
        distance, norm = plainly_apart(shared.gradients, own)
        if distance < least * norm:
            best, least = label, distance / norm
    return best, least
