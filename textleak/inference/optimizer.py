"""The optimizer: Adam's first step moves every entry by the learning rate, SGD's as far as the gradient says.

Adam's first step is rate · g / (|g| + ε) (Kingma & Ba 2015, alg. 1: both bias corrections cancel), so the sizes of all
entries whose gradient is well above ε cluster at the rate, and none is larger. After several steps Adam's entries are
still of one size in all tensors, which gradients never are.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor

from textleak.inference.adapters import moved_downs
from textleak.inference.base import Seen, Told, measured, per_cent
from textleak.inference.kind import sent_as
from textleak.inference.repeated import repeated_of
from textleak.inference.shrinking import decay_of
from textleak.numerics import grid_step, least_squares

WHAT = "optimizer"
# Entries that have to have moved by more than two steps of the weights' grid (our choice).
_LEAST, _CLEAR_OF_GRID = 200, 2.0
# Width of a cluster, and the part of the entries in it and beyond it after one step (our choice; measured on minilm
# and bert-tiny: 0.39 to 0.99 in it after one step and 0 beyond; 0.1 and less in it after two).
_WIDTH, _IN, _BEYOND = 0.01, 0.25, 1e-4
# How far an entry may be beyond the rate by float32's own arithmetic.
_ARITHMETIC = 2e-4
# Part of the entries on the finest grids that the furthest are, how fine that is, and how near they are to the rate
# after one step: at 1 − ε/|g| of it, where several steps on like gradients move them by up to 1.0007 rates each (our
# choice; measured on minilm and bert-tiny: 6e-6 to 3e-5 after one step, 2e-4 and more after two on one batch).
_FURTHEST, _FINE, _SHARP = 0.05, 1e-5, 8e-5
# Ratio of the largest tensor's size to the median one's: Adam's are of one size (our choice; measured likewise: 1.0 to
# 1.7 after 1 to 20 steps of AdamW, 125 and more of SGD), and tensors that it takes to say so.
_ADAM_SPREAD, _SGD_SPREAD, _TENSORS = 4.0, 16.0, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstStep:
    """Adam's first step.

    Attributes:
        rate: the learning rate.
        product: of rate and weight decay.
        share: of the entries that moved by it, within 1 %.
        entries: looked at.
        sharp: whether they moved by it as nearly as one step has them.
    """

    rate: float
    product: float
    share: float
    entries: int
    sharp: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Which one; None where it can't be told."""

    name: Literal["adamw", "sgd"] | None
    evidence: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Moves:
    """What entries moved by beyond the grid, N of them: the move, the weight and its grid's step."""

    moved_N: Tensor
    weights_N: Tensor
    steps_N: Tensor

    def without_decay(self, product: float) -> Tensor:
        return self.moved_N + product * self.weights_N


@measured
def first_step(seen: Seen) -> FirstStep | None:
    """Adam's first step, where it was one; None for anything else, or where that can't be told."""
    found, repeated, later = clustered(seen), repeated_of(seen), moved_downs(seen)
    if found is None or later or (repeated is not None and repeated.steps > 1):
        return None
    return found if found.sharp or later is False or repeated is not None else None


@measured
def clustered(seen: Seen) -> FirstStep | None:
    """The one size by which entries moved: by Adam's first step, or by several on gradients that are nearly alike."""
    moves = _moves(seen)
    if len(moves.moved_N) < _LEAST:
        return None
    decay = decay_of(seen)
    product = _fitted_product(moves) if decay is None else decay.product
    left_N = moves.without_decay(product)
    sizes_N = left_N.abs()
    told_N = sizes_N > _CLEAR_OF_GRID * moves.steps_N
    sizes_N, steps_N = sizes_N[told_N], moves.steps_N[told_N]
    if len(sizes_N) < _LEAST:
        return None
    rate = _cluster(sizes_N, steps_N)
    share = float(((sizes_N / rate - 1).abs() < _WIDTH).double().mean())
    beyond = float((sizes_N > (1 + _ARITHMETIC) * rate + _CLEAR_OF_GRID * steps_N).double().mean())
    if share < _IN or beyond > _BEYOND:
        return None
    return FirstStep(
        rate=rate, product=product, share=share, entries=len(sizes_N), sharp=_is_sharp(sizes_N, steps_N, rate)
    )


def _is_sharp(sizes_N: Tensor, steps_N: Tensor, rate: float) -> bool:
    """Whether the furthest entries have all moved by the rate, as far as the finest grids show."""
    grid = max(_FINE * rate, float(steps_N.sort().values[_LEAST - 1]))
    furthest_N = sizes_N[steps_N <= grid].sort(descending=True).values
    off = 1 - float(furthest_N[int(_FURTHEST * len(furthest_N))]) / float(furthest_N[0])
    return off <= _SHARP


def _moves(seen: Seen) -> _Moves:
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for moved_N, weights_N, dtype in seen.sampled():
        steps_N = grid_step(torch.maximum(weights_N.abs(), (weights_N + moved_N).abs()), dtype)
        there_N = moved_N.abs() > _CLEAR_OF_GRID * steps_N
        parts.append((moved_N[there_N], weights_N[there_N], steps_N[there_N]))
    if not parts:
        none = torch.zeros(0, dtype=torch.float64)
        return _Moves(moved_N=none, weights_N=none, steps_N=none)
    moved, weights_, steps = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Moves(moved_N=moved, weights_N=weights_, steps_N=steps)


def _cluster(sizes_N: Tensor, steps_N: Tensor) -> float:
    """The size that most entries have: the upper edge, as ε makes some smaller, of those whose grid is finest."""
    fine = 4.0 / _WIDTH  # bins a unit of the logarithm
    bins_N = (sizes_N.log() * fine).round()
    values, counts = torch.unique(bins_N, return_counts=True)
    mode = math.exp(float(values[counts.argmax()]) / fine)
    near_N = (sizes_N / mode - 1).abs() < _WIDTH / 2
    finest = steps_N[near_N].sort().values[: 2 * _LEAST][-1]
    return float(sizes_N[near_N & (steps_N <= finest)].max())


def _fitted_product(moves: _Moves) -> float:
    """Rate times decay where no row of a table shows it: by least squares over the entries that moved most alike."""
    sizes_N = moves.moved_N.abs()
    rate, product = _cluster(sizes_N, moves.steps_N), 0.0
    for width in (0.2, 0.05, _WIDTH, _WIDTH / 4):
        left_N = moves.without_decay(product)
        near_N = (left_N.abs() / rate - 1).abs() < width
        if int(near_N.sum()) < _LEAST:
            return product
        columns_N2 = torch.stack([left_N.sign(), -moves.weights_N], 1)[near_N]
        found = least_squares(columns_N2, moves.moved_N[near_N][:, None])[:, 0]
        rate, product = float(found[0]), float(found[1])
    # What rounding of the weights makes of no decay at all.
    return product if product > torch.finfo(torch.float32).eps / 4 else 0.0


def _spread(seen: Seen) -> tuple[float, int]:
    """The largest tensor's size over the median one's, and how many tensors have one."""
    decay = decay_of(seen)
    product = 0.0 if decay is None else decay.product
    sizes = []
    for moved_N, weights_N, dtype in seen.sampled():
        left_N = moved_N + product * weights_N
        left_N = left_N[left_N.abs() > _CLEAR_OF_GRID * grid_step(weights_N, dtype)]
        if len(left_N):
            sizes.append(float(left_N.square().mean().sqrt()))
    if not sizes:
        return 1.0, 0
    sizes_N = torch.tensor(sizes, dtype=torch.float64)
    return float(sizes_N.max() / sizes_N.median()), len(sizes)


@measured
def optimizer_of(seen: Seen) -> Optimizer:
    """Which optimizer moved the weights."""
    sent = sent_as(seen).kind
    if sent is None:
        return Optimizer(name=None, evidence="Whether an optimizer was at work can't be told.")
    if sent == "gradient":
        return Optimizer(name=None, evidence="A gradient was sent: no optimizer has touched it.")
    found = clustered(seen)
    if found is not None:
        alike = (
            "Adam's first step, in which every entry moves by the rate"
            if first_step(seen) is not None
            else "Adam's steps, in which every entry moves by about the rate"
        )
        return Optimizer(
            name="adamw",
            evidence=f"{per_cent(found.share)} of {found.entries:,} entries moved by {found.rate:.4g} (within 1 %) and "
            f"none by more: {alike}.",
        )
    spread, tensors = _spread(seen)
    figure = f"The largest of {tensors} tensors' moves are {spread:.3g} times the median one's"
    if tensors >= _TENSORS and spread <= _ADAM_SPREAD:
        return Optimizer(
            name="adamw", evidence=f"{figure}: all of one size, as Adam's several steps make them."
        )
    if tensors >= _TENSORS and spread >= _SGD_SPREAD:
        return Optimizer(
            name="sgd", evidence=f"{figure}, as gradients are; Adam would make them of one size."
        )
    return Optimizer(name=None, evidence=f"{figure}: neither clearly Adam's nor clearly SGD's.")


def ask(seen: Seen) -> Told | None:
    """Which optimizer; None of a gradient, which none has touched."""
    if sent_as(seen).kind == "gradient":
        return None
    found = optimizer_of(seen)
    return Told(what=WHAT, value=found.name, evidence=found.evidence)
