"""What the first attention's gradient says of inputs that are known: which of them stand in one sentence.

With S the scores of a head in one sentence, the gradient at a token's query is the sum of dS times the keys of its own
sentence, the gradient at its key the sum of dSᵀ times their queries, and each row of dS sums to zero: a softmax doesn't
change when a constant is added, whatever is dropped after it. In a decoder, keys are those up to the query's position.

Shapes: N inputs, M some of them, H heads, A a head's size, O the layers' output sizes together, I their input size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.exact.dropout.frame import Frame
from textleak.exact.pairs import joined, sparsest
from textleak.models.probes.attention import (
    Projected,
    first_attention,
    first_causal_attention,
    project,
)
from textleak.models.probes.layers import LocalLayer
from textleak.models.probes.reach import sees_ahead
from textleak.numerics import least_squares, svd

# A gradient below this part of the largest one's norm is rounding, as at the first query of a decoder (our choice).
_FAINT = 1e-6
# Singular values of keys below this part of the largest are none.
_NO_DIRECTION = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Attended:
    """Queries and keys of N inputs, and the gradients there, by head.

    Attributes:
        positions_N: where the inputs stand.
        causal: whether later keys aren't seen.
        queries_NHA, keys_NHA: of the inputs.
        at_queries_NHA, at_keys_NHA: the loss gradient there; None where that wasn't shared.
    """

    positions_N: Tensor
    causal: bool
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
            sides.append((_columns(columns_NHA), wanted_NHA, self._sees()))
        if self.at_keys_NHA is not None:
            sides.append((_columns(self.queries_NHA), self.at_keys_NHA, self._sees().T))
        count = len(self.keys_NHA)
        tied_NN = self.keys_NHA.new_zeros(count, count)
        start_N = tied_NN.new_ones(count)
        for n in range(count):
            heard = [
                (columns_HNA * seen_NN[n][:, None], wanted_NHA[n])
                for columns_HNA, wanted_NHA, seen_NN in sides
                if not bool(_faint(wanted_NHA)[n])
            ]
            if heard:
                columns, wanted = zip(*heard, strict=True)
                tied_N = sparsest(joined(columns), wanted, start_N)
                tied_N[n] = 0
                tied_NN[n] = tied_N / tied_N.max().clamp_min(torch.finfo(tied_N.dtype).tiny)
        return tied_NN

    def unexplained(self, members: Sequence[int]) -> Tensor:
        """The part of each member's gradients that no sentence of these members explains, (M,); 1 where it is all.

        At its query; where there is none, as at the first one of a decoder, at its key.
        """
        index = torch.tensor(members)
        sees_MM = self._sees()[index][:, index]
        left_M = self.keys_NHA.new_ones(len(index))
        for own, at_NHA, others_NHA in (
            (False, self.at_keys_NHA, self.queries_NHA),
            (True, self.at_queries_NHA, self.keys_NHA),
        ):
            if at_NHA is None:
                continue
            faint_N = _faint(at_NHA)
            for m, n in enumerate(members):
                seen_M = sees_MM[m] if own else sees_MM[:, m]
                if not bool(faint_N[n]):
                    left_M[m] = _left(at_NHA[n], others_NHA[index[seen_M]], sums_to_zero=own)
        return left_M

    def spare(self, members: Sequence[int]) -> int:
        """Entries of the least explained member's gradient beyond those that any others could explain."""
        _, heads, size = self.keys_NHA.shape
        return heads * (size + 1 - len(members))

    def _sees(self) -> Tensor:
        """Whose keys each query sees, (N, N)."""
        if not self.causal:
            return torch.ones(len(self.positions_N), len(self.positions_N), dtype=torch.bool)
        return self.positions_N[:, None] >= self.positions_N


def attended(frame: Frame, inputs_NI: Tensor, positions_N: Tensor) -> Attended | None:
    """What the attention's gradient says of N inputs, about all that make the span; None where it says nothing.

    Args:
        frame: the span of the layers that make queries and keys.
        inputs_NI: what they read.
        positions_N: where they stand.
    """
    parts = _query_and_key(frame)
    if parts is None:
        return None
    query, key, heads, causal = parts
    # Gᵀ = Xᵀ Δ: with all inputs known, so are the gradients at the outputs. Any others are the rest of the span.
    basis_IR = frame.span.basis_RI.T.cpu()
    inside_NR = inputs_NI @ basis_IR
    rest_RR = torch.linalg.qr(inside_NR.T, mode="complete").Q[:, len(inputs_NI) :].T
    deltas_NO = least_squares(torch.cat([inside_NR, rest_RR]).T, (frame.stacked_OI @ basis_IR).T)
    deltas_NO = deltas_NO[: len(inputs_NI)]
    outputs = [layer.output_size for layer in frame.layers]
    names = [layer.name for layer in frame.layers]
    deltas = dict(zip(names, torch.split(deltas_NO, outputs, dim=1), strict=True))

    def by_head(values: Tensor) -> Tensor:
        split: Tensor = torch.unflatten(values, -1, (heads, -1))
        return split

    def gradient(part: Projected) -> Tensor | None:
        found = deltas.get(part.layer.name)
        return None if found is None else by_head(found[:, part.outputs])

    if gradient(query) is None and gradient(key) is None:
        return None
    return Attended(
        positions_N=positions_N,
        causal=causal,
        queries_NHA=by_head(project(frame.model, query.layer, inputs_NI)[:, query.outputs]),
        keys_NHA=by_head(project(frame.model, key.layer, inputs_NI)[:, key.outputs]),
        at_queries_NHA=gradient(query),
        at_keys_NHA=gradient(key),
    )


def _query_and_key(frame: Frame) -> tuple[Projected, Projected, int, bool] | None:
    """What makes the first attention's queries and keys, how many heads it has, and whether it is causal."""
    model = frame.model
    if sees_ahead(model):
        plain = first_attention(model)
        if plain is None:
            return None
        return _all_of(plain.query), _all_of(plain.key), plain.heads, False
    causal = first_causal_attention(model)
    return None if causal is None else (causal.query, causal.key, causal.heads, True)


def _all_of(layer: LocalLayer) -> Projected:
    return Projected(layer=layer, outputs=slice(0, layer.output_size))


def _left(wanted_HA: Tensor, others_MHA: Tensor, *, sums_to_zero: bool) -> float:
    """The part of a gradient that others don't explain."""
    columns_HAM = others_MHA.permute(1, 2, 0)
    if sums_to_zero:  # parts that sum to zero see nothing that all have in common
        columns_HAM = columns_HAM - columns_HAM.mean(-1, keepdim=True)
    basis_HAM, s_HM, _ = svd(columns_HAM)
    basis_HAM = basis_HAM * (s_HM > _NO_DIRECTION * float(others_MHA.norm(dim=2).max()))[:, None]
    wanted_HA1 = wanted_HA[..., None]
    left_HA1 = wanted_HA1 - basis_HAM @ (basis_HAM.transpose(1, 2) @ wanted_HA1)
    return float(left_HA1.norm() / wanted_HA1.norm())


def _faint(values_NHA: Tensor) -> Tensor:
    """Which of N gradients are rounding."""
    norms_N = values_NHA.flatten(1).norm(dim=1)
    faint_N: Tensor = norms_N <= _FAINT * norms_N.max()
    return faint_N


def _columns(values_NHA: Tensor) -> Tensor:
    columns_HNA = values_NHA.transpose(0, 1)
    scaled_HNA: Tensor = columns_HNA / columns_HNA.norm(dim=2).mean()
    return scaled_HNA
