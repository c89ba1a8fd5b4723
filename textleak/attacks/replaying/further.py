"""One sentence by its inputs further in: of which tokens of ranked lists an update's spans hold most there.

Ten steps of AdamW turn the spans so far that a true token may be the tenth of its list. Further in, an input depends on
all of the sentence, and several layers have a say. It takes the network's first blocks, and no gradient.

Shapes: T positions, O and I a layer's output and input size.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch

from textleak.clients.view import View
from textleak.exact.adapters.measured import Measured
from textleak.exact.adapters.within import Within
from textleak.exact.subspace import stacked
from textleak.matching.discrete import Row, shuffled
from textleak.models.probes.layers import following_layers
from textleak.numerics import svd

# Inputs further in that are looked at: those of a transformer's first block but the first one, and of half of the
# second; and sentences of the lists' tokens that tell how these differ (our choice; measured on minilm after ten steps
# of AdamW).
_INPUTS, _USUAL = 6, 100
# Rounds over all positions (our choice).
_SWEEPS = 8


class FurtherIn:
    """Scores sentences of one length by what of their inputs lies in the spans.

    Args:
        view: what the server sees.
        lists: the tokens at each position, likeliest first; each span has as many directions as there are positions.
    """

    def __init__(self, view: View, lists: Sequence[Sequence[int]]) -> None:
        self.lists, seen, model = lists, view.shared.gradients, view.text_model
        measured = []
        for layers in following_layers(model, _INPUTS):
            shared = tuple(layer for layer in layers if layer.weight_name in seen)
            if not shared:
                continue
            stacked_OI = stacked(seen, shared)
            if stacked_OI.shape[1] == model.hidden_size:
                _, s_R, basis_RI = svd(stacked_OI)
                directions_RI = (s_R[:, None] * basis_RI)[: len(lists)]
                measured.append(Measured(layers=shared, gradient_MI=directions_RI))
        generator = torch.Generator().manual_seed(0)  # any will do
        usual = [
            tuple(tokens[shuffled(len(tokens), generator)[0]] for tokens in lists) for _ in range(_USUAL)
        ]
        self.within = Within(model, measured, usual)

    def nearest(self) -> Row:
        """From the first token of each list, one position after the other takes the token that leaves most within.

        Where that changes nothing any more, two tokens are exchanged.
        """
        best = tuple(tokens[0] for tokens in self.lists)
        if not self.within.names:
            return best
        for _ in range(_SWEEPS):
            before = best
            for t, tokens in enumerate(self.lists):
                best = self._best([best, *((*best[:t], token, *best[t + 1 :]) for token in tokens)])
            if best == before:
                best = self._best([best, *self._exchanged(best)])
            if best == before:
                break
        return best

    def _best(self, rows: Iterable[Row]) -> Row:
        tried = [*dict.fromkeys(rows)]
        scores = self.within.scores(tried)
        return tried[max(range(len(tried)), key=scores.__getitem__)]

    def _exchanged(self, row: Row) -> Iterator[Row]:
        """The sentence with two tokens in each other's place, where their lists have them."""
        for t, u in itertools.combinations(range(len(row)), 2):
            if row[u] in self.lists[t] and row[t] in self.lists[u]:
                yield (*row[:t], row[u], *row[t + 1 : u], row[t], *row[u + 1 :])
