"""What each sentence of a classifier's batch adds to a gradient, as factors: a proof runs it, a certificate adds it up.

One pass gives the gradients at all outputs, and the gradient of a linear layer's weight is ΔᵀX. So the batch's gradient
is the weighted sum of its sentences' parts, each with its label. Labels are linear in the loss: the parts with each
label but the last are all there is, and the last one's follows from them.

Shapes: K sentences, T tokens, C classes, I and O a layer's input and output size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from textleak.models.batches import TextExamples
from textleak.models.deferred import Deferred, NotedUses
from textleak.models.probes.layout import layouts
from textleak.models.text import TextModel

# The last label's part is made of the others', and their rounding grows as that label is less likely: where it is less
# so than this, the sentence is run once more (our choice).
_LIKELY = 0.25


@dataclasses.dataclass(kw_only=True, eq=False)
class _Use:
    """One use of a layer's parameters.

    Attributes:
        kind: "linear" (weight (O, I)), "addmm" (weight (I, O)), "table" or "norm" (by its normalized input).
        weight, bias: names of those that are asked for.
        input: what it read; ids of a table.
        slopes: gradients at its output, one a label.
        padding: the row of a table that learns nothing; -1 for none.
    """

    kind: str
    weight: str | None
    bias: str | None
    input: Tensor
    slopes: list[Tensor] = dataclasses.field(default_factory=list)
    padding: int = -1

    def apart(self, texts: int, positions: int) -> _Use | None:
        """It with all of its tensors (K, T, ...) or (K, 1, ...); None where it isn't laid out text by text."""

        def laid(tensor: Tensor) -> Tensor:
            rows = tensor.shape[:-1].numel()
            each = 1 if rows == texts else positions
            return tensor.reshape(texts, each, -1)  # an error where they aren't so many

        if any(slope.shape[:-1].numel() not in (texts, texts * positions) for slope in self.slopes):
            return None
        slopes = [laid(slope) for slope in self.slopes]
        if self.kind == "table":
            return (
                dataclasses.replace(self, slopes=slopes) if self.input.shape == slopes[0].shape[:2] else None
            )
        if self.input.shape[:-1].numel() != slopes[0].shape[:2].numel():
            return None
        return dataclasses.replace(self, input=laid(self.input), slopes=slopes)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SentenceParts:
    """What one sentence's loss adds to the gradient of some parameters, with each of its labels.

    Attributes:
        chances: the model's prediction.
        uses: of the parameters by all sentences of its pass; inputs (K, T, I), and a slope (K, T, O) for each label but
            the last.
        index: which of them it is.
        length: of its tokens, the others being padding.
    """

    chances: tuple[float, ...]
    uses: tuple[_Use, ...]
    index: int
    length: int

    @property
    def numbers(self) -> int:
        """How many there are in it, at most."""
        return sum(
            self.length * (use.input.shape[-1] + sum(slope.shape[-1] for slope in use.slopes))
            for use in self.uses
        )

    def own(self, tensor_KTI: Tensor) -> Tensor:
        """Its part of a tensor of its pass, (T, I)."""
        return tensor_KTI[self.index, : self.length]

    def weighed(self, use: _Use, shares: Sequence[float]) -> Tensor:
        """What the loss moves the output of a use by, (T, O), where each label's is there as strongly as it says."""
        total = shares[0] * self.own(use.slopes[0])
        for slope, share in zip(use.slopes[1:], shares[1:], strict=True):
            total = total + share * self.own(slope)
        return total

    def shares(self, label: int) -> list[float] | None:
        """How much of each slope a label's is; None where rounding would tell in it."""
        *others, last = self.chances
        if label < len(others):
            return [float(c == label) for c in range(len(others))]
        return [-chance / last for chance in others] if last >= _LIKELY else None


Known = dict[tuple[int, ...], SentenceParts]
"""Sentences' parts by their tokens."""


class Noted(NotedUses):
    """While it is active, uses of named parameters are noted; the parameters themselves learn nothing by them.

    Args:
        model: a classifier.
        names: of the parameters.
        mask_KT: where the texts' tokens stand, and not padding.
        every: whether padding is multiplied too; what is made of it is 0 if not.

    Attributes:
        anchor: a number that requires a gradient, so that the first layers are reached as well.
        uses: as they came.
    """

    def __init__(
        self, model: TextModel, names: Sequence[str], mask_KT: Tensor, *, every: bool = True
    ) -> None:
        super().__init__({id(model.parameters[name]): name for name in names})
        self._texts = len(mask_KT)
        self._mask_N = mask_KT.flatten().bool()
        self._there_N = None if every else self._mask_N.nonzero().flatten()
        self.anchor = torch.zeros((), requires_grad=True, device=model.device)
        self.uses: list[_Use] = []

    def instead(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """A use that is noted."""
        if func is functional.layer_norm:
            return self._norm(*args, **kwargs)
        return super().instead(func, args, kwargs)

    def parts(self, rows: Sequence[Sequence[int]], chances_KC: Tensor) -> list[SentenceParts] | None:
        """Each sentence's, once there is a slope of each label but the last; None where they can't be told apart."""
        if any(len(use.slopes) != chances_KC.shape[1] - 1 for use in self.uses):
            return None
        apart = [use.apart(len(rows), max(map(len, rows))) for use in self.uses]
        uses = tuple(use for use in apart if use is not None)
        if len(uses) < len(apart):
            return None
        return [
            SentenceParts(chances=tuple(chances_K), uses=uses, index=k, length=len(row))
            for k, (row, chances_K) in enumerate(zip(rows, chances_KC.tolist(), strict=True))
        ]

    @property
    def reads_padding(self) -> bool:
        """Whether the loss depends on what is made of padding, once there are slopes."""
        padding_N = ~self._mask_N
        laid_out = (slope.flatten(0, -2) for use in self.uses for slope in use.slopes)
        return any(bool(s[padding_N].any()) for s in laid_out if len(s) == len(padding_N))

    def _made(self, input: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor:
        """What a product makes of an input (..., I), of padding only where all of it is multiplied."""
        if self._there_N is None or input.shape[:-1] not in self._rows:
            return product(input)
        made = product(input.flatten(0, -2).index_select(0, self._there_N))
        filled = made.new_zeros(len(self._mask_N), made.shape[-1]).index_copy(0, self._there_N, made)
        return filled.view(*input.shape[:-1], -1)

    @property
    def _rows(self) -> tuple[torch.Size, torch.Size]:
        """How the texts' tokens are laid out: text by text, or as one long list."""
        return torch.Size((self._texts, len(self._mask_N) // self._texts)), self._mask_N.shape

    def _name(self, parameter: Tensor | None) -> str | None:
        return None if parameter is None else self._names.get(id(parameter))

    def _note(self, output: Tensor, use: _Use) -> Tensor:
        if not output.requires_grad:
            output = output + self.anchor
        output.register_hook(use.slopes.append)  # type: ignore[no-untyped-call]
        self.uses.append(use)
        return output

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
        names = self._name(weight), self._name(bias)
        if names == (None, None):
            return None
        shift = None if bias is None else bias.detach()
        product = self._made(input, lambda rows: functional.linear(rows, weight.detach(), shift))
        return self._note(product, _Use(kind="linear", weight=names[0], bias=names[1], input=input.detach()))

    def _addmm(self, bias: Tensor, input: Tensor, weight: Tensor) -> Tensor | None:
        names = self._name(weight), self._name(bias)
        if names == (None, None):
            return None
        product = self._made(input, lambda rows: torch.addmm(bias.detach(), rows, weight.detach()))
        return self._note(product, _Use(kind="addmm", weight=names[0], bias=names[1], input=input.detach()))

    def _norm(
        self,
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor | None:
        names = self._name(weight), self._name(bias)
        if names == (None, None) or len(normalized_shape) != 1:
            return None
        gain, shift = (None if one is None else one.detach() for one in (weight, bias))
        shape = list(normalized_shape)
        output = functional.layer_norm(input, shape, gain, shift, eps)
        even = functional.layer_norm(input.detach(), shape, None, None, eps)
        return self._note(output, _Use(kind="norm", weight=names[0], bias=names[1], input=even))

    def _looked_up(self, name: str, ids: Tensor, weight: Tensor, padding: int) -> Tensor | None:
        if ids.dim() != 2:
            return None
        if len(ids) == 1:  # positions, the same for all texts
            ids = ids.expand(self._texts, -1)
        looked_up = torch.embedding(weight.detach(), ids)
        return self._note(looked_up, _Use(kind="table", weight=name, bias=None, input=ids, padding=padding))


def keep(known: Known, model: TextModel, found: Mapping[tuple[int, ...], SentenceParts | None]) -> None:
    """Keep sentences' parts, as far as all of them are no more numbers than the model's weights."""
    room = sum(p.numel() for p in model.network.parameters()) - sum(one.numbers for one in known.values())
    for row, parts in found.items():
        if parts is not None and parts.numbers <= room:
            known[row] = parts
            room -= parts.numbers


def splits(model: TextModel) -> bool:
    """Whether a model's passes may be told apart by sentences: it lays texts out one under the other."""
    known = layouts(model)
    return model.num_labels is not None and model.own_loss is None and not (known.turned or known.filled)


def add_known(
    found: Deferred, batch: TextExamples, known: Mapping[tuple[int, ...], SentenceParts]
) -> list[int]:
    """Add the parts of a batch's sentences that are known to its gradient.

    Args:
        found: what the batch's gradient is made of so far.
        batch: whose loss is the sum of its sentences' parts, each weighed as it says.
        known: sentences' parts, all of them of the parameters that `found` is of.

    Returns:
        Which of its sentences aren't known.
    """
    targets, left = batch.targets, []
    taken: list[tuple[SentenceParts, list[float]]] = []
    plain = not targets.soft and targets.labels.shape[1] == 1
    for index, row in enumerate(batch.batch.sentences):
        parts = known.get(row) if plain else None
        shares = None if parts is None else parts.shares(int(targets.labels[index, 0]))
        if parts is None or shares is None or (taken and len(parts.uses) != len(taken[0][0].uses)):
            left.append(index)
        else:
            weight = float(targets.weights[index, 0])
            taken.append((parts, [weight * share for share in shares]))
    _add(found, taken)
    return left


def moved_by(
    parts: SentenceParts, old: int, new: int, shapes: Mapping[str, torch.Size], *, most: int
) -> dict[str, Tensor] | None:
    """What a sentence's gradient changes by at the last tensors that it reaches, where it has another label.

    Args:
        parts: the sentence's.
        old: its label.
        new: another one.
        shapes: of the tensors to choose from, by name.
        most: how many of them.

    Returns:
        By name, the last one first; None where rounding would tell in it.
    """
    before, after = parts.shares(old), parts.shares(new)
    if before is None or after is None:
        return None
    names = (name for use in reversed(parts.uses) for name in (use.weight, use.bias))
    chosen = list(dict.fromkeys(name for name in names if name in shapes))[:most]
    found = Deferred({name: shapes[name] for name in chosen if name is not None})
    _add(found, [(parts, [b - a for a, b in zip(before, after, strict=True)])])
    return dict(found)


def _add(found: Deferred, taken: Sequence[tuple[SentenceParts, list[float]]]) -> None:
    """Add some sentences' parts of those parameters that are wanted, each label's as strongly as it is there."""
    wanted = found.wanted
    joined: dict[tuple[int, ...], Tensor] = {}  # queries, keys and values read the same
    for uses in zip(*(parts.uses for parts, _ in taken), strict=True):
        first = uses[0]
        if not (wanted(first.weight) or wanted(first.bias)):
            continue
        pairs = [(use, *one) for use, one in zip(uses, taken, strict=True)]
        delta = torch.cat([parts.weighed(use, shares) for use, parts, shares in pairs])
        if first.bias is not None and wanted(first.bias):
            found.add(first.bias, delta.sum(0))
        if first.weight is None or not wanted(first.weight):
            continue
        inputs = [parts.own(use.input) for use, parts, _ in pairs]
        key = tuple(one.data_ptr() for one in inputs)
        if key not in joined:
            joined[key] = torch.cat(inputs)
        input = joined[key]
        if first.kind == "norm":
            found.add(first.weight, (input * delta).sum(0))
        elif first.kind == "table":
            there_N = input != first.padding
            found.note_rows(first.weight, input[there_N], delta[there_N])
        else:
            found.note_product(first.weight, input, delta, transposed=first.kind == "addmm")
