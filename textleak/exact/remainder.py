"""What is left of a shared gradient once known sentences' own gradients are taken off it (our choice).

A batch's gradient is a sum over its sentences, so a found sentence can be proved and taken off, one by one, and what
is left is the gradient of a smaller batch. The proof needs no truth: subtracting a sentence's gradient lowers the rank
of a layer's gradient G by just its own rank if, and only if, X G⁺ Δᵀ is the identity (Wedderburn 1934), with X the
layer's inputs and Δ the output gradients that the sentence has in the batch. Δ is linear in what the sentence's labels
are and how often it is there, so these come out as well.

Shapes: T tokens of a sentence, R rank, I and O a layer's input and output size, C classes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.exact.alone import Alone, each_alone
from textleak.exact.subspace import InputSpan, span_of, spectrum_end
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.probes.layers import LinearLayer
from textleak.models.sentence_parts import Known, keep
from textleak.numerics import exact, least_squares, svd
from textleak.shared.gradient import SharedGradient

Layers = tuple[LinearLayer, ...]
"""Layers that read one and the same input."""

# X G⁺ Δᵀ may be off the identity by this part where a sentence is in the batch (our choice; measured on minilm: below
# 1e-4 for sentences that are in it, above 0.5 for others).
_UNLIKE_IDENTITY = 0.05
# What is left is nothing where no singular value is beyond this many times rounding (our choice).
_NOTHING = 16.0
_POWER_STEPS = 5
# What is left is far more than rounding where it is beyond this many eps of all that was there (our choice; measured on
# minilm in float32: 12 eps when all 8 sentences are taken off, 6e5 and more before).
_CLEARLY_LEFT = 1e4
# A part may be off a whole number by this many times what the identity is off by (our choice).
_OFF_WHOLE = 4.0
# Sentences with less than this of the largest one's part in what is left are not in it, nor where a loss may weigh them
# (our choice: weights of classes seldom differ by more than the second's inverse).
_NO_PART, _NO_PART_WEIGHED = 0.1, 0.01
# Parts of sentences by labels that are solved for together, each a column of all that is left (our choice: memory).
_MOST_PARTS = 128


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerRemainder:
    """What is left at one input.

    Attributes:
        layers: that read it.
        stacked_OI: their stacked gradients, float64.
        outputs: how many of its rows are each layer's.
        span: where the input lies in the sentences that are left; None where nothing is.
        rounding: about the largest singular value that the client's rounding makes.
    """

    layers: Layers
    stacked_OI: Tensor
    outputs: list[int]
    span: InputSpan | None
    rounding: float

    @classmethod
    def of(cls, shared: SharedGradient, layers: Layers, span: InputSpan) -> LayerRemainder:
        """All of a shared gradient, with the span that it shows."""
        gradients = [layer.as_rows(shared.gradients[layer.weight_name]) for layer in layers]
        stacked_OI = torch.cat([exact(g) for g in gradients])
        inside_OR = stacked_OI @ span.basis_RI.T
        largest = float(torch.linalg.eigvalsh(inside_OR.T @ inside_OR)[-1]) ** 0.5
        rounding = largest * torch.finfo(gradients[0].dtype).eps
        outputs = [len(g) for g in gradients]
        return cls(layers=layers, stacked_OI=stacked_OI, outputs=outputs, span=span, rounding=rounding)

    def stacked(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Other gradients of these layers, by parameter, laid out as the shared ones are: (O, I)."""
        return torch.cat([layer.as_rows(gradients[layer.weight_name]) for layer in self.layers])

    def frame(self, inputs_TI: Tensor) -> Frame:
        """How what is left shows a sentence that has these inputs; there must be something left."""
        assert self.span is not None
        inputs_TI = self.layers[0].meant(inputs_TI).to(self.span.basis_RI.device)
        inside_TR = inputs_TI @ self.span.basis_RI.T
        return Frame(left_TO=inside_TR @ self._inverse_RO, back_IT=torch.linalg.pinv(inputs_TI))

    @functools.cached_property
    def _inverse_RO(self) -> Tensor:
        assert self.span is not None
        inverse_RO: Tensor = torch.linalg.pinv(self.stacked_OI @ self.span.basis_RI.T)
        return inverse_RO

    def own(self, alone: Alone, parts_C: Tensor) -> tuple[Tensor, Tensor]:
        """Δ (T, O) and X (T, I), of which a sentence's gradient of these layers is made.

        Args:
            alone: the sentence.
            parts_C: how strongly each of its labels but the last is there.
        """
        deltas_CTO = torch.cat([layer.given(alone.deltas[layer.name]) for layer in self.layers], 2)
        delta_TO = torch.einsum("c,cto->to", parts_C.to(deltas_CTO), deltas_CTO)
        inputs_TI = self.layers[0].meant(alone.inputs[self.layers[0].name])
        return delta_TO.to(self.stacked_OI.device), inputs_TI.to(self.stacked_OI.device)

    def by_layer(self, values_NO: Tensor) -> dict[str, Tensor]:
        """Values at all outputs, apart by the layers' names."""
        names = (layer.name for layer in self.layers)
        return dict(zip(names, torch.split(values_NO, self.outputs, dim=1), strict=True))

    @property
    def sizes_O(self) -> Tensor:
        """The norm of the layer's gradient that each row belongs to."""
        parts = torch.split(self.stacked_OI, self.outputs)
        return torch.cat([part.norm().expand(len(part)) for part in parts])

    def less(self, taken_OI: Tensor, errors: Sequence[float]) -> LayerRemainder:
        """What is left after taking some sentences' gradients off.

        Args:
            taken_OI: their sum.
            errors: about the largest singular value of what the client's rounding did to each.
        """
        if self.span is None:
            return self
        stacked_OI = self.stacked_OI - taken_OI
        rounding = math.hypot(self.rounding, *errors)
        left_OR = stacked_OI @ self.span.basis_RI.T
        if float(left_OR.norm()) <= _NOTHING * rounding:  # so is its largest singular value
            return dataclasses.replace(self, stacked_OI=stacked_OI, span=None, rounding=rounding)
        left_OR, s_R, _ = svd(left_OR)
        floor, noise, clear = spectrum_end(s_R, rounding)
        rank = int((s_R > floor).sum()) if float(s_R[0]) > _NOTHING * rounding else 0
        span = None
        if rank > 0:
            # One step of subspace iteration, or the directions would keep the errors of the wider span's weak ones.
            _, s_R, basis_RI = svd(left_OR[:, :rank].T @ stacked_OI)
            shape = (stacked_OI.shape[0], stacked_OI.shape[1])
            span = span_of(self.span.layers, s_R, basis_RI, shape=shape, noise=noise, clear=clear)
        return dataclasses.replace(self, stacked_OI=stacked_OI, span=span, rounding=rounding)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """X G⁺ and X⁺ of a sentence: between them its own gradient is the identity, if it is in the batch."""

    left_TO: Tensor
    back_IT: Tensor

    def seen(self, gradient_OI: Tensor) -> Tensor:
        """A gradient of the input's layers, between them: (T, T)."""
        return self.left_TO @ gradient_OI @ self.back_IT

    def seen_of(self, delta_TO: Tensor, inputs_TI: Tensor) -> Tensor:
        """That of the gradient ΔᵀX, which isn't formed."""
        return (self.left_TO @ delta_TO.T) @ (inputs_TI @ self.back_IT)


def like_identity(own_KNTT: Tensor) -> tuple[Tensor | None, float]:
    """How strongly each of some parts must be there to make the identity at N inputs, (K,), and how far they are off.

    None where they can't make it, or where there are so many parts that they could always.
    """
    K, N, T, _ = own_KNTT.shape
    identity_NTT = torch.eye(T, dtype=own_KNTT.dtype, device=own_KNTT.device).expand(N, T, T)
    if 2 * K > N * T * T:
        return None, math.inf
    parts_K = least_squares(own_KNTT.flatten(1).T, identity_NTT.reshape(-1, 1))[:, 0]
    off_NTT = torch.einsum("k,knst->nst", parts_K, own_KNTT) - identity_NTT
    off = float(off_NTT.norm()) / (N * T) ** 0.5
    return (parts_K if off <= _UNLIKE_IDENTITY else None), off


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """A sentence that is in the batch.

    Attributes:
        row: its tokens.
        parts: for each class its coefficient in the batch's gradient, the least one 0.
        chances: the model's own prediction; any multiple of it could be added to `parts` and change nothing.
    """

    row: Row
    parts: tuple[float, ...]
    chances: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Remainder:
    """What is left of a classifier's shared gradient, at some of its inputs.

    Attributes:
        exact: the public model in float64.
        rough: in the client's precision, to see what rounding does; in float32 where that is float64.
        rounding: relative rounding of an entry by the client, as a part of what `rough` has.
        kept: by model, what a certificate needs of the sentences that are taken off, filled on the way.
        names: of the parameters that it needs it of; none for nothing.
        inputs: what is left at each input.
        judge: which of them tells whether a sentence is in the batch.
    """

    exact: TextModel
    rough: TextModel
    rounding: float
    kept: tuple[Known, Known]
    names: tuple[str, ...]
    inputs: tuple[LayerRemainder, ...]
    judge: int

    @classmethod
    def of(cls, view: View, inputs: tuple[LayerRemainder, ...], *, judge: int) -> Self:
        """All of a shared gradient."""
        model = view.text_model
        rough = model.in_dtype(torch.float32) if model.dtype == torch.float64 else model
        rounding = torch.finfo(model.dtype).eps / torch.finfo(rough.dtype).eps
        exactly = view.double()
        return cls(
            exact=exactly.text_model,
            rough=rough,
            rounding=rounding,
            kept=(exactly.known, view.known if rough is model else {}),
            names=view.kept_apart,
            inputs=inputs,
            judge=judge,
        )

    def among(
        self, rows: Sequence[Row], found: Sequence[Member] = (), batch_size: int | None = None
    ) -> tuple[list[Member], Remainder] | None:
        """Those of some sentences that are in the batch, and what is left without them; None where none is.

        Args:
            rows: sentences, each proved by itself.
            found: the members that were taken off already.
            batch_size: of the batch, where it is known.
        """
        judge = self.inputs[self.judge]
        if judge.span is None:
            return None
        name, labels_CC = judge.layers[0].name, torch.eye(self.exact.classes - 1)
        members: list[Member] = []
        taken: list[tuple[Alone, Tensor]] = []
        for alone in each_alone(self.exact, rows, self._layers, names=self.names):
            frame = judge.frame(alone.inputs[name])
            # Any class's gradient follows from the others', as their mean by the model's own prediction is zero.
            own_CTT = torch.stack([frame.seen_of(*judge.own(alone, only_C)) for only_C in labels_CC])
            parts_C, off = like_identity(own_CTT[:, None])
            if parts_C is None:
                continue
            members.append(_member(alone.row, parts_C, alone.chances_C))
            counted = batch_counts([*found, *members], batch_size=batch_size)
            if counted is not None:  # a part off its whole number by rounding would leave that much behind
                whole_C = _parts_of(counted[1][-1], counted[0], alone.chances_C)
                if float((whole_C - parts_C).abs().max()) <= _OFF_WHOLE * off * float(parts_C.abs().max()):
                    parts_C = whole_C
            taken.append((alone, parts_C))
        return (members, self._less(taken)) if members else None

    def members(
        self,
        rows: Sequence[Row],
        found: Sequence[Member],
        batch_size: int | None,
        *,
        weighed: bool = False,
    ) -> tuple[list[Member], Remainder] | None:
        """Those of some sentences that make all that is left; None where none of them do.

        The proof for sentences that can't be proved one by one, as directions of their inputs drown in rounding: with
        whole numbers of each, nothing but rounding is left at any input.

        Args:
            rows: sentences, the batch's among them.
            found: the members that were taken off already.
            batch_size: of the batch, where it is known.
            weighed: whether the loss may weigh sentences, so that their parts are no whole numbers. That nothing is
                left then still takes far more equations than there are parts.
        """
        if weighed and len(rows) * (self.exact.classes - 1) > _MOST_PARTS:
            return None
        every = each_alone(self.exact, rows, self._layers, names=self.names)
        least = _NO_PART_WEIGHED if weighed else _NO_PART
        for _ in range(2):  # once more without those that have no part
            parts = self._parts(every)
            members = [
                _member(one.row, own_C, one.chances_C) for one, own_C in zip(every, parts, strict=True)
            ]
            largest = max(sum(member.parts) for member in members)
            there = [sum(member.parts) > least * largest for member in members]
            every, members = list(itertools.compress(every, there)), list(itertools.compress(members, there))
            parts = list(itertools.compress(parts, there))
        if not weighed:
            counted = batch_counts([*found, *members], batch_size=batch_size)
            if counted is None:
                return None
            size, counts = counted
            numbers = zip(counts[len(found) :], every, strict=True)
            parts = [_parts_of(number, size, alone.chances_C) for number, alone in numbers]
        left = self._less(list(zip(every, parts, strict=True)))
        return (members, left) if left.nothing else None

    @property
    def nothing(self) -> bool:
        """Whether only rounding is left, at all inputs."""
        return all(input_.span is None for input_ in self.inputs)

    def clear_beside(self, whole: Remainder) -> bool:
        """Whether what is left at the first input is far more than rounding of all that was there."""
        left_OI, all_OI = self.inputs[0].stacked_OI, whole.inputs[0].stacked_OI
        rounded = _CLEARLY_LEFT * max(torch.finfo(torch.float32).eps, torch.finfo(self.rough.dtype).eps)
        return not self.nothing and bool(left_OI.norm() > rounded * all_OI.norm())

    @property
    def _layers(self) -> list[LinearLayer]:
        return [layer for input_ in self.inputs for layer in input_.layers]

    def _parts(self, every: Sequence[Alone]) -> list[Tensor]:
        """About how strongly some sentences with each label but the last are in what is left: least squares."""
        # What each input's span sees, all inputs counted alike.
        spans = [
            (input_, input_.span.basis_RI, input_.stacked_OI.norm())
            for input_ in self.inputs
            if input_.span is not None
        ]

        def seen(alone: Alone, only_C: Tensor) -> Iterator[Tensor]:
            for input_, basis_RI, norm in spans:
                delta_TO, inputs_TI = input_.own(alone, only_C)
                yield (delta_TO.T @ (inputs_TI @ basis_RI.T)).flatten() / norm

        labels_CC = torch.eye(self.exact.classes - 1)
        columns = [torch.cat(list(seen(alone, only_C))) for alone in every for only_C in labels_CC]
        wanted = torch.cat(
            [(input_.stacked_OI @ basis_RI.T).flatten() / norm for input_, basis_RI, norm in spans]
        )
        solved = least_squares(torch.stack(columns, 1), wanted[:, None])[:, 0]
        return list(solved.view(len(every), -1))

    def _less(self, taken: Sequence[tuple[Alone, Tensor]]) -> Remainder:
        """What is left without some sentences, with how strongly each one's labels but the last are in the batch."""
        rows = [alone.row for alone, _ in taken]
        rough = each_alone(self.rough, rows, self._layers, names=self.names)
        runs = ((self.exact, [alone for alone, _ in taken]), (self.rough, rough))
        for known, (model, every) in zip(self.kept, runs, strict=True):
            keep(known, model, {alone.row: alone.parts for alone in every})
        inputs = []
        for input_ in self.inputs:
            if input_.span is None:
                inputs.append(input_)
                continue
            exactly = [input_.own(alone, parts_C) for alone, parts_C in taken]
            roughly = [input_.own(alone, parts_C) for alone, (_, parts_C) in zip(rough, taken, strict=True)]
            errors = [self.rounding * _apart(*both) for both in zip(exactly, roughly, strict=True)]
            deltas_NO, inputs_NI = (torch.cat(factors) for factors in zip(*exactly, strict=True))
            inputs.append(input_.less(deltas_NO.T @ inputs_NI, errors))
        return dataclasses.replace(self, inputs=tuple(inputs))


def _apart(exactly: tuple[Tensor, Tensor], roughly: tuple[Tensor, Tensor]) -> float:
    """About the largest singular value of the difference of two gradients ΔᵀX, of (T, O) and (T, I) each."""
    (delta_TO, inputs_TI), (other_TO, others_TI) = exactly, roughly
    return about_largest(
        torch.cat([other_TO - delta_TO, delta_TO]).T, torch.cat([others_TI, others_TI - inputs_TI])
    )


def _member(row: Row, parts_C: Tensor, chances_C: Tensor) -> Member:
    """A sentence with its parts (of each label but the last) as those of all labels, none of them negative."""
    parts_C = torch.cat([parts_C, parts_C.new_zeros(1)])
    least = float((parts_C / chances_C).min())
    parts = (parts_C - least * chances_C).clamp_min(0)
    return Member(row=row, parts=tuple(parts.tolist()), chances=tuple(chances_C.tolist()))


def _parts_of(numbers: Sequence[int], size: int, chances_C: Tensor) -> Tensor:
    """The parts (of each label but the last) of a sentence that a batch holds so often with each label."""
    shares_C = torch.tensor(numbers).to(chances_C) / size
    # The last class's gradient, in those of the others.
    return shares_C[:-1] - shares_C[-1] * chances_C[:-1] / chances_C[-1]


def about_largest(*factors: Tensor) -> float:
    """The largest singular value of a product of matrices, from below, by a few power iterations."""
    generator = torch.Generator().manual_seed(0)  # any start will do
    vector = torch.randn(factors[-1].shape[1], generator=generator).to(factors[-1])
    for _ in range(_POWER_STEPS):
        vector = vector / vector.norm()
        for factor in reversed(factors):
            vector = factor @ vector
        for factor in factors:
            vector = factor.T @ vector
        if not vector.any():
            return 0.0
    return math.sqrt(float(vector.norm()))


def batch_counts(
    members: Sequence[Member], *, batch_size: int | None, more: bool = False, most: int = 512
) -> tuple[int, list[tuple[int, ...]]] | None:
    """How often the batch holds each sentence with each label, in whole numbers: the smallest batch that fits.

    Args:
        members: sentences that are in the batch.
        batch_size: of the batch, where it is known.
        more: whether there are others in it. One sentence's part can seem to be that of a whole batch of it, with each
            label some times.
        most: sentences of a batch.

    Returns:
        The batch's size and each member's counts by class; None where no batch of up to `most` sentences fits. The
        counts add up to less than the size while sentences are missing.
    """
    sizes = [batch_size] if batch_size else range(1, most + 1)
    for size in sizes:
        counts = [_whole(member, size) for member in members]
        if all(count is not None for count in counts):
            found = [count for count in counts if count is not None]
            if sum(map(sum, found)) <= size - more:
                return size, found
    return None


def _whole(member: Member, size: int) -> tuple[int, ...] | None:
    """The counts of one sentence in a batch of `size`, where its parts are such counts over `size`."""
    parts = [part * size for part in member.parts]
    tolerance = 0.01 * max(parts)
    plain = [round(part) for part in parts]
    if max(plain) > 0 and all(abs(p - w) <= tolerance for p, w in zip(parts, plain, strict=True)):
        return tuple(plain)
    # With two or more labels the same multiple of the prediction is missing from each.
    for common in range(1, size):
        for index, chance in enumerate(member.chances):
            lifted = [p + common / chance * c for p, c in zip(parts, member.chances, strict=True)]
            whole = [round(part) for part in lifted]
            if whole[index] != common or sum(whole) > size:
                continue
            if all(abs(p - w) <= tolerance for p, w in zip(lifted, whole, strict=True)):
                return tuple(whole)
    return None
