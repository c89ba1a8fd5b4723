"""What the first attention's gradient says of inputs that are known: which of them stand in one sentence.

With S the scores of a head in one sentence, the gradient at a token's query is the sum of dS times the keys of its own
sentence, the gradient at its key the sum of dSᵀ times their queries, and each row of dS sums to zero: a softmax doesn't
change when a constant is added, whatever is dropped after it.

Shapes: N inputs, H heads, A a head's size, O the layers' output sizes together, I their input size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.exact.dropout.frame import Frame
from textleak.exact.pairs import sparsest
from textleak.models.probes.attention import first_attention, project


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Attended:
    """Queries and keys of N inputs, and the gradients there, by head.

    Attributes:
        queries_NHA, keys_NHA: of the inputs.
        at_queries_NHA, at_keys_NHA: the loss gradient there; None where that wasn't shared.
    """

    queries_NHA: Tensor
    keys_NHA: Tensor
    at_queries_NHA: Tensor | None
    at_keys_NHA: Tensor | None

    def ties(self) -> Tensor:
        """How strongly each input is tied to each other, (N, N), 0 to 1 in each row."""
        sides = []
        if self.at_queries_NHA is not None:
            ones_NH1 = 10 * self.keys_NHA.abs().mean() * torch.ones_like(self.keys_NHA[..., :1])
            columns_NHA = torch.cat([self.keys_NHA, ones_NH1], -1)  # a heavy entry for the zero sum
            wanted_NHA = torch.cat([self.at_queries_NHA, torch.zeros_like(ones_NH1)], -1)
            sides.append((_columns(columns_NHA), wanted_NHA))
        if self.at_keys_NHA is not None:
            sides.append((_columns(self.queries_NHA), self.at_keys_NHA))
        count = len(self.keys_NHA)
        tied_NN = self.keys_NHA.new_zeros(count, count)
        start_N = tied_NN.new_ones(count)
        for n in range(count):
            tied_N = sparsest([(columns_HAN, wanted_NHA[n]) for columns_HAN, wanted_NHA in sides], start_N)
            tied_N[n] = 0
            tied_NN[n] = tied_N / tied_N.max().clamp_min(torch.finfo(tied_N.dtype).tiny)
        return tied_NN

    def unexplained(self, members: Sequence[int]) -> Tensor:
        """The part of each member's gradient at its query that the others' keys don't explain, as (len(members),)."""
        index = list(members)
        assert self.at_queries_NHA is not None
        keys_HAM = self.keys_NHA[index].permute(1, 2, 0)
        keys_HAM = keys_HAM - keys_HAM.mean(-1, keepdim=True)  # parts that sum to zero see no common key
        wanted_HAM = self.at_queries_NHA[index].permute(1, 2, 0)
        basis_HAM, s_HM, _ = torch.linalg.svd(keys_HAM, full_matrices=False)
        basis_HAM = basis_HAM * (s_HM > 1e-9 * s_HM[:, :1])[:, None]
        left_HAM = wanted_HAM - basis_HAM @ (basis_HAM.transpose(1, 2) @ wanted_HAM)
        tiny = torch.finfo(left_HAM.dtype).tiny
        outside_M: Tensor = left_HAM.square().sum((0, 1)) / wanted_HAM.square().sum((0, 1)).clamp_min(tiny)
        return outside_M.sqrt()


def attended(frame: Frame, inputs_NI: Tensor) -> Attended | None:
    """What the attention's gradient says of N inputs, about all that make the span; None where it says nothing.

    Args:
        frame: the span of the layers that make queries and keys.
        inputs_NI: what they read.
    """
    attention = first_attention(frame.model)
    if attention is None:
        return None
    # Gᵀ = Xᵀ Δ: with all inputs known, so are the gradients at the outputs. Any others are the rest of the span.
    basis_IR = frame.span.basis_RI.T.cpu()
    inside_NR = inputs_NI @ basis_IR
    rest_RR = torch.linalg.qr(inside_NR.T, mode="complete").Q[:, len(inputs_NI) :].T
    deltas_NO = torch.linalg.lstsq(
        torch.cat([inside_NR, rest_RR]).T, (frame.stacked_OI @ basis_IR).T
    ).solution
    deltas_NO = deltas_NO[: len(inputs_NI)]
    outputs = [layer.output_size for layer in frame.layers]
    parts = dict(
        zip((layer.name for layer in frame.layers), torch.split(deltas_NO, outputs, dim=1), strict=True)
    )
    split = (attention.heads, -1)
    at = {
        layer.name: torch.unflatten(parts[layer.name], -1, split) if layer.name in parts else None
        for layer in (attention.query, attention.key)
    }
    if all(value is None for value in at.values()):
        return None
    return Attended(
        queries_NHA=torch.unflatten(project(frame.model, attention.query, inputs_NI), -1, split),
        keys_NHA=torch.unflatten(project(frame.model, attention.key, inputs_NI), -1, split),
        at_queries_NHA=at[attention.query.name],
        at_keys_NHA=at[attention.key.name],
    )


def _columns(values_NHA: Tensor) -> Tensor:
    columns_HAN = values_NHA.permute(1, 2, 0)
    scaled_HAN: Tensor = columns_HAN / columns_HAN.norm(dim=1).mean()
    return scaled_HAN
