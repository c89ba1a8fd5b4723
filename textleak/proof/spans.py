"""How far a text's gradient is at least, by what the first layers read of it: without running the rest of the network.

The gradient of a linear layer is ΔᵀX, so all that a text can make of it lies in the span of the text's own inputs X.
Whatever part of the shared gradient lies outside that span, the text's whole gradient is at least as far away. At the
first layers X needs no layer at all, and at those after the first attention a part of a block.

Shapes: N different inputs of the answer, R their rank, I and O the layers' input and output size, F other inputs that a
rival has, K directions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from textleak.matching.discrete import Guess, Row
from textleak.models import TextModel
from textleak.models.probes.layers import (
    LinearLayer,
    LocalLayer,
    following_layers,
    layer_inputs,
    local_layers,
)
from textleak.models.probes.packing import EachOnce, Kept
from textleak.numerics import exact, singular_values, svd
from textleak.proof.distances import Gradient

# Singular values below this part of the largest are none: inputs that follow from others exactly (our choice; float64
# leaves 1e-15 of them, and what nearly follows is measured at 1e-4 and more on minilm).
_NO_DIRECTION = 1e-9
# A direction that another input has more than this part of, after whitening, isn't outside its span (our choice;
# float64 leaves 1e-13).
_LEAK = 1e-10
# Of a Gram matrix's triangle the least pivot, as a part of the largest, that its inverse is taken for sound at: its
# rounding is then 1e-8 at most; and what is taken off a bound for it, as a part of all that it could be (our choice).
_SOUND, _SLACK = 1e-4, 1e-6
# Rivals looked at together: bounds the memory.
_AT_ONCE = 64
# Inputs beyond the first that are looked at for a shared gradient: in a transformer those of a block.
_INPUTS = 4
# Tokens that run through the network at once, numbers that their states have at most, and rows of a gradient that
# are looked at: all bound the memory.
_TOKENS_A_PASS, _NUMBERS_A_PASS, _ROWS = 4096, 2**20, 1024


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerSpan:
    """What layers with one common input read of an answer, and of all rivals' rows.

    Attributes:
        keys: of each row, what tells each of its inputs from others.
        others: which of the M inputs that the answer hasn't each is.
        inside_MR: their parts along an orthonormal basis of the answer's, float64.
        beyond_MI: what they have outside that.
        index: which of the N different inputs each of the answer's is.
        whitened_NR: these inputs' coordinates in an orthonormal system of their columns.
        dual_RR: what undoes that, along the basis.
        gradient_RR: the shared gradient of all layers that read it along the basis, but for a rotation of its outputs.
        besides: norm of what the shared gradient has outside it.
        go_on: called on the way; raises where time is up.
        outside: what `_directions` found, which rivals at the same places have in common.
    """

    keys: dict[Row, list[bytes]]
    others: dict[bytes, int]
    inside_MR: Tensor
    beyond_MI: Tensor
    index: dict[bytes, int]
    whitened_NR: Tensor
    dual_RR: Tensor
    gradient_RR: Tensor
    besides: float
    go_on: Callable[[], None]
    outside: dict[tuple[int, ...], Tensor | None] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: TextModel,
        shared: Gradient,
        layers: Sequence[LinearLayer],
        local: Sequence[LocalLayer],
        *,
        answer: Guess,
        rivals: Sequence[Guess],
        go_on: Callable[[], None],
    ) -> LayerSpan:
        """Run all rows as far as these layers.

        Args:
            model: in float64.
            shared: what was shared, as it is.
            layers: that read one and the same input; each weight is used once.
            local: those that read each token by itself.
            answer: the batch.
            rivals: the texts most like it.
            go_on: called on the way; what it raises goes through, here and later.
        """
        rows = list(dict.fromkeys(row for guess in (answer, *rivals) for row in guess.rows))
        keys: dict[Row, list[bytes]] = {}
        places: dict[bytes, int] = {}
        passes: list[Tensor] = []
        for some, index, inputs_UI in _read(model, layers[0], local, rows):
            go_on()
            every, new = _keys(inputs_UI), []
            for u, key in enumerate(every):
                if key not in places:
                    places[key] = len(places)
                    new.append(u)
            passes.append(inputs_UI[new])
            by_row = iter(index)
            keys.update({row: [every[u] for u in itertools.islice(by_row, len(row))] for row in some})
        distinct_PI = torch.cat(passes)
        passes.clear()
        own = list(dict.fromkeys(key for row in answer.rows for key in keys[row]))
        inputs_NI = distinct_PI[[places.pop(key) for key in own]]
        left_NR, s_R, basis_RI = svd(inputs_NI)
        kept = int((s_R > _NO_DIRECTION * s_R[0]).sum())
        left_NR, s_R, basis_RI = left_NR[:, :kept], s_R[:kept], basis_RI[:kept]
        gradient_OR, besides = _along(shared, layers, basis_RI)
        others_MI = distinct_PI[list(places.values())]
        del distinct_PI
        inside_MR = others_MI @ basis_RI.T
        return cls(
            keys=keys,
            others={key: m for m, key in enumerate(places)},
            inside_MR=inside_MR,
            beyond_MI=others_MI.addmm_(inside_MR, basis_RI, alpha=-1),
            index={key: n for n, key in enumerate(own)},
            whitened_NR=left_NR,
            dual_RR=torch.diag(1 / s_R),
            gradient_RR=torch.linalg.qr(gradient_OR, mode="r").R,
            besides=besides,
            go_on=go_on,
        )

    def least(self, rival: Guess) -> float:
        """How far the rival's gradient is at least from the shared one: what of that lies outside its inputs' span."""
        lacks, others = self._differs(rival)
        outside_KR = self._outside(lacks)
        if outside_KR is None or self._filled(len(outside_KR), len(others)):
            return 0.0
        if others:
            outside_KR = _turned(outside_KR, self.inside_MR[others], self.beyond_MI[others])
        return max(0.0, float((self.gradient_RR @ outside_KR.T).norm()) - self.besides)

    def within(self, rivals: Sequence[Guess], most: float) -> list[Guess]:
        """The rivals that aren't clearly farther than so much by `least`, of those alike many at once.

        Along K directions outside, with A what F other inputs have along them and B the Gram matrix of what these have
        outside the basis, what remains of the directions has the metric I − Aᵀ(B + AAᵀ)⁻¹A.
        """
        groups: dict[tuple[int, int], list[tuple[int, tuple[int, ...], list[int]]]] = {}
        for number, rival in enumerate(rivals):
            self.go_on()
            lacks, others = self._differs(rival)
            outside_KR = self._outside(lacks)
            if outside_KR is not None and others and not self._filled(len(outside_KR), len(others)):
                groups.setdefault((len(outside_KR), len(others)), []).append((number, lacks, others))
        beyond: set[int] = set()
        for members in groups.values():
            for start in range(0, len(members), _AT_ONCE):
                self.go_on()
                some = members[start : start + _AT_ONCE]
                beyond.update(some[k][0] for k in self._clearly_beyond(some, most))
        return [rival for n, rival in enumerate(rivals) if n not in beyond]

    def _clearly_beyond(
        self, some: Sequence[tuple[int, tuple[int, ...], list[int]]], most: float
    ) -> list[int]:
        """Which of some rivals, of as many directions and other inputs each, are farther than so much."""
        outside = [self._outside(lacks) for _, lacks, _ in some]
        outside_NKR = torch.stack([one for one in outside if one is not None])
        others_NF = torch.tensor([others for _, _, others in some], device=outside_NKR.device)
        moved_NRK = self.gradient_RR @ outside_NKR.mT
        whole_N = moved_NRK.square().sum((1, 2))
        along_NFK = self.inside_MR[others_NF] @ outside_NKR.mT
        beyond_NFI = self.beyond_MI[others_NF]
        gram_NFF = torch.baddbmm(along_NFK @ along_NFK.mT, beyond_NFI, beyond_NFI.mT)
        lower_NFF, info_N = torch.linalg.cholesky_ex(gram_NFF)
        pivots_NF = lower_NFF.diagonal(dim1=1, dim2=2)
        sound_N = (info_N == 0) & (pivots_NF.amin(1) > _SOUND * pivots_NF.amax(1))
        lost_NFR = torch.linalg.solve_triangular(lower_NFF, along_NFK @ moved_NRK.mT, upper=False)
        left_N = whole_N * (1 - _SLACK) - lost_NFR.square().sum((1, 2))
        far_N = sound_N & (left_N.clamp_min(0).sqrt() > most + self.besides)
        found: list[int] = far_N.nonzero().flatten().tolist()
        return found

    def _differs(self, rival: Guess) -> tuple[tuple[int, ...], list[int]]:
        """Which of the answer's inputs a rival hasn't, and which others it has."""
        read = {key for row in rival.rows for key in self.keys[row]}
        lacks = tuple(n for key, n in self.index.items() if key not in read)
        return lacks, sorted(self.others[key] for key in read if key not in self.index)

    def _filled(self, directions: int, others: int) -> bool:
        """Whether as many other inputs fill all of so many directions and what lies outside the answer's own span.

        Unless they depend on each other; nothing is told then, which claims nothing.
        """
        width, rank = self.beyond_MI.shape[1], self.inside_MR.shape[1]
        return others >= directions + width - rank

    def _outside(self, lacks: tuple[int, ...]) -> Tensor | None:
        """`_directions`, found once."""
        if lacks not in self.outside:
            self.outside[lacks] = self._directions(list(lacks))
        return self.outside[lacks]

    def _directions(self, lacks: Sequence[int]) -> Tensor | None:
        """Orthonormal directions along the basis that none of the answer's inputs but these has a part in, (K, R)."""
        if not lacks:
            return None
        _, s_K, directions_KR = svd(self.whitened_NR[lacks])
        directions_KR = directions_KR[s_K > 0.5]  # 1 where only these have a part in it
        parts_NK = self.whitened_NR @ directions_KR.T
        parts_NK[lacks] = 0
        directions_KR = directions_KR[parts_NK.norm(dim=0) <= _LEAK]
        if not len(directions_KR):
            return None
        orthonormal_RK: Tensor = torch.linalg.qr((directions_KR @ self.dual_RR).T).Q
        return orthonormal_RK.T


def leaves_room(
    model: TextModel,
    shared: Gradient,
    layers: Sequence[LinearLayer],
    local: Sequence[LocalLayer],
    answer: Guess,
) -> bool:
    """Whether some dimension of what layers read is left by an answer; else all rivals read what lies in its span.

    Arguments are those of `LayerSpan.of`; nothing is run where the answer has fewer tokens than there are dimensions.
    """
    rows = list(dict.fromkeys(answer.rows))
    if sum(map(len, rows)) < layers[0].as_rows(shared[layers[0].weight_name]).shape[1]:
        return True
    inputs_PI = torch.cat([inputs_UI for _, _, inputs_UI in _read(model, layers[0], local, rows)])
    if len(inputs_PI) < inputs_PI.shape[1]:  # the same token at the same place is read once
        return True
    s_I = singular_values(inputs_PI)
    return bool(s_I[-1] <= _NO_DIRECTION * s_I[0])


def _along(shared: Gradient, layers: Sequence[LinearLayer], basis_RI: Tensor) -> tuple[Tensor, float]:
    """The gradients of some layers along a basis, (outputs, R), and the norm of what they have outside it."""
    along, squared = [], 0.0
    for layer in layers:
        for part in torch.split(layer.as_rows(shared[layer.weight_name]), _ROWS):
            part_OI = exact(part).to(basis_RI)
            along.append(part_OI @ basis_RI.T)
            squared += float(torch.addmm(part_OI, along[-1], basis_RI, alpha=-1).square().sum())
    return torch.cat(along), squared**0.5


def _keys(inputs_PI: Tensor) -> list[bytes]:
    """What tells each input from others: a digest, as a wide layer's inputs are large."""
    inputs = inputs_PI.contiguous().cpu().numpy()
    return [hashlib.blake2b(row_I.data, digest_size=16).digest() for row_I in inputs]


def _turned(outside_KR: Tensor, inside_FR: Tensor, beyond_FI: Tensor) -> Tensor:
    """What remains, along the basis, of directions made orthogonal to other inputs; these may lean out of the basis.

    Args:
        outside_KR: directions.
        inside_FR: other inputs along the basis.
        beyond_FI: what they have outside it, which is at the directions' disposal.
    """
    least = _NO_DIRECTION * inside_FR.norm()
    left_FF, s_F, _ = svd(beyond_FI)
    parts_FK = torch.cat([inside_FR @ outside_KR.T, (left_FF * s_F)[:, s_F > least]], 1)
    _, s_F, across_KK = svd(parts_FK, full=True)
    rank = int((s_F > least).sum())
    remaining_KR: Tensor = across_KK[rank:, : len(outside_KR)] @ outside_KR
    return remaining_KR


def first_layers(model: TextModel, shared: Gradient) -> list[list[LinearLayer]]:
    """The layers that read the first input, and those that read the next one of which a gradient was shared."""
    local: dict[str, list[LinearLayer]] = {}
    for layer in local_layers(model):
        if layer.used_once and layer.weight_name in shared:
            local.setdefault(layer.input_group, []).append(layer)
    further = (
        [layer for layer in layers if layer.weight_name in shared]
        for layers in following_layers(model, _INPUTS)
    )
    return [*list(local.values())[:1], *list(filter(None, further))[:1]]


Inputs = tuple[Sequence[Row], Sequence[int], Tensor]
"""Rows, which of U inputs is read at each of their tokens, one row after the other, and these inputs, (U, I)."""


def _read(
    model: TextModel, layer: LinearLayer, local: Sequence[LocalLayer], rows: Sequence[Row]
) -> Iterator[Inputs]:
    """What a layer reads of rows, float64."""
    alone = any(one.name == layer.name for one in local)
    return _local_inputs(model, layer, rows) if alone else _inputs(model, layer, local, rows)


def _local_inputs(model: TextModel, layer: LinearLayer, rows: Sequence[Row]) -> Iterator[Inputs]:
    """What a layer reads that reads each token by itself, float64: each token at each position is run once."""
    marked = [model.marked(torch.tensor(row)).tolist() for row in rows] if model.pairs else rows
    pairs = {
        pair: u for u, pair in enumerate(dict.fromkeys(pair for row in marked for pair in enumerate(row)))
    }
    by_position: list[list[int]] = [[] for _ in range(max(map(len, rows)))]
    for t, token in pairs:
        by_position[t].append(token)
    # As many rows as a position has tokens at most; all of them as long as the longest one.
    filled = [
        [tokens[k] if k < len(tokens) else tokens[0] for tokens in by_position]
        for k in range(max(map(len, by_position)))
    ]
    at_once = max(1, min(_TOKENS_A_PASS, _NUMBERS_A_PASS // model.hidden_size) // len(by_position))
    parts = torch.split(torch.tensor(filled, device=model.device), at_once)
    read = [layer_inputs(model, model.read_marked(part), [layer.name])[layer.name] for part in parts]
    inputs_KTI = torch.cat(read)
    places = [(by_position[t].index(token), t) for t, token in pairs]
    inputs_UI = inputs_KTI[[k for k, _ in places], [t for _, t in places]]
    yield rows, [pairs[pair] for row in marked for pair in enumerate(row)], exact(inputs_UI)


def _inputs(
    model: TextModel, layer: LinearLayer, local: Sequence[LocalLayer], rows: Sequence[Row]
) -> Iterator[Inputs]:
    """What a layer reads of rows of one length at a time, float64."""
    kept: dict[int, Kept] = {}
    at_once = min(_TOKENS_A_PASS, _NUMBERS_A_PASS // model.hidden_size)

    def read(ids_KT: Tensor) -> Tensor:
        positions_KT = torch.arange(ids_KT.shape[1], device=model.device).expand_as(ids_KT)
        with EachOnce(model, local, model.marked(ids_KT), positions_KT, kept):
            return layer_inputs(model, ids_KT, [layer.name])[layer.name]

    if model.wide and not any(one.depends_on_position for one in local):
        # All tokens' own at first: each product converts all of a weight.
        tokens_N = torch.tensor(sorted({token for row in rows for token in row}), device=model.device)
        read(tokens_N[:, None])
    for length in {len(row) for row in rows}:
        some = [row for row in rows if len(row) == length]
        ids_KT = torch.tensor(some, device=model.device)
        for part_KT in torch.split(ids_KT, max(1, at_once // length)):
            yield (
                list(map(tuple, part_KT.tolist())),
                range(part_KT.numel()),
                exact(read(part_KT)).flatten(0, 1),
            )
