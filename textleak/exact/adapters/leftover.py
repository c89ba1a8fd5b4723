"""How much sentences leave of what adapters measure of several layers' inputs, however many more inputs there are.

The fewer of a batch's tokens stand where they should, and beside whom, the less of a layer's gradient is made of what
it reads of them: every layer after the first reads all of a sentence at each of its tokens. Nothing but the network's
way in is run, and only for the sentences that differ.

Shapes: C batches, M measurements, T tokens, I a layer's input size, R directions.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from textleak.exact.adapters.measured import Measured
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.guesses import padded
from textleak.models.probes.layers import layer_inputs
from textleak.numerics import exact

# What less than this is left of a gradient counts no more: the first layers' tells where tokens stand, not beside whom,
# and many wrong answers leave nothing of it (our choice; float32 leaves 1e-8 to 1e-5 of the others).
_NOTHING_FIRST, _NOTHING = 1e-2, 1e-5
# What each token counts in each layer, as the logarithm of what is left: another input always leaves less, whether it
# is right or not (our choice; its M numbers explain some 1 % of what is left by accident; measured on minilm).
_A_TOKEN = 0.02
# Directions fainter than this part of the strongest are rounding, and what is added to an input's squared norm, of its
# own and of the largest, so that one which follows from others does no harm.
_ROUNDING, _OWN, _OTHERS = 1e-8, 1e-10, 1e-11
# Tokens that run through the network at once, and sentences whose inputs are kept (our choice: a few hundred MB).
_TOKENS_A_PASS, _KEPT = 1024, 1024


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Beside:
    """Some sentences of a batch that stay, while others change.

    Attributes:
        directions: for each layer what it reads of them, orthonormal (R, I).
        gradients: for each layer what they leave of its gradient (M, I).
        tokens: how many they have.
    """

    directions: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    tokens: int


class Leftover:
    """Scores batches of sentences, lower where they leave less.

    Args:
        model: the public model.
        measured: the first layers' input, and later ones'.
    """

    def __init__(self, model: TextModel, measured: Sequence[Measured]) -> None:
        self.model = model
        self.names = [one.name for one in measured]
        self.gradients = [exact(one.gradient_MI) for one in measured]
        self._norms = [float(gradient_MI.norm()) for gradient_MI in self.gradients]
        self._known: OrderedDict[Row, tuple[Tensor, ...]] = OrderedDict()

    def beside(self, rows: Sequence[Row]) -> Beside:
        """What stays."""
        read = self._inputs(rows)
        directions, gradients = [], []
        for layer, gradient_MI in enumerate(self.gradients):
            inputs_NI = torch.cat([gradient_MI[:0], *(exact(inputs[layer]) for inputs in read)])
            _, s_R, directions_RI = torch.linalg.svd(inputs_NI, full_matrices=False)
            directions_RI = directions_RI[s_R > _ROUNDING * s_R.amax()] if len(s_R) else directions_RI
            directions.append(directions_RI)
            gradients.append(gradient_MI - (gradient_MI @ directions_RI.T) @ directions_RI)
        return Beside(
            directions=tuple(directions), gradients=tuple(gradients), tokens=sum(len(row) for row in rows)
        )

    def scores(self, beside: Beside, batches: Sequence[Sequence[Row]]) -> Tensor:
        """The sum over layers of the logarithm of what is left, with what the tokens count, (C,).

        Args:
            beside: sentences that all have in common.
            batches: those that they don't, as many each.
        """
        tokens_C = torch.tensor([beside.tokens + sum(map(len, rows)) for rows in batches])
        left_CL = self.left(beside, batches)
        floors_L = torch.tensor([_NOTHING_FIRST] + [_NOTHING] * (len(self.names) - 1)).to(left_CL)
        logs_C: Tensor = left_CL.maximum(floors_L).log().sum(1)
        return logs_C.cpu() + _A_TOKEN * len(self.names) * tokens_C

    def left(self, beside: Beside, batches: Sequence[Sequence[Row]]) -> Tensor:
        """The relative norm of each layer's gradient that each batch leaves, (C, L)."""
        size = len(batches[0])
        read = self._inputs([row for rows in batches for row in rows])
        found = []
        for layer, norm in enumerate(self._norms):
            directions_RI, gradient_MI = beside.directions[layer], beside.gradients[layer]
            inputs_CTI = pad_sequence(
                [
                    torch.cat([exact(inputs[layer]) for inputs in read[start : start + size]])
                    for start in range(0, len(read), size)
                ],
                batch_first=True,
            )
            inputs_CTI = inputs_CTI - (inputs_CTI @ directions_RI.T) @ directions_RI
            gram_CTT = inputs_CTI @ inputs_CTI.transpose(1, 2)
            own_CT = gram_CTT.diagonal(dim1=1, dim2=2)
            ridge_CT = _OWN * own_CT + _OTHERS * own_CT.amax(1, keepdim=True)
            along_CTM = inputs_CTI @ gradient_MI.T
            tiny = torch.finfo(gram_CTT.dtype).tiny
            parts_CTM = torch.linalg.solve(gram_CTT + torch.diag_embed(ridge_CT.clamp_min(tiny)), along_CTM)
            explained_C = (parts_CTM * along_CTM).sum((1, 2))
            found.append((gradient_MI.square().sum() - explained_C).clamp_min(0).sqrt() / norm)
        return torch.stack(found, 1)

    def _inputs(self, rows: Sequence[Row]) -> list[tuple[Tensor, ...]]:
        """What each layer reads of each sentence, (T, I)."""
        found = {row: self._known[row] for row in rows if row in self._known}
        waiting = sorted({*rows} - found.keys(), key=len)
        while waiting:
            most = max(1, _TOKENS_A_PASS // len(waiting[-1]))
            some, waiting = waiting[-most:], waiting[:-most]
            ids_NT, mask_NT = padded(self.model, some)
            read = layer_inputs(self.model, ids_NT, self.names, mask=mask_NT)
            for n, row in enumerate(some):
                found[row] = tuple(read[name][n, : len(row)] for name in self.names)
        for row in dict.fromkeys(rows):
            self._known[row] = found[row]
            self._known.move_to_end(row)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return [found[row] for row in rows]
