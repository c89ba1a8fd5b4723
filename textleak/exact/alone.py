"""Sentences' own gradients at some layers, as the factors that they are made of: one pass of all of them.

The gradient of a linear layer is ΔᵀX, so of a sentence X and Δ are all there is to know. Labels are linear in the loss:
one pass forward gives the loss with each of them, and one backward each Δ.

Shapes: K sentences, T tokens, C classes, I and O a layer's input and output size.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from textleak.matching.discrete import Row
from textleak.matching.hooks import hooked
from textleak.models import Targets, TextModel
from textleak.models.gradient import opened
from textleak.models.guesses import padded
from textleak.models.probes.layers import LinearLayer
from textleak.models.probes.layout import laid_out, layouts
from textleak.models.sentence_parts import Noted, SentenceParts
from textleak.numerics import exact

# Tokens of one pass: bounds the memory of what the pass back needs (our choice).
_TOKENS_A_PASS = 256


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Alone:
    """What a classifier makes of a sentence by itself.

    Attributes:
        row: its tokens.
        chances_C: the model's prediction, float64.
        inputs: what each layer reads, (T, I), float64, by the layer's name.
        deltas: the loss gradients at its output with each label but the last, (C - 1, T, O), float64.
        parts: what its loss adds to the gradient of more parameters, where that was asked for and can be told.
    """

    row: Row
    chances_C: Tensor
    inputs: dict[str, Tensor]
    deltas: dict[str, Tensor]
    parts: SentenceParts | None = None


def each_alone(
    model: TextModel, rows: Sequence[Row], layers: Sequence[LinearLayer], *, names: Sequence[str] = ()
) -> list[Alone]:
    """What a classifier makes of each of some sentences; a layer's weight is used once.

    Args:
        model: the classifier, in any precision.
        rows: the sentences.
        layers: whose inputs and deltas are asked for.
        names: of the parameters that `Alone.parts` are asked for; none for none.
    """
    at_once = max(1, _TOKENS_A_PASS // max(map(len, rows), default=1))
    starts = range(0, len(rows), at_once)
    return [own for start in starts for own in _pass(model, rows[start : start + at_once], layers, names)]


def _pass(
    model: TextModel,
    rows: Sequence[Row],
    layers: Sequence[LinearLayer],
    names: Sequence[str],
    *,
    every: bool = False,
) -> Iterator[Alone]:
    """One pass; with padding multiplied as texts are, where the network turns out to read it."""
    ids_KT, mask_KT = padded(model, rows)
    labels_K11C = torch.zeros(len(rows), 1, 1, model.classes, dtype=model.loss_dtype, device=model.device)
    labels_K11C.requires_grad_()
    targets = Targets(labels=labels_K11C, weights=torch.ones_like(labels_K11C[..., 0]))
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    modules = [(layer.name, model.network.get_submodule(layer.name)) for layer in layers]
    _ = layouts(model)  # before there are hooks
    handles = [module.register_forward_hook(_keeping(seen, name)) for name, module in modules]
    noted = Noted(model, names, mask_KT, every=every or bool(mask_KT.all())) if names else None
    with hooked(handles), torch.enable_grad(), opened(model, names) as parameters:
        with noted or contextlib.nullcontext():
            losses_K = model.loss(ids_KT[:, None], mask_KT[:, None], targets)
        # The loss is linear in the labels: its slopes are the losses with each of them alone.
        (by_label_K11C,) = torch.autograd.grad(losses_K.sum(), labels_K11C, create_graph=True)
        by_label_CK = by_label_K11C.flatten(1).T
        outputs = [seen[layer.name][1] for layer in layers]
        more = [] if noted is None else [noted.anchor, *parameters]
        moved = [
            torch.autograd.grad(losses, [*outputs, *more], retain_graph=True, allow_unused=True)
            for losses in by_label_CK[:-1].sum(1)
        ]
    if noted is not None and not every and noted.reads_padding:
        yield from _pass(model, rows, layers, names, every=True)
        return
    slopes = [
        [
            torch.zeros_like(output) if slope is None else slope
            for output, slope in zip(outputs, of_label, strict=False)
        ]
        for of_label in moved
    ]
    # What autograd forms of a parameter's gradient is of all sentences at once.
    apart = noted is not None and all(g is None for of_label in moved for g in of_label[len(outputs) + 1 :])
    chances_KC = (-exact(by_label_CK.detach().T)).softmax(1).clamp_min(torch.finfo(torch.float64).tiny)
    deltas = [
        torch.stack([laid_out(model, layer.name, slope, *ids_KT.shape) for slope in of_layer])
        for layer, of_layer in zip(layers, zip(*slopes, strict=True), strict=True)
    ]
    read = {name: laid_out(model, name, read, *ids_KT.shape) for name, (read, _) in seen.items()}
    parts = noted.parts(rows, chances_KC) if noted is not None and apart else None
    for k, row in enumerate(rows):
        inputs = {name: exact(read_KTI[k, : len(row)]) for name, read_KTI in read.items()}
        yield Alone(
            row=row,
            chances_C=chances_KC[k],
            inputs=inputs,
            parts=None if parts is None else parts[k],
            deltas={
                layer.name: exact(delta[:, k, : len(row)])
                for layer, delta in zip(layers, deltas, strict=True)
            },
        )


def _keeping(
    seen: dict[str, tuple[Tensor, Tensor]], name: str
) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """A hook that keeps what a module reads and gives; the graph begins at the first that is kept."""

    def hook(_module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        kept = output if output.requires_grad else output.detach().requires_grad_()
        seen[name] = arguments[0].detach(), kept
        return kept.clone()  # some networks add to it in place

    return hook
