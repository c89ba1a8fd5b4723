"""Distances of K candidates' gradients from a shared one: the call that every attack makes.

Shapes: K candidates, P matched tensors.
"""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from textleak.errors import AttackError
from textleak.matching.factored import Capture, Leaves, ModelFunction, candidates_of, out_of_memory
from textleak.matching.moments import moments_of
from textleak.matching.objectives import Moments, Objective
from textleak.matching.recorded import Compute, Replayed
from textleak.matching.replay import Tensors
from textleak.matching.rules import Contribution
from textleak.matching.target import Target

Answer = TypeVar("Answer")

# Candidates a call unless told otherwise: large enough for full-speed products, small enough for the caches.
_FIRST_CHUNK = {"cpu": 64, "cuda": 1024}


@dataclass(frozen=True, kw_only=True, eq=False)
class Kin:
    """Which candidates of several matchers can go into one call of the network.

    Attributes:
        key: equal for those whose model functions do the same with their leaves.
        along: by a leaf's name, the dimensions in which kin may differ: zeros at their ends change no answer.
    """

    key: Hashable
    along: Callable[[str], tuple[int, ...]]


class GradientSource(Protocol):
    """Where candidates' gradients come from: a backward pass (`Capture`), or whatever else a client does."""

    @property
    def formed_names(self) -> tuple[str, ...]:
        """Parameters whose gradients are formed one candidate at a time; final after `check`."""

    def check(self, model_function: ModelFunction, leaves: Leaves) -> None:
        """Make sure on a few candidates that what is found is right, and find out how."""

    def contributions(
        self, model_function: ModelFunction, leaves: Leaves, *, create_graph: bool
    ) -> tuple[Tensor, dict[str, list[Contribution]]]:
        """Losses (K,), and for each parameter what its gradient is made of."""


class Common(Protocol):
    """Answers several matchers by one call of the network: a `Pool`."""

    def answer(
        self, matcher: Matcher, model_function: ModelFunction, leaves: Leaves, wrt: tuple[str, ...], kin: Kin
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """A matcher's `value_and_gradient`."""


def matched_names(target: Target, objective: Objective) -> list[str]:
    """Parameters whose gradients an objective looks at: those that it weighs 0 are never computed."""
    return [name for name in target.names if objective.weights.get(name, 1.0) != 0.0]


class Matcher:
    """Compares candidates' gradients with a shared gradient.

    Args:
        source: gives candidates' gradients, of `matched_names` at least.
        target: the shared gradient, of the tensors to be matched and no others.
        objective: turns moments into one distance a candidate.
        chunk: candidates a call of the network, at most; halved for good whenever memory runs out.
        replay: whether calls that come again are replayed (recorded.py). The model function must then depend on nothing
            that changes but the leaves.
        pool: answers `value_and_gradient` of candidates that have kin, together with those of its other matchers.

    Attributes:
        evaluations: candidates evaluated so far, in chunks, with or without a gradient.
        formed_names: parameters whose gradients are formed one candidate at a time, for want of a rule.
    """

    def __init__(
        self,
        source: GradientSource,
        target: Target,
        objective: Objective,
        *,
        chunk: int | None = None,
        replay: bool = True,
        pool: Common | None = None,
    ) -> None:
        self.target = target
        self.objective = objective
        self.evaluations = 0
        self.chunk = chunk
        self._source = source
        self._checked: set[tuple[str, ...]] = set()
        self._replayed = Replayed() if replay else None
        self._pool = pool

    @classmethod
    def of(
        cls, network: nn.Module, target: Target, objective: Objective, *, chunk: int | None = None
    ) -> Self:
        """A matcher of gradients by one backward pass of a network."""
        return cls(Capture(network, matched_names(target, objective)), target, objective, chunk=chunk)

    @property
    def formed_names(self) -> tuple[str, ...]:
        """Parameters whose gradients are formed one candidate at a time; final after the first call."""
        return self._source.formed_names

    def moments(
        self, model_function: ModelFunction, leaves: Leaves, *, create_graph: bool = False
    ) -> Moments:
        """Per-tensor moments of all candidates, in one call of the network.

        Args:
            model_function: gives losses (K,) from `leaves`.
            leaves: tensors with K first.
            create_graph: make the moments differentiable in those leaves that require a gradient.
        """
        found = self._contributions(model_function, leaves, create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            return moments_of(found, self.target, absolute=self.objective.needs_absolute)

    def _contributions(
        self, model_function: ModelFunction, leaves: Leaves, *, create_graph: bool
    ) -> dict[str, list[Contribution]]:
        """What each matched tensor's gradient is made of; every rule is checked on the first call."""
        if tuple(leaves) not in self._checked:
            self._source.check(model_function, leaves)
            self._checked.add(tuple(leaves))
        return self._source.contributions(model_function, leaves, create_graph=create_graph)[1]

    def distances(
        self, model_function: ModelFunction, leaves: Leaves, *, create_graph: bool = True
    ) -> Tensor:
        """Distances (K,) in one call of the network, differentiable in the leaves that require a gradient."""
        moments = self.moments(model_function, leaves, create_graph=create_graph)
        with torch.set_grad_enabled(create_graph):
            return self.objective(moments)

    def evaluate(self, model_function: ModelFunction, leaves: Leaves) -> Tensor:
        """Distances (K,) by a forward and one backward pass, in chunks of candidates.

        Raises:
            AttackError: memory does not even suffice for one candidate.
        """
        names = tuple(leaves)

        def compute(values: Sequence[Tensor]) -> Tensors:
            part = dict(zip(names, values, strict=True))
            return (self.distances(model_function, part, create_graph=False),)

        def some(part: dict[str, Tensor]) -> Tensor:
            (distances_K,) = self._run((_key(model_function), names), compute, part)
            return distances_K

        return torch.cat(self._chunked(some, leaves))

    def value_and_gradient(
        self,
        model_function: ModelFunction,
        leaves: Leaves,
        wrt: Iterable[str],
        *,
        beside: Callable[[Leaves], Tensor] | None = None,
        kin: Kin | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Distances (K,) and their gradients with regard to the leaves in `wrt`, in chunks of candidates.

        Args:
            model_function: gives losses (K,) from `leaves`.
            leaves: tensors with K first; they are left as they are.
            wrt: names of floating-point leaves; candidate k's gradient is that of candidate k's distance.
            beside: what else is to be minimized, (K,): a prior, asked once the network has run on the same leaves; like
                the model function it mustn't depend on anything else that changes.
            kin: which candidates of other matchers could go into the same call, where the matcher has a pool.

        Raises:
            AttackError: memory does not even suffice for one candidate.
        """
        chosen = tuple(wrt)
        if self._pool is not None and kin is not None and beside is None:
            return self._pool.answer(self, model_function, leaves, chosen, kin)

        def some(part: dict[str, Tensor]) -> Tensors:
            distances_K, found = self.at_once(model_function, part, chosen, beside=beside)
            return distances_K, *found.values()

        distances_K, *gradients = map(torch.cat, zip(*self._chunked(some, leaves), strict=True))
        return distances_K, dict(zip(chosen, gradients, strict=True))

    def at_once(
        self,
        model_function: ModelFunction,
        leaves: Leaves,
        wrt: Iterable[str],
        *,
        beside: Callable[[Leaves], Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `value_and_gradient`, all candidates in one call."""
        names, chosen = tuple(leaves), tuple(wrt)

        def compute(values: Sequence[Tensor]) -> Tensors:
            own = {
                name: value.detach().requires_grad_(name in chosen)
                for name, value in zip(names, values, strict=True)
            }
            distances_K = self.distances(model_function, own)
            if beside is not None:
                distances_K = distances_K + beside(own)
            gradients = torch.autograd.grad(
                distances_K.sum(), [own[name] for name in chosen], allow_unused=True, materialize_grads=True
            )
            return distances_K.detach(), *gradients

        distances_K, *gradients = self._run(
            (_key(model_function), _key(beside), names, chosen), compute, leaves
        )
        return distances_K, dict(zip(chosen, gradients, strict=True))

    def beside_others(self, target: Target) -> Self:
        """One that compares candidates with a target each: a stack, of this one's and other matchers'."""
        other = copy.copy(self)
        other.target, other._pool = target, None
        other._replayed = None if self._replayed is None else Replayed()
        return other

    def _run(self, function: Hashable, compute: Compute, part: Leaves) -> Tensors:
        """What is computed from a chunk of the leaves, by replay where calls that come again are replayed."""
        values = tuple(part.values())
        return compute(values) if self._replayed is None else self._replayed(function, compute, values)

    def _chunked(self, some: Callable[[dict[str, Tensor]], Answer], leaves: Leaves) -> list[Answer]:
        """`some` of the leaves at a time; running out of memory halves the chunk, and the work goes on."""
        candidates = candidates_of(leaves)
        device = next(iter(leaves.values())).device.type
        if self.chunk is None:
            self.chunk = _FIRST_CHUNK.get(device, _FIRST_CHUNK["cuda"])
        answers: list[Answer] = []
        start = 0
        while start < candidates:
            stop = min(start + self.chunk, candidates)
            try:
                answers.append(some({name: leaf[start:stop] for name, leaf in leaves.items()}))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                if stop - start == 1:
                    raise AttackError(
                        "Memory ran out on a single candidate.",
                        why=str(error).splitlines()[0],
                        fix="Take a smaller model, fewer or shorter sentences, or another device.",
                    ) from None
                self.chunk = (stop - start) // 2
            else:
                self.evaluations += stop - start
                start = stop
                continue
            if device == "cuda":  # outside the except clause, where the traceback still holds the tensors
                torch.cuda.empty_cache()
        return answers


def _key(function: Hashable) -> Hashable:
    """What tells a function from others, and doesn't keep alive what a method belongs to: that may hold the matcher."""
    if not isinstance(function, types.MethodType):
        return function
    try:
        return weakref.WeakMethod(function)
    except TypeError:  # of something with slots
        return function
