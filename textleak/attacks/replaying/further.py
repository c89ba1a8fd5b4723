"""One sentence by its inputs further in: which tokens of ranked lists leave least of them outside an update's spans.

Ten steps of AdamW turn the spans so far that a true token may be the tenth of its list. Further in, an input depends on
all of the sentence, and several layers have a say. It takes the network's first blocks, and no gradient.

Shapes: L layers, K sentences, T positions, I a layer's input size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.exact.checks import parts_outside
from textleak.exact.subspace import as_rows
from textleak.matching.discrete import Row
from textleak.models.probes.layers import following_layers
from textleak.numerics import exact

# Inputs further in that are asked: those of a transformer's first block but the first one, and of half of the second
# (our choice; measured on minilm after ten steps of AdamW: with 12 or all of them fewer tokens come out right).
_INPUTS = 6
# Rounds over all positions, and sentences that run through the network at once (our choice).
_SWEEPS, _AT_ONCE = 4, 128


class FurtherIn:
    """Scores sentences of one length by what their inputs have outside the spans; the nearer the lower.

    Args:
        view: what the server sees.
        length: of the sentence, which is how many directions each span has.
    """

    def __init__(self, view: View, length: int) -> None:
        self.model, seen = view.text_model, view.shared.gradients
        self.bases: dict[str, Tensor] = {}
        for layers in following_layers(self.model, _INPUTS):
            shared = [layer for layer in layers if layer.weight_name in seen]
            if shared:
                stacked_OI = torch.cat([exact(as_rows(seen[layer.weight_name], layer)) for layer in shared])
                basis_RI = torch.linalg.svd(stacked_OI, full_matrices=False)[2][:length]
                self.bases[shared[0].name] = basis_RI.to(self.model.device, self.model.dtype)

    def scores(self, rows: Sequence[Row]) -> Tensor:
        """The mean over inputs and positions of the logarithm of the part outside, (K,)."""
        ids_KT = torch.tensor(rows, device=self.model.device)
        parts_LKT = parts_outside(self.model, ids_KT, self.bases, at_once=_AT_ONCE)
        return parts_LKT.clamp_min(torch.finfo(self.model.dtype).eps).log().mean((0, 2))

    def nearest(self, lists: Sequence[Sequence[int]]) -> Row:
        """From the first token of each list, one position after the other takes what leaves least outside."""
        best = tuple(tokens[0] for tokens in lists)
        if not self.bases:
            return best
        for _ in range(_SWEEPS):
            before = best
            for t, tokens in enumerate(lists):
                tried = [(*best[:t], token, *best[t + 1 :]) for token in tokens]
                best = tried[int(self.scores(tried).argmin())]
            if best == before:
                break
        return best
