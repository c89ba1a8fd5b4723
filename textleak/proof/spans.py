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
from collections.abc import Iterator, Sequence

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
from textleak.numerics import exact, svd
from textleak.proof.distances import Gradient

# Singular values below this part of the largest are none: inputs that follow from others exactly (our choice; float64
# leaves 1e-15 of them, and what nearly follows is measured at 1e-4 and more on minilm).
_NO_DIRECTION = 1e-9
# A direction that another input has more than this part of, after whitening, isn't outside its span (our choice;
# float64 leaves 1e-13).
_LEAK = 1e-10
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
        outside: what `_outside` found, which rivals at the same places have in common.
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
    ) -> LayerSpan:
        """Run all rows as far as these layers.

        Args:
            model: in float64.
            shared: what was shared, as it is.
            layers: that read one and the same input; each weight is used once.
            local: those that read each token by itself.
            answer: the batch.
            rivals: the texts most like it.
        """
        rows = list(dict.fromkeys(row for guess in (answer, *rivals) for row in guess.rows))
        keys: dict[Row, list[bytes]] = {}
        places: dict[bytes, int] = {}
        passes: list[Tensor] = []
        for some, inputs_PI in _inputs(model, layers[0], local, rows):
            every, new = _keys(inputs_PI), []
            for p, key in enumerate(every):
                if key not in places:
                    places[key] = len(places)
                    new.append(p)
            passes.append(inputs_PI[new])
            by_row = iter(every)
            keys.update({row: list(itertools.islice(by_row, len(row))) for row in some})
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
        )

    def least(self, rival: Guess) -> float:
        """How far the rival's gradient is at least from the shared one: what of that lies outside its inputs' span."""
        read = {key for row in rival.rows for key in self.keys[row]}
        lacks = tuple(n for key, n in self.index.items() if key not in read)
        if lacks not in self.outside:
            self.outside[lacks] = self._outside(list(lacks))
        outside_KR = self.outside[lacks]
        if outside_KR is None:
            return 0.0
        others = sorted(self.others[key] for key in read if key not in self.index)
        if others:
            outside_KR = _turned(outside_KR, self.inside_MR[others], self.beyond_MI[others])
        return max(0.0, float((self.gradient_RR @ outside_KR.T).norm()) - self.besides)

    def _outside(self, lacks: Sequence[int]) -> Tensor | None:
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


def _inputs(
    model: TextModel, layer: LinearLayer, local: Sequence[LocalLayer], rows: Sequence[Row]
) -> Iterator[tuple[list[Row], Tensor]]:
    """What a layer reads of rows of one length, one after the other: (P, I), float64."""
    kept: dict[int, Kept] = {}
    at_once = min(_TOKENS_A_PASS, _NUMBERS_A_PASS // model.hidden_size)

    def read(ids_KT: Tensor) -> Tensor:
        positions_KT = torch.arange(ids_KT.shape[1], device=model.device).expand_as(ids_KT)
        with EachOnce(model, local, ids_KT, positions_KT, kept):
            return layer_inputs(model, ids_KT, [layer.name])[layer.name]

    if model.wide and not any(one.depends_on_position for one in local):
        # All tokens' own at first: each product converts all of a weight.
        tokens_N = torch.tensor(sorted({token for row in rows for token in row}), device=model.device)
        read(tokens_N[:, None])
    for length in {len(row) for row in rows}:
        some = [row for row in rows if len(row) == length]
        ids_KT = torch.tensor(some, device=model.device)
        for part_KT in torch.split(ids_KT, max(1, at_once // length)):
            yield [tuple(row) for row in part_KT.tolist()], exact(read(part_KT)).flatten(0, 1)
