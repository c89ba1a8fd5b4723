"""Layers that were used once, at one position of one sentence: their weight's gradient is one outer product.

Its signs are then products of a row's and a column's, which Adam's step keeps.

Shapes: O outputs, I inputs.
"""

from __future__ import annotations

import dataclasses
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from textleak.inference.adapters import is_adapter
from textleak.inference.base import Seen, measured
from textleak.inference.inputs import APART, spectrum_of
from textleak.inference.kind import sent_as
from textleak.inference.optimizer import first_step, optimizer_of
from textleak.inference.precision import coarse
from textleak.inference.shrinking import decay_of
from textleak.inference.steps import steps_of
from textleak.matching.hooks import hooked
from textleak.models import TextModel
from textleak.models.guesses import inputs_and_targets
from textleak.numerics import exact, grid_step

# Entries that have to have moved clearly, how far in steps of the weights' grid, and the part of them whose signs agree
# (our choice; measured on minilm: in all of one sentence's last layers, in none of two's).
_LEAST, _CLEAR, _ALL = 256, 2.0, 0.999
# Times rounding that its only singular value has to be, so that a second sentence's can't be lost in it (our choice),
# and the size up to which a gradient is decomposed.
DOMINANT, _LARGEST = 30.0, 1_000_000
# How far below an outer product what bfloat16's rounding adds is at most (our choice; measured: 1,700).
_FILLED = 2.0**14


@dataclasses.dataclass(frozen=True, kw_only=True)
class Linear:
    """A linear layer of the network, by its parameters' names.

    Attributes:
        weight: its weight.
        bias: its bias; None where it has none.
        dropped_after: whether its output goes straight into dropout.
        dropped_before: whether its input comes straight out of it, and has no 0 of its own, as ReLU makes.
    """

    weight: str
    bias: str | None
    dropped_after: bool
    dropped_before: bool


def linears_of(model: TextModel) -> tuple[Linear, ...]:
    """The network's linear layers but adapters', and which stand beside a dropout: found by running it."""
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    made: dict[int, nn.Linear] = {}
    after: set[int] = set()
    before: set[int] = set()
    dropped: dict[int, Tensor] = {}
    kept: list[Tensor] = []  # so that no other tensor gets the same identity

    def note(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:  # noqa: ANN401
        if not arguments or not isinstance(arguments[0], Tensor) or not isinstance(output, Tensor):
            return
        kept.extend((arguments[0], output))
        if isinstance(module, nn.Dropout):
            if id(arguments[0]) in made:
                after.add(id(made[id(arguments[0])]))
            dropped[id(output)] = output
        elif isinstance(module, nn.Linear):
            if id(arguments[0]) in dropped and bool(arguments[0].all()):
                before.add(id(module))
            made[id(output)] = module

    modules = [m for m in model.network.modules() if isinstance(m, nn.Linear | nn.Dropout)]
    ids_NT = model.content_ids[:4][None]
    with hooked([m.register_forward_hook(note) for m in modules]), torch.no_grad():
        model.network(input_ids=ids_NT, attention_mask=torch.ones_like(ids_NT))
    return tuple(
        Linear(
            weight=names[id(m.weight)],
            bias=None if m.bias is None else names.get(id(m.bias)),
            dropped_after=id(m) in after,
            dropped_before=id(m) in before,
        )
        for m in modules
        if isinstance(m, nn.Linear) and id(m.weight) in names and not is_adapter(names[id(m.weight)])
    )


_READ_ONCE: WeakKeyDictionary[TextModel, frozenset[str]] = WeakKeyDictionary()


def read_once(model: TextModel) -> frozenset[str]:
    """Modules whose output matters at one position of a sentence alone, as a classifier's after its last attention.

    Found by a backward pass; each model is asked once. There are none where every position has a loss of its own.
    """
    if model.task != "classification":
        return frozenset()
    if model not in _READ_ONCE:
        _READ_ONCE[model] = _found_once(model)
    return _READ_ONCE[model]


def _found_once(model: TextModel) -> frozenset[str]:
    made: dict[str, Tensor] = {}
    linears = {name: m for name, m in model.network.named_modules() if isinstance(m, nn.Linear)}
    ids_11T = model.content_ids[:4][None, None]
    mask_11T = torch.ones_like(ids_11T)
    inputs_11T, targets = inputs_and_targets(
        model, ids=ids_11T, mask=mask_11T, labels=torch.zeros_like(ids_11T[..., 0])
    )
    embeddings = model.embed(inputs_11T).detach().requires_grad_(True)

    def noting(name: str) -> Any:  # noqa: ANN401
        return lambda _module, _arguments, output: made.__setitem__(name, output)

    handles = [module.register_forward_hook(noting(name)) for name, module in linears.items()]
    with hooked(handles), torch.enable_grad():
        loss = model.loss(embeddings, mask_11T, targets).sum()
        there = {name: output for name, output in made.items() if output.requires_grad}
        slopes = torch.autograd.grad(loss, list(there.values()), allow_unused=True, materialize_grads=True)
    count = ids_11T.shape[-1]
    found = set()
    for (name, output), slope in zip(there.items(), slopes, strict=True):
        places = slope.reshape(-1, output.shape[-1]).any(1)
        if int(places.sum()) == 1 and len(places) in (1, count):
            found.add(name.removesuffix(".base_layer"))
    return frozenset(found)


def moves_of(seen: Seen, name: str) -> tuple[Tensor, Tensor] | None:
    """What moved of a parameter beside weight decay, and how far rounding alone may move it; None where unknown."""
    sent = exact(seen.sent[name]).cpu()
    if sent_as(seen).kind == "gradient":
        return sent, torch.zeros_like(sent)
    weights, first, decay = seen.weights(name), first_step(seen), decay_of(seen)
    if weights is None or optimizer_of(seen).name is None:
        return None
    product = first.product if first is not None else decay.product if decay is not None else None
    if product is None:
        return None
    before = exact(weights).cpu()
    # What nothing moves and nothing shrinks stays as it is.
    return sent + product * before, grid_step(before, weights.dtype) * (_CLEAR if product else 0.0)


@measured
def alone(seen: Seen) -> tuple[str, ...]:
    """Weights of the layers that were used at one position of one sentence, in one step at most.

    Two sentences that a layer reads nearly alike have the signs of one as well, so of one layer more is asked.
    """
    if not steps_of(seen).single:
        return ()
    found = [name for name, value in seen.moved() if value.dim() == 2 and _is_alone(seen, name)]
    small = (name for name in found if seen.sent[name].numel() <= _LARGEST)
    return tuple(found) if any(_is_single(seen, name) for name in small) else ()


def _is_single(seen: Seen, name: str) -> bool:
    """Whether a gradient has one dimension, far above rounding.

    What bfloat16 fills the others with has to fall off evenly, from as far below as its rounding is.
    """
    one = spectrum_of(seen, name)
    if one is None:
        return False
    filled = APART <= one.leading <= _FILLED
    if coarse(seen, [name]):
        return filled
    only = one.clear and one.rank == 1 and one.least >= DOMINANT
    return only or (filled and sent_as(seen).kind == "update")


def _is_alone(seen: Seen, name: str) -> bool:
    value = seen.sent[name]
    classes = max(2, seen.model.num_labels or 2)
    if name in seen.model.embedding_names or min(value.shape) <= classes or value.numel() < _LEAST:
        return False
    found = moves_of(seen, name)
    if found is None:
        return False
    moved_OI, off_OI = found
    signs_OI = moved_OI.sign() * (moved_OI.abs() > off_OI)
    column = int(signs_OI.abs().sum(0).argmax())
    signs_OI = signs_OI * signs_OI[:, column, None]
    total_I = signs_OI.abs().sum(0)
    there = float(total_I.sum())
    return there >= _LEAST and float(signs_OI.sum(0).abs().sum()) >= _ALL * there
