"""How much of what layers further in read of a sentence lies in what adapters measure of these inputs.

An adapter's gradient is a few combinations of what its layer reads, so of a true input a larger part lies in them than
of any other: as many directions as there are measurements, of as many as there are inputs, not of all. A sentence's
inputs further in depend on all of its tokens, so it shows in every one of them how many are right, and the other
sentences need not be known. What counts is how inputs of the same tokens differ, so it is looked at in coordinates
where these differences have no direction that stands out (`pursuit.whitening`).

Shapes: C sentences, M measurements, T tokens, I a layer's input size, J coordinates, R directions, N inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from textleak.exact.adapters.measured import Measured
from textleak.exact.adapters.pursuit import ALL, Pursuit, part_within, whitening
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.guesses import padded
from textleak.models.probes.layers import layer_inputs

# What is added to the coordinates' variances, as a part of the mean one (our choice; measured on minilm).
_RIDGE = 1e-3
# Tokens that run through the network at once (our choice).
_TOKENS_A_PASS = 1024


class Within:
    """Scores sentences, higher where more of their inputs is in what was measured.

    Attributes:
        names: modules that read the inputs.
    """

    def __init__(self, model: TextModel, measured: Sequence[Measured], usual: Sequence[Row]) -> None:
        """Learn how inputs differ.

        Args:
            model: the public model.
            measured: inputs of layers after the first ones.
            usual: sentences of the batch's tokens, in any order: what of their inputs lies within by chance counts
                nothing.
        """
        self.model = model
        self.names = [one.name for one in measured]
        self._known: dict[Row, float] = {}
        self._white: list[tuple[Tensor, Tensor]] = []
        self._chance: list[float] = []
        read = list(self._inputs(usual)) if measured else []
        for one in measured:
            inputs_NI = torch.cat([inputs[one.name][mask_CT > 0] for _, inputs, mask_CT in read])
            mean_I = inputs_NI.mean(0)
            white_JI = whitening(inputs_NI - mean_I, mean_I[None], ridge=_RIDGE)
            pursuit = Pursuit(one.gradient_MI.to(white_JI.device), white_JI)
            self._white.append((pursuit.white_JI.to(inputs_NI), pursuit.left_JR.to(inputs_NI)))
            self._chance.append(float(self._parts(len(self._chance), inputs_NI).mean()))

    def scores(self, rows: Sequence[Row]) -> list[float]:
        """The parts that lie within, beyond what does by chance, summed over tokens and layers, for each sentence."""
        for some, inputs, mask_CT in self._inputs([*{*rows} - self._known.keys()]):
            total_C = torch.zeros(len(some), device=mask_CT.device)
            for layer, name in enumerate(self.names):
                beyond_CT = self._parts(layer, inputs[name]) - self._chance[layer]
                total_C = total_C + (beyond_CT * mask_CT).sum(1)
            self._known.update(zip(some, total_C.tolist(), strict=True))
        return [self._known[row] for row in rows]

    def beyond(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """How much more than by chance of some inputs lies within: −log of what is left, summed over layers.

        Args:
            inputs: of each layer, by `names`, (..., I).
        """
        total_x = torch.zeros(())
        for layer, name in enumerate(self.names):
            left_x = 1 - self._parts(layer, inputs[name]).clamp(max=ALL)
            total_x = total_x.to(left_x) - left_x.log() + math.log(1 - min(self._chance[layer], ALL))
        return total_x

    def _parts(self, layer: int, inputs_xI: Tensor) -> Tensor:
        """How much of each of some inputs of a layer lies within: 0 to 1."""
        white_JI, directions_JR = self._white[layer]
        inputs_NJ = inputs_xI.flatten(0, -2) @ white_JI.T
        whole_N = inputs_NJ.square().sum(1)
        return part_within(inputs_NJ @ directions_JR, whole_N, whole_N).view(inputs_xI.shape[:-1])

    def _inputs(self, rows: Sequence[Row]) -> Iterator[tuple[list[Row], dict[str, Tensor], Tensor]]:
        """Some sentences after others, what layers read of them (C, T, I), and where they have tokens (C, T)."""
        waiting = sorted(rows, key=len)
        while waiting:
            most = max(1, _TOKENS_A_PASS // len(waiting[-1]))
            some, waiting = waiting[-most:], waiting[:-most]
            ids_CT, mask_CT = padded(self.model, some)
            yield some, layer_inputs(self.model, ids_CT, self.names, mask=mask_CT), mask_CT
