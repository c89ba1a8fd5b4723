"""A decoder's sentences from few measurements of what its later layers read, as LoRA's adapters give them.

What a later layer reads at the end of a beginning of a sentence depends on the beginning alone, so every beginning
found shows which could come next: those with one token of the bag more. The gradient of each layer is made of what it
reads at the batch's beginnings; which of those in reach it's made of is a sparse regression (`pursuit`), of all layers
at once. What tells them apart is what the context does to a token: what is usual for the token, read off arbitrary
texts of the bag's tokens, is taken off first.

Shapes: M measurements, N beginnings, C in reach, K tokens of the bag, I a layer's input size, J its coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from textleak.clients.view import Clock
from textleak.exact.adapters.measured import Measured
from textleak.exact.adapters.pursuit import ALL, NOTHING, Pursuit, part_within, parts, whitening
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.probes.layers import layer_inputs
from textleak.models.probes.packing import packed_inputs, packs

# Tokens of arbitrary texts that show what is usual, those in one text at most, and what is added to the variances (our
# choice).
_USUAL, _LENGTH, _RIDGE = 2048, 24, 1e-2
# Tokens of all rows that run through the network at once: bounds the memory.
_TOKENS_A_PASS = 4096
# The relative norm that may be left of a layer's gradient (our choice; measured on smollm2 in float32: 1e-6 where
# nothing is missing).
LEFT = 1e-4


class Growth:
    """Beginnings of sentences, one more at each step.

    Attributes:
        beginnings: those found.
        complete: whether they make all of the gradients.
    """

    def __init__(
        self,
        model: TextModel,
        measured: Sequence[Measured],
        tokens: Row,
        *,
        longest: int | None,
        single: bool,
    ) -> None:
        """Look at what is usual.

        Args:
            model: the public model, a causal one.
            measured: later layers' inputs.
            tokens: the bag.
            longest: tokens of a beginning at most, where that is known.
            single: whether the batch has one sentence.
        """
        self.model, self.measured, self.tokens = model, measured, tokens
        self.longest, self.single = longest or model.max_length, single
        self.names = [one.name for one in measured]
        self.packs = packs(model, self.names[-1])
        usual = _usual(model, self.names, tokens, min(self.longest, _LENGTH))
        self.pursuits = [
            Pursuit(one.gradient_MI.to(model.device), whitening(*usual[one.name], ridge=_RIDGE))
            for one in measured
        ]
        self.beginnings: list[Row] = []
        self.complete = False
        self._reach: list[Row] = []
        self._outside = [pursuit.left_JR.new_empty(0, pursuit.left_JR.shape[0]) for pursuit in self.pursuits]
        self._whole = [outside.new_empty(0) for outside in self._outside]

    @property
    def leaves(self) -> list[Row]:
        """Beginnings that no other one goes on from, longest first."""
        inner = {row[:t] for row in self.beginnings for t in range(1, len(row))}
        return sorted((row for row in self.beginnings if row not in inner), key=len, reverse=True)

    def grow(self, clock: Clock) -> Iterator[int]:
        """Find them; yields how many there are."""
        self._extend(())
        while self._reach and not clock.over and all(pursuit.room > 0 for pursuit in self.pursuits):
            found = self._best()
            if found is None:
                break
            row = self._reach[found]
            self._take(found)
            if len(row) < self.longest:
                self._extend(row)
            yield len(self.beginnings)
            if self._finished():
                break
        self._keep_what_is_there()

    # One step

    def _extend(self, row: Row) -> None:
        """Put what a beginning could go on with into reach."""
        if self.packs:
            read = packed_inputs(self.model, self.names, [row], self.tokens)
            inputs = [read[name][0] for name in self.names]
        else:
            rows = torch.tensor([(*row, token) for token in self.tokens], device=self.model.device)
            read = layer_inputs(self.model, rows, self.names)
            inputs = [read[name][:, -1] for name in self.names]
        if self.single:
            self._reach.clear()
        self._reach += [(*row, token) for token in self.tokens]
        for index, (pursuit, inputs_KI) in enumerate(zip(self.pursuits, inputs, strict=True)):
            inputs_KJ = inputs_KI.to(pursuit.white_JI) @ pursuit.white_JI.T
            outside_KJ, whole_K = pursuit.outside(inputs_KJ), inputs_KJ.square().sum(1)
            if self.single:
                self._outside[index], self._whole[index] = outside_KJ, whole_K
            else:
                self._outside[index] = torch.cat([self._outside[index], outside_KJ])
                self._whole[index] = torch.cat([self._whole[index], whole_K])

    def _best(self) -> int | None:
        """The beginning in reach that lies furthest in what is left of all layers; None where none does at all."""
        score_C = torch.zeros(len(self._reach))
        for pursuit, outside_CJ, whole_C in zip(self.pursuits, self._outside, self._whole, strict=True):
            along_CR = outside_CJ @ pursuit.directions()
            within_C = part_within(along_CR, outside_CJ.square().sum(1), whole_C)
            # What a layer's determinant would keep: layers that tell more count for more.
            score_C += (1 - within_C.clamp(max=ALL)).log().cpu()
        best = int(score_C.argmin())
        return best if float(score_C[best]) < 0 else None

    def _take(self, index: int) -> None:
        self.beginnings.append(self._reach[index])
        for place, pursuit in enumerate(self.pursuits):
            outside_CJ = self._outside[place]
            unit_J = pursuit.take(outside_CJ[index])
            # Its own is nothing from now on, and is taken no more.
            self._outside[place] = outside_CJ - (outside_CJ @ unit_J)[:, None] * unit_J

    def _finished(self) -> bool:
        return all(pursuit.left <= NOTHING for pursuit in self.pursuits)

    # The end

    def _keep_what_is_there(self) -> None:
        """Leave out beginnings that have no part in the gradients."""
        if not self.beginnings:
            return
        inputs = self._inputs_at(self.beginnings)
        found = [parts(one.gradient_MI.to(self.model.device), inputs[one.name]) for one in self.measured]
        there_N = torch.stack([one.there_N for one in found]).double().mean(0) > 0.5  # in most layers
        kept = {row for row, there in zip(self.beginnings, there_N.tolist(), strict=True) if there}
        kept |= {row[:t] for row in kept for t in range(1, len(row))}
        self.beginnings = [row for row in self.beginnings if row in kept]
        self.complete = all(one.left <= LEFT for one in found) and all(p.room > 0 for p in self.pursuits)

    def _inputs_at(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """What the layers read at the end of each beginning, (N, I) each."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}
        at: dict[Row, tuple[int, int]] = {}
        leaves = self.leaves
        for r, leaf in enumerate(leaves):
            at |= {leaf[: t + 1]: (r, t) for t in range(len(leaf)) if leaf[: t + 1] not in at}
        for leaf in leaves:
            read = layer_inputs(self.model, torch.tensor([leaf], device=self.model.device), self.names)
            for name in self.names:
                found[name].append(read[name][0])
        return {
            name: torch.stack([read[at[row][0]][at[row][1]] for row in rows]) for name, read in found.items()
        }


def _usual(
    model: TextModel, names: Sequence[str], tokens: Row, length: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each layer what arbitrary texts make it read: deviations from each token's mean, and the means.

    First positions are left out: what networks make of them is far from all else, and found by itself.
    """
    generator = torch.Generator().manual_seed(0)  # public: any texts will do
    length = max(2, length)
    index_NT = torch.randint(len(tokens), (-(-_USUAL // (length - 1)), length), generator=generator)
    ids_NT = torch.tensor(tokens)[index_NT].to(model.device)
    read: dict[str, list[Tensor]] = {name: [] for name in names}
    for part_NT in torch.split(ids_NT, max(1, _TOKENS_A_PASS // length)):
        for name, inputs_NTI in layer_inputs(model, part_NT, names).items():
            read[name].append(inputs_NTI[:, 1:].flatten(0, 1).double())
    which = index_NT[:, 1:].flatten().to(model.device)
    there = torch.bincount(which, minlength=len(tokens)) > 0
    found = {}
    for name in names:
        inputs_NI = torch.cat(read[name])
        sums_KI = inputs_NI.new_zeros(len(tokens), inputs_NI.shape[1]).index_add(0, which, inputs_NI)
        means_KI = sums_KI / torch.bincount(which, minlength=len(tokens)).clamp_min(1)[:, None]
        found[name] = (inputs_NI - means_KI[which], means_KI[there])
    return found
