"""What is left of a shared gradient once known sentences' own gradients are taken off it (our choice).

A batch's gradient is a sum over its sentences, so a found sentence can be proved and taken off, one by one, and what
is left is the gradient of a smaller batch. The proof needs no truth: subtracting a sentence's gradient lowers the rank
of a layer's gradient G by just its own rank if, and only if, X G⁺ Δᵀ is the identity (Wedderburn 1934), with X the
layer's inputs and Δ the output gradients that the sentence has in the batch. Δ is linear in what the sentence's labels
are and how often it is there, so these come out as well.

Shapes: T tokens of a sentence, R rank, I and O a layer's input and output size, C classes.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from textleak.exact.subspace import InputSpan, as_rows, span_of, spectrum_end
from textleak.matching.discrete import Row
from textleak.models import Batch, TextModel
from textleak.models.batches import TextExamples
from textleak.models.gradient import formed_gradient
from textleak.models.probes.layers import LinearLayer, layer_inputs
from textleak.numerics import exact, least_squares
from textleak.shared.gradient import SharedGradient

Layers = tuple[LinearLayer, ...]
"""Layers that read one and the same input."""

# X G⁺ Δᵀ may be off the identity by this part where a sentence is in the batch (our choice; measured on minilm: below
# 1e-4 for sentences that are in it, above 0.5 for others).
_UNLIKE_IDENTITY = 0.05
# What is left is nothing where no singular value is beyond this many times rounding (our choice).
_NOTHING = 16.0
_POWER_STEPS = 5
# A part may be off a whole number by this many times what the identity is off by (our choice).
_OFF_WHOLE = 4.0
# Sentences with less than this of the largest one's part in what is left are not in it (our choice).
_NO_PART = 0.1


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
        gradients = [as_rows(shared.gradients[layer.weight_name], layer) for layer in layers]
        stacked_OI = torch.cat([exact(g) for g in gradients])
        largest = float(torch.linalg.matrix_norm(stacked_OI @ span.basis_RI.T, ord=2))
        rounding = largest * torch.finfo(gradients[0].dtype).eps
        outputs = [len(g) for g in gradients]
        return cls(layers=layers, stacked_OI=stacked_OI, outputs=outputs, span=span, rounding=rounding)

    def stacked(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Other gradients of these layers, laid out as the shared ones are: (O, I)."""
        return torch.cat([as_rows(gradients[layer.weight_name], layer) for layer in self.layers])

    def by_layer(self, values_NO: Tensor) -> dict[str, Tensor]:
        """Values at all outputs, apart by the layers' names."""
        names = (layer.name for layer in self.layers)
        return dict(zip(names, torch.split(values_NO, self.outputs, dim=1), strict=True))

    @property
    def sizes_O(self) -> Tensor:
        """The norm of the layer's gradient that each row belongs to."""
        parts = torch.split(self.stacked_OI, self.outputs)
        return torch.cat([part.norm().expand(len(part)) for part in parts])

    def less(self, gradients: Mapping[str, Tensor], errors: Mapping[str, Tensor]) -> LayerRemainder:
        """What is left after taking some sentences' gradients off.

        Args:
            gradients: theirs, by parameter.
            errors: about what the client's rounding did to them.
        """
        if self.span is None:
            return self
        stacked_OI = self.stacked_OI - self.stacked(gradients)
        rounding = math.hypot(self.rounding, _about_largest(self.stacked(errors)))
        left_OR, s_R, _ = torch.linalg.svd(stacked_OI @ self.span.basis_RI.T, full_matrices=False)
        floor, noise, clear = spectrum_end(s_R, rounding)
        rank = int((s_R > floor).sum()) if float(s_R[0]) > _NOTHING * rounding else 0
        span = None
        if rank > 0:
            # One step of subspace iteration, or the directions would keep the errors of the wider span's weak ones.
            _, s_R, basis_RI = torch.linalg.svd(left_OR[:, :rank].T @ stacked_OI, full_matrices=False)
            shape = (stacked_OI.shape[0], stacked_OI.shape[1])
            span = span_of(self.span.layers, s_R, basis_RI, shape=shape, noise=noise, clear=clear)
        return dataclasses.replace(self, stacked_OI=stacked_OI, span=span, rounding=rounding)


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
class _Frame:
    """X G⁺ and X⁺ of a sentence: between them its own gradient is the identity, if it is in the batch."""

    left_TO: Tensor
    back_IT: Tensor

    def seen(self, gradient_OI: Tensor) -> Tensor:
        """A gradient of the input's layers, between them: (T, T)."""
        return self.left_TO @ gradient_OI @ self.back_IT


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
class Remainder:
    """What is left of a classifier's shared gradient, at some of its inputs.

    Attributes:
        exact: the public model in float64.
        rough: in the client's precision, to see what rounding does; in float32 where that is float64.
        rounding: relative rounding of an entry by the client, as a part of what `rough` has.
        inputs: what is left at each input.
        judge: which of them tells whether a sentence is in the batch.
    """

    exact: TextModel
    rough: TextModel
    rounding: float
    inputs: tuple[LayerRemainder, ...]
    judge: int

    @classmethod
    def of(cls, model: TextModel, inputs: tuple[LayerRemainder, ...], *, judge: int) -> Remainder:
        """All of a shared gradient."""
        rough = model
        if model.dtype == torch.float64:
            rough = dataclasses.replace(model, network=copy.deepcopy(model.network).float())
        rounding = torch.finfo(model.dtype).eps / torch.finfo(rough.dtype).eps
        return cls(exact=model.double(), rough=rough, rounding=rounding, inputs=inputs, judge=judge)

    def member(
        self, row: Row, found: Sequence[Member] = (), batch_size: int | None = None
    ) -> tuple[Member, Remainder] | None:
        """The sentence's part in the batch, and what is left without it; None where it isn't in the batch.

        Args:
            row: its tokens.
            found: the members that were taken off already.
            batch_size: of the batch, where it is known.
        """
        judge = self.inputs[self.judge]
        frame = self._frame(row, judge)
        if frame is None:
            return None
        chances_C = self._chances(row)
        # Any class's gradient follows from the others', as their mean by the model's own prediction is zero.
        by_class = self._gradients(self.exact, row)
        parts_C, off = like_identity(torch.stack([frame.seen(judge.stacked(g)) for g in by_class])[:, None])
        if parts_C is None:
            return None
        member = _member(row, parts_C, chances_C)
        counted = batch_counts([*found, member], batch_size=batch_size)
        if (
            counted is not None
        ):  # a part that is off its whole number by rounding would leave that much behind
            whole_C = _parts_of(counted[1][-1], counted[0], chances_C)
            if float((whole_C - parts_C).abs().max()) <= _OFF_WHOLE * off * float(parts_C.abs().max()):
                parts_C = whole_C
        return member, self._less(row, by_class, parts_C)

    def _frame(self, row: Row, input_: LayerRemainder) -> _Frame | None:
        """How an input shows a sentence; None where nothing is left there."""
        if input_.span is None:
            return None
        name, basis_RI = input_.layers[0].name, input_.span.basis_RI
        ids_1T = torch.tensor([row], device=self.exact.device)
        inputs_TI = layer_inputs(self.exact, ids_1T, [name])[name][0].to(basis_RI.device)
        return _Frame(
            left_TO=(inputs_TI @ basis_RI.T) @ torch.linalg.pinv(input_.stacked_OI @ basis_RI.T),
            back_IT=torch.linalg.pinv(inputs_TI),
        )

    def members(
        self, rows: Sequence[Row], found: Sequence[Member], batch_size: int | None
    ) -> tuple[list[Member], Remainder] | None:
        """Those of some sentences that make all that is left; None where none of them do.

        The proof for sentences that can't be proved one by one, as directions of their inputs drown in rounding: with
        whole numbers of each, nothing but rounding is left at any input.

        Args:
            rows: sentences, the batch's among them.
            found: the members that were taken off already.
            batch_size: of the batch, where it is known.
        """
        by_row = {row: self._gradients(self.exact, row) for row in rows}
        chances = {row: self._chances(row) for row in rows}
        for _ in range(2):  # once more without those that have no part
            parts = self._parts(by_row)
            members = {row: _member(row, parts[row], chances[row]) for row in by_row}
            largest = max(sum(member.parts) for member in members.values())
            by_row = {row: by_row[row] for row in by_row if sum(members[row].parts) > _NO_PART * largest}
        members = {row: members[row] for row in by_row}
        counted = batch_counts([*found, *members.values()], batch_size=batch_size)
        if counted is None:
            return None
        size, counts = counted
        left = self
        for row, numbers in zip(by_row, counts[len(found) :], strict=True):
            left = left._less(row, by_row[row], _parts_of(numbers, size, chances[row]))
        return (list(members.values()), left) if left.nothing else None

    @property
    def nothing(self) -> bool:
        """Whether only rounding is left, at all inputs."""
        return all(input_.span is None for input_ in self.inputs)

    def _parts(self, by_row: Mapping[Row, Sequence[Mapping[str, Tensor]]]) -> dict[Row, Tensor]:
        """About how strongly some sentences with each label but the last are in what is left: least squares."""

        def seen(own: Callable[[LayerRemainder], Tensor]) -> Tensor:
            """What an input's span sees of something, all inputs counted alike."""
            inputs = [input_ for input_ in self.inputs if input_.span is not None]
            return torch.cat(
                [
                    (own(input_) @ input_.span.basis_RI.T).flatten() / input_.stacked_OI.norm()
                    for input_ in inputs
                    if input_.span is not None
                ]
            )

        def column(gradients: Mapping[str, Tensor]) -> Tensor:
            return seen(lambda input_: input_.stacked(gradients))

        columns = [column(gradients) for by_class in by_row.values() for gradients in by_class]
        wanted = seen(lambda input_: input_.stacked_OI)
        solved = least_squares(torch.stack(columns, 1), wanted[:, None])[:, 0]
        return dict(zip(by_row, solved.view(len(by_row), -1), strict=True))

    def _less(self, row: Row, by_class: Sequence[Mapping[str, Tensor]], parts_C: Tensor) -> Remainder:
        """What is left without a sentence.

        Args:
            row: its tokens.
            by_class: its gradients with each label but the last.
            parts_C: how strongly each of them is in the batch.
        """
        total, rough = _combined(by_class, parts_C), _combined(self._gradients(self.rough, row), parts_C)
        errors = {key: self.rounding * (rough[key] - total[key]) for key in total}
        return dataclasses.replace(self, inputs=tuple(input_.less(total, errors) for input_ in self.inputs))

    def _gradients(self, model: TextModel, row: Row) -> list[dict[str, Tensor]]:
        """The gradients of the sentence alone with each label but the last, at the layers of `inputs`."""
        names = [layer.weight_name for input_ in self.inputs for layer in input_.layers]
        formed = [formed_gradient(model, _alone(model, row, [c]), names) for c in range(model.classes - 1)]
        return [{name: exact(g) for name, g in gradients.items()} for gradients in formed]

    def _chances(self, row: Row) -> Tensor:
        """The model's prediction for the sentence, (C,): from the losses of all labels."""
        alone = _alone(self.exact, row, range(self.exact.classes))
        batch, targets = alone.batch, alone.targets
        labels_C1L, weights_C1L = targets.labels[:, None], targets.weights[:, None] * len(targets.weights)
        with torch.no_grad():
            losses_C = self.exact.loss(
                batch.ids_BT[:, None],
                batch.mask_BT[:, None],
                dataclasses.replace(targets, labels=labels_C1L, weights=weights_C1L),
            )
        return (-exact(losses_C)).softmax(0).clamp_min(torch.finfo(torch.float64).tiny)


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


def _about_largest(matrix_OI: Tensor) -> float:
    """The largest singular value, from below, by a few power iterations."""
    vector_I = torch.randn(matrix_OI.shape[1], generator=torch.Generator().manual_seed(0)).to(matrix_OI)
    for _ in range(_POWER_STEPS):
        vector_I = matrix_OI.T @ (matrix_OI @ (vector_I / vector_I.norm()))
        if not vector_I.any():
            return 0.0
    return math.sqrt(float(vector_I.norm()))


def _alone(model: TextModel, row: Row, labels: Sequence[int]) -> TextExamples:
    """The sentence, once with each label."""
    ids_BT = torch.tensor([row], device=model.device).expand(len(labels), -1)
    batch = Batch(ids_BT=ids_BT, mask_BT=torch.ones_like(ids_BT))
    batch, targets = model.targets(batch, labels, torch.Generator())
    return TextExamples(batch=batch, targets=targets)


def _combined(by_class: Sequence[Mapping[str, Tensor]], parts_C: Tensor) -> dict[str, Tensor]:
    """Gradients of a sentence's labels, each as strongly as it is in the batch."""
    return {
        key: torch.stack([part * g[key].to(parts_C) for part, g in zip(parts_C, by_class, strict=True)]).sum(
            0
        )
        for key in by_class[0]
    }


def batch_counts(
    members: Sequence[Member], *, batch_size: int | None, most: int = 512
) -> tuple[int, list[tuple[int, ...]]] | None:
    """How often the batch holds each sentence with each label, in whole numbers: the smallest batch that fits.

    Returns:
        The batch's size and each member's counts by class; None where no batch of up to `most` sentences fits. The
        counts add up to less than the size while sentences are missing.
    """
    sizes = [batch_size] if batch_size else range(1, most + 1)
    for size in sizes:
        counts = [_whole(member, size) for member in members]
        if all(count is not None for count in counts):
            found = [count for count in counts if count is not None]
            if sum(map(sum, found)) <= size:
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
