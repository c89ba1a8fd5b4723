"""The classification head at a few sentences behind dropout: labels, predictions, and so the rate, of each.

The gradient of the layer before the head is E C: each sentence's gradient times what that layer read of it. Every
output that was dropped from a sentence has a 0 in E, and only the right mixtures of the rows of E C have so many zeros:
these give E, and the bias, which is E's sum, its scale. So C is known, and the public layers make of it what the head
read; the head's own gradient tells how much of each sentence is in it, and the prediction how much there has to be.

Shapes: B sentences, C classes, O outputs of the layer before the head, I its inputs.
"""

from __future__ import annotations

import dataclasses
import itertools

import torch
from torch import Tensor

from textleak.inference.base import Seen, measured
from textleak.inference.estimates import estimate_of
from textleak.inference.head import head_of
from textleak.inference.inputs import spectrum_of
from textleak.inference.kind import sent_as
from textleak.inference.optimizer import optimizer_of
from textleak.inference.single import Linear, linears_of
from textleak.inference.steps import steps_of
from textleak.matching.hooks import hooked
from textleak.numerics import exact, least_squares, svd

# Sentences that are told apart at most: of more, too few outputs are dropped from one alone (our choice).
_MOST = 4
# How near outputs are in the box whose corners they stand at, in its usual size, how many make a corner, and the part
# of them that has to be near one (our choice; measured on minilm: 0.01 at a corner, corners 0.2 and more apart).
_NEAR, _LEAST, _TOLD = (0.03, 0.1), 6, 0.9
# Part of what an output usually has of a sentence from which it has it, and rounds in which that is settled (our
# choice).
_HALF, _ROUNDS = 0.5, 3
# Standard deviations up to which an output's gradient is 0, and what float32 makes of its sum besides (our choice).
_ZERO, _OWN = 4.0, 3e-7
# How far sentences may disagree on the scale, and what of the head's gradient may be left (our choice).
_OFF = 3e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads:
    """What the head tells of a batch of several sentences.

    Attributes:
        labels: of the sentences, in no order.
        scale: what the gradient was multiplied by: the rate of SGD, times what clipping left.
        dropout: the rate at which the head's input was dropped.
        off: how far the sentences disagree on the scale, relative.
    """

    labels: tuple[int, ...]
    scale: float
    dropout: float
    off: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Read:
    """What a layer read of each sentence, from which each of its outputs was kept, and which of them tell that."""

    inputs_BI: Tensor
    kept_OB: Tensor
    tells_O: Tensor


@measured
def read_heads(seen: Seen) -> Heads | None:
    """Labels, scale and dropout of up to 4 sentences, for a gradient or SGD's step; None for anything else."""
    head = head_of(seen)
    known = sent_as(seen).kind == "gradient" or (
        optimizer_of(seen).name == "sgd" and steps_of(seen).count == 1
    )
    layer = None if head is None else _before(seen, head)
    if head is None or head.bias is None or layer is None or layer.bias is None or not known:
        return None
    spectrum = spectrum_of(seen, layer.weight)
    pulls = seen.weights(head.weight)
    if (
        spectrum is None
        or not spectrum.clear
        or not 1 <= spectrum.rank <= _MOST
        or pulls is None
        or len(pulls) != 2
    ):
        return None
    names = (layer.weight, layer.bias, head.weight, head.bias)
    found = [one for name in names if (one := estimate_of(seen, name)) is not None]
    if len(found) < len(names):
        return None
    below = (found[0].value, found[0].error, found[1].value)
    for near in _NEAR:
        read = _read(below, exact(pulls[1] - pulls[0]).cpu(), spectrum.rank, near)
        heads = (
            None if read is None else _predicted(seen, (layer, head), read, found[2].value, found[3].value)
        )
        if heads is not None:
            return heads
    return None


def _before(seen: Seen, head: Linear) -> Linear | None:
    """The linear layer before the head, where it was sent with its bias and what it makes goes into dropout."""
    found = [layer for layer in linears_of(seen.model) if layer.weight != head.weight]
    last = found[-1] if found and head.dropped_before else None
    return last if last and {last.weight, last.bias} <= seen.sent.keys() else None


def _read(
    layer: tuple[Tensor, Tensor | None, Tensor], pull_O: Tensor, count: int, near: float
) -> _Read | None:
    """Each sentence's part of a layer's gradient, by its zeros.

    Args:
        layer: the weight's gradient, its error, and the bias's.
        pull_O: what each output has to do with the prediction.
        count: of sentences.
        near: as for `_kept`.
    """
    value_OI, error_OI, bias_O = layer
    _, _, basis_SI = svd(value_OI)
    rows_OB = value_OI @ basis_SI[:count].T
    noise_O = torch.zeros_like(bias_O) if error_OI is None else error_OI.square().mean(1).sqrt()
    zero_O = _ZERO * noise_O + _OWN * rows_OB.norm(dim=1)
    found = _kept(rows_OB / pull_O[:, None], count, near)
    if found is None:
        return None
    kept_OB, tells_O = found
    weighted_OB = rows_OB / zero_O.clamp_min(_OWN * float(rows_OB.norm(dim=1).median()))[:, None]
    for _ in range(_ROUNDS):  # a few outputs are taken for dropped from the wrong sentence at first
        dropped = [weighted_OB[tells_O & ~kept_OB[:, b]] for b in range(count)]
        if min(map(len, dropped)) < _LEAST:
            return None
        mixtures_BB = torch.stack([svd(rows, full=True)[2][-1] for rows in dropped], 1)
        parts_OB = rows_OB @ mixtures_BB
        shares_OB = (parts_OB / pull_O[:, None]).abs()
        shares_OB = shares_OB / shares_OB.median(0).values
        kept_OB, tells_O = shares_OB > _HALF, (shares_OB - _HALF).abs().amin(1) > _HALF / 2
    scales_B1 = least_squares(parts_OB, bias_O[:, None])
    left = (parts_OB @ scales_B1)[:, 0] - bias_O
    if float(left.norm()) > _OFF * float(bias_O.norm()):
        return None
    # Where two sentences came out as one, nothing singular is inverted: no prediction fits what comes of it.
    inputs_BI = torch.linalg.pinv(mixtures_BB * scales_B1[:, 0]) @ basis_SI[:count]
    return _Read(inputs_BI=inputs_BI, kept_OB=kept_OB, tells_O=tells_O)


def _kept(points_OB: Tensor, count: int, near: float) -> tuple[Tensor, Tensor] | None:
    """From which sentences an output was kept, (O, B), and for which outputs that is told, (O,).

    Each output is at a corner of a box whose edges are the sentences: most were kept from all, next to most dropped
    from one. None where they don't stand in such places.
    """
    sizes_O = points_OB.norm(dim=1)
    apart_OO = torch.cdist(points_OB, points_OB)
    near_OO = apart_OO <= near * sizes_O.median()
    whole_O = near_OO[near_OO.sum(1).argmax()]
    whole_B = points_OB[whole_O].mean(0)
    open_O = ~whole_O
    edges: list[Tensor] = []
    while len(edges) < count:
        near_O = near_OO[((near_OO & open_O).sum(1) * open_O).argmax()] & open_O
        if int(near_O.sum()) < _LEAST:
            return None
        edges.append(whole_B - points_OB[near_O].mean(0))
        open_O = open_O & ~near_O
    patterns_PB = _patterns(count)
    off_OP = torch.cdist(points_OB, patterns_PB @ torch.stack(edges))
    best_O = off_OP.argmin(1)
    told_O = off_OP.amin(1) <= 2 * near * sizes_O.median()
    return (patterns_PB[best_O] > 0, told_O) if float(told_O.double().mean()) >= _TOLD else None


def _patterns(count: int) -> Tensor:
    """All ways to keep an output from so many sentences or not, (2^B, B)."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)), dtype=torch.float64)


def _made_of(seen: Seen, layers: tuple[Linear, Linear], inputs_BI: Tensor) -> Tensor:
    """What the head reads where a layer before it has read something, without dropout."""
    modules = dict(seen.model.network.named_modules())
    layer, head = (modules[one.weight.rpartition(".")[0]] for one in layers)
    read: list[Tensor] = []
    own = next(layer.parameters())
    ids_BT = seen.model.content_ids[:1].expand(len(inputs_BI), 1)
    replaced = layer.register_forward_pre_hook(lambda _, args: (inputs_BI.to(own).view(args[0].shape),))
    noted = head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    with hooked([replaced, noted]), torch.no_grad():
        seen.model.network(input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT))
    return exact(read[0]).cpu().view(len(inputs_BI), -1)


def _predicted(
    seen: Seen, layers: tuple[Linear, Linear], read: _Read, gradient_CO: Tensor, bias_C: Tensor
) -> Heads | None:
    """The scale at which each sentence's part of the head's gradient is what its own prediction makes."""
    clean_BO = _made_of(seen, layers, read.inputs_BI)
    told_BO = clean_BO * read.kept_OB.T
    tells_O = read.tells_O
    parts_BC = least_squares(told_BO[:, tells_O].T, gradient_CO[:, tells_O].T)
    left = told_BO[:, tells_O].T @ parts_BC - gradient_CO[:, tells_O].T
    if float(left.norm()) > _OFF * float(gradient_CO[:, tells_O].norm()):
        return None
    patterns = _patterns(len(clean_BO))
    # Of the others the head's gradient tells from whom they were dropped.
    for output in (~tells_O).nonzero().flatten().tolist():
        made = (patterns * clean_BO[:, output]) @ parts_BC
        told_BO[:, output] = (
            clean_BO[:, output] * patterns[(made - gradient_CO[:, output]).norm(dim=1).argmin()]
        )
    whole_C = parts_BC.sum(0)
    kept = float(bias_C @ whole_C / whole_C.square().sum())
    weight, bias = (seen.weights(name or "") for name in (layers[1].weight, layers[1].bias))
    if weight is None or bias is None or not 0.2 < kept <= 1 + _OFF:
        return None
    chances_BC = (told_BO / kept @ exact(weight).cpu().T + exact(bias).cpu()).softmax(1)
    labels_B = parts_BC.argmin(1)
    wrong_BC = chances_BC - torch.nn.functional.one_hot(labels_B, chances_BC.shape[1])
    shares_BC = parts_BC * kept * len(parts_BC)
    scales_B = (shares_BC * wrong_BC).sum(1) / wrong_BC.square().sum(1)
    scale = float(scales_B.mean())
    off = float((scales_B / scale - 1).abs().max())
    if scale <= 0 or off > _OFF:
        return None
    return Heads(labels=tuple(labels_B.tolist()), scale=scale, dropout=max(0.0, 1 - kept), off=off)
