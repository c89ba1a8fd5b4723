"""Which classes a batch had, read off the gradient of the classification head; no optimization.

The cross entropy's gradient at the logits is p − y, averaged over the batch, and the head's bias gets just
that. With one sentence, the true class alone has a negative entry (Zhao et al. 2020, iDLG, sec. 3); with
several, adding back the mean prediction leaves how often each class occurs. Where the head has no bias, or
its gradient was not shared, each row of the weight's gradient is that entry times the head's input.

Shapes: B sentences, C classes, D the head's input size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from textleak.errors import InputError
from textleak.matching.hooks import hooked
from textleak.models import Targets, TextModel
from textleak.models.decoding import fixed_tokens
from textleak.models.vision import ImageModel
from textleak.shared.gradient import SharedGradient

# Random sentences or pictures that tell what the head reads and predicts for any input (our choice).
_PROBES = 32
_PROBE_LENGTH = 16
_PROBE_SPOTS = 4  # a random picture is so many colored spots wide and high, blurred into each other


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Head:
    """The classification head.

    Attributes:
        module: what it is.
        weight_name: of its parameter (C, D).
        bias_name: of its parameter (C,), None where it has none.
    """

    module: nn.Linear
    weight_name: str
    bias_name: str | None


def single_class(shared: SharedGradient, model: TextModel | ImageModel, generator: torch.Generator) -> int:
    """The class of a batch of one sentence or picture.

    Exact from the bias, and from the weight where there are three classes or more. With two, the weight's
    rows are each other's negatives: then the head's mean input tells by its sign in them (our choice).

    Args:
        shared: a gradient of one sample.
        model: a classifier.
        generator: draws the random inputs of our choice above.

    Raises:
        InputError: not a classifier, or neither of the head's parameters was shared.
    """
    head = _head(shared, model)
    if head.bias_name in shared.gradients:
        return int(shared.gradients[head.bias_name].argmin())
    gradient_CD = shared.gradients[head.weight_name].cpu().double()
    if len(gradient_CD) > 2:  # only the true class's row points against all others (Zhao et al. 2020, eq. 4)
        gram_CC = gradient_CD @ gradient_CD.T
        return int((gram_CC.sum(1) - gram_CC.diagonal()).argmin())
    input_D, _ = _usual(model, head, generator)
    return int((gradient_CD @ input_D).argmin())


def class_counts(
    shared: SharedGradient, model: TextModel | ImageModel, batch_size: int, generator: torch.Generator
) -> tuple[int, ...]:
    """How often each class occurs in a batch of several samples: n = B (mean prediction − gradient).

    The mean prediction is taken from random inputs (our choice; close for a head that isn't trained yet),
    and the figures are rounded so that they sum to B.

    Raises:
        InputError: not a classifier, or neither of the head's parameters was shared.
    """
    head = _head(shared, model)
    input_D, prediction_C = _usual(model, head, generator)
    if head.bias_name in shared.gradients:
        gradient_C = shared.gradients[head.bias_name].cpu().double()
    else:
        gradient_C = shared.gradients[head.weight_name].cpu().double() @ input_D / input_D.square().sum()
    expected_C = batch_size * (prediction_C - gradient_C).clamp_min(0)
    if not expected_C.any():  # nothing but noise: any class is as likely as another
        expected_C = torch.ones_like(expected_C)
    expected_C = expected_C * (batch_size / expected_C.sum().clamp_min(1e-12))
    counts_C = expected_C.floor().long()
    left = batch_size - int(counts_C.sum())
    counts_C[(expected_C - counts_C).topk(left).indices] += 1
    return tuple(counts_C.tolist())


def _head(shared: SharedGradient, model: TextModel | ImageModel) -> _Head:
    """The last linear layer with an output for each class that the network runs.

    Raises:
        InputError: not a classifier, no such layer, or none of its gradients was shared.
    """
    if model.num_labels is None:
        raise InputError(
            f"{model.name} is attacked as {model.task}, which has no classes.",
            why="Classes are read off a classification head.",
            fix="Use --attack dlg, which optimizes soft labels of any task, or --task classification.",
        )
    heads = [
        m for m in model.network.modules() if isinstance(m, nn.Linear) and m.out_features == model.num_labels
    ]
    calls = _calls(model, heads, _probes(model, 1, torch.Generator().manual_seed(0)))
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    if calls:
        module = calls[-1][0]
        head = _Head(
            module=module,
            weight_name=names[id(module.weight)],
            bias_name=names[id(module.bias)] if module.bias is not None else None,
        )
        if {head.weight_name, head.bias_name} & shared.gradients.keys():
            return head
    raise InputError(
        "The gradient of the classification head was not shared." if calls else "There is no linear head.",
        why="The classes can't be read off anything else.",
        fix="Use --attack dlg or tag, which optimize soft labels, or tell the attacker with --know labels.",
    )


def _usual(model: TextModel | ImageModel, head: _Head, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What the head reads (D,) and predicts (C,) on average over random inputs, in float64."""
    ((_, input_ND, output_NC),) = _calls(model, [head.module], _probes(model, _PROBES, generator))
    return input_ND.cpu().double().mean(0), output_NC.cpu().double().softmax(-1).mean(0)


def _probes(model: TextModel | ImageModel, count: int, generator: torch.Generator) -> Tensor:
    """Random inputs: ids (N, T) of sentences, or pixels (N, channels, height, width) of pictures."""
    if isinstance(model, ImageModel):
        channels, height, width = model.shape
        spots = torch.rand(count, channels, _PROBE_SPOTS, _PROBE_SPOTS, generator=generator)
        pictures = functional.interpolate(spots, (height, width), mode="bilinear")
        return model.normalized(pictures)
    around = len(model.prefix_ids) + len(model.suffix_ids)
    length = min(_PROBE_LENGTH + around, model.max_length)
    content = model.content_ids.cpu()
    ids_NT = content[torch.randint(len(content), (count, length), generator=generator)]
    for position, token in fixed_tokens(model, length).items():
        ids_NT[:, position] = token
    return ids_NT


def _calls(
    model: TextModel | ImageModel, modules: Sequence[nn.Linear], probes_N: Tensor
) -> list[tuple[nn.Linear, Tensor, Tensor]]:
    """Calls of some layers when the network reads probes: layer, input (N, D), output (N, C)."""
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        calls.append((module, inputs[0].flatten(0, -2), output.flatten(0, -2)))

    handles = [module.register_forward_hook(keep) for module in modules]
    probes_N = probes_N.to(model.device)
    labels = torch.zeros(1, len(probes_N), 1, dtype=torch.long, device=model.device)
    with hooked(handles), torch.no_grad():
        targets = Targets(labels=labels, weights=labels.to(model.loss_dtype))
        if isinstance(model, ImageModel):
            model.loss(probes_N[None].to(model.dtype), targets)
        else:
            model.loss(probes_N[None], torch.ones_like(probes_N)[None], targets)
    return calls
