"""Several runs on one network that take their steps together: one call of the network serves all of them.

A run is any function. It goes on until its matcher is asked for distances and their gradients, and waits there; when
all runs wait, those that are kin are answered by one call, each candidate compared with its own run's shared gradient.
To read a weight from memory, and torch's and Python's own part in an operation, is then paid once and not once a run.

Shapes: K candidates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from textleak.matching.coroutine import Coroutine, Spent, shared_by
from textleak.matching.factored import (
    RULE_TOLERANCE,
    Leaves,
    ModelFunction,
    candidates_of,
    out_of_memory,
)
from textleak.matching.matcher import Kin, Matcher
from textleak.matching.rounding import near
from textleak.matching.target import Target

T = TypeVar("T")
Answer = tuple[Tensor, dict[str, Tensor]]
"""Distances (K,) and their gradients by leaf."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A matcher's `value_and_gradient` that waits for an answer.

    Attributes:
        matcher: which one's; likewise `model_function`, `leaves` and `wrt`.
        kin: what else may go into the same call.
    """

    matcher: Matcher
    model_function: ModelFunction
    leaves: Leaves
    wrt: tuple[str, ...]
    kin: Kin

    @property
    def candidates(self) -> int:
        """K."""
        return candidates_of(self.leaves)

    def goes_with(self, other: Request) -> bool:
        """Whether one call can answer both."""
        return (
            (self.kin.key, self.wrt, self._fixed_sizes()) == (other.kin.key, other.wrt, other._fixed_sizes())
            and self.matcher.objective == other.matcher.objective
            and self.matcher.target.stacks_with(other.matcher.target)
        )

    def _fixed_sizes(self) -> dict[str, tuple[object, ...]]:
        """Leaves' types, and the sizes that kin have in common."""
        return {
            name: (leaf.dtype, *(n for d, n in enumerate(leaf.shape) if d and d not in self.kin.along(name)))
            for name, leaf in self.leaves.items()
        }

    def alone(self) -> Answer:
        """The answer by a call of its own."""
        return self.matcher.value_and_gradient(self.model_function, self.leaves, self.wrt)


class Pool:
    """Answers runs together that wait for the same kind of thing.

    Args:
        largest: candidates of one call, at most (our choice: products are at full speed long before).
    """

    def __init__(self, largest: int = 64) -> None:
        self.largest = largest
        self._running: Coroutine[Request, Answer, Any] | None = None
        self._asking = threading.local()
        self._made: dict[tuple[int, str], tuple[object, object]] = {}
        self._alone: set[Hashable] = set()  # kin whose answers in one call were found to be others
        self._checked: set[Hashable] = set()
        self._stacks: dict[tuple[int, ...], tuple[Matcher, list[Target], Matcher]] = {}

    def run(self, functions: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Results of functions, as they come.

        Raises:
            BaseException: what one of them raised; the others are stopped where they wait.
        """
        runs = [Coroutine[Request, Answer, T](self._asked_in(function)) for function in functions]
        try:
            for one in runs:
                yield from self._resumed(one)
            while waiting := [one for one in runs if not one.ended]:
                for one, answer in self._answered(waiting):
                    yield from self._resumed(one, answer)
        finally:
            for one in runs:
                one.end()

    @property
    def spent(self) -> Spent:
        """So far of the run that asks, its part of common calls included."""
        assert self._running is not None
        return self._running.so_far

    def once(self, owner: object, name: str, make: Callable[[], T]) -> T:
        """What is made of a thing that runs have in common; made once."""
        if (id(owner), name) not in self._made:
            self._made[id(owner), name] = owner, make()
        made: T = self._made[id(owner), name][1]  # type: ignore[assignment]
        return made

    def answer(
        self, matcher: Matcher, model_function: ModelFunction, leaves: Leaves, wrt: tuple[str, ...], kin: Kin
    ) -> Answer:
        """Called by a matcher: wait for the others, then the answer; at once for who is in no run."""
        request = Request(matcher=matcher, model_function=model_function, leaves=leaves, wrt=wrt, kin=kin)
        ask: Callable[[Request], Answer] | None = getattr(self._asking, "ask", None)
        return request.alone() if ask is None else ask(request)

    def _asked_in(self, function: Callable[[], T]) -> Callable[[Callable[[Request], Answer]], T]:
        def body(ask: Callable[[Request], Answer]) -> T:
            self._asking.ask = ask  # of this thread
            return function()

        return body

    def _resumed(self, one: Coroutine[Request, Answer, T], *answer: Answer) -> Iterator[T]:
        self._running = one
        try:
            one.resume(*answer)
        finally:
            self._running = None
        if one.ended:
            yield one.result

    def _answered(
        self, waiting: Sequence[Coroutine[Request, Answer, T]]
    ) -> Iterator[tuple[Coroutine[Request, Answer, T], Answer]]:
        """All that wait, with their answers, in the same order."""
        left, answers = list(waiting), dict[int, Answer]()
        while left:
            first = _question(left[0])
            group, candidates = [left[0]], first.candidates
            for one in left[1:]:
                request = _question(one)
                if candidates + request.candidates <= self.largest and first.goes_with(request):
                    group.append(one)
                    candidates += request.candidates
            with shared_by(one.spent for one in group):
                found = self._answers([_question(one) for one in group])
            answers.update({id(one): answer for one, answer in zip(group, found, strict=True)})
            left = [one for one in left if one not in group]
        for one in waiting:
            yield one, answers[id(one)]

    def _answers(self, requests: Sequence[Request]) -> list[Answer]:
        """Of kin; by one call where that gives what calls of their own give, which the first time shows."""
        first = requests[0]
        key = (first.kin.key, first.wrt, repr(first.matcher.objective))
        if len(requests) == 1 or key in self._alone:
            return [request.alone() for request in requests]
        try:
            together = self._together(requests)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            self._alone.add(key)
            return [request.alone() for request in requests]
        if key not in self._checked:
            self._checked.add(key)
            apart = [request.alone() for request in requests]
            if not all(map(_same, together, apart)):
                self._alone.add(key)
            return apart
        for request in requests:
            request.matcher.evaluations += request.candidates
        return together

    def _together(self, requests: Sequence[Request]) -> list[Answer]:
        """One call for all."""
        first, sizes = requests[0], [request.candidates for request in requests]
        leaves = {
            name: _joined([request.leaves[name] for request in requests], first.kin.along(name))
            for name in first.leaves
        }
        matcher = self._matcher(requests)
        distances, gradients = matcher.at_once(first.model_function, leaves, first.wrt)
        parts = {name: torch.split(gradient, sizes) for name, gradient in gradients.items()}
        return [
            (distances_K, {name: _cut(parts[name][at], request.leaves[name]) for name in first.wrt})
            for at, (request, distances_K) in enumerate(
                zip(requests, torch.split(distances, sizes), strict=True)
            )
        ]

    def _matcher(self, requests: Sequence[Request]) -> Matcher:
        """One that compares each candidate with its own batch's gradient."""
        targets = [request.matcher.target for request in requests for _ in range(request.candidates)]
        first = requests[0].matcher
        key = (id(first), *map(id, targets))
        if key not in self._stacks:  # the last alone is kept: each is as large as all targets
            self._stacks = {key: (first, targets, first.beside_others(Target.stack(targets)))}
        return self._stacks[key][2]


def _question(one: Coroutine[Request, Answer, T]) -> Request:
    assert one.question is not None
    return one.question


def _joined(parts: Sequence[Tensor], along: Sequence[int]) -> Tensor:
    """One after the other, filled up with zeros to one size along some dimensions."""
    filled = []
    for part in parts:
        missing = [
            max(p.shape[d] for p in parts) - part.shape[d] if d in along else 0 for d in range(part.dim())
        ]
        padding = [amount for m in reversed(missing) for amount in (0, m)]
        filled.append(functional.pad(part, padding) if any(missing) else part)
    return torch.cat(filled)


def _cut(gradient: Tensor, leaf: Tensor) -> Tensor:
    """What belongs to a leaf before it was filled up."""
    return gradient[tuple(slice(size) for size in leaf.shape)]


def _same(one: Answer, other: Answer) -> bool:
    """Whether two answers are equal to rounding."""
    pairs = [(one[0], other[0]), *((one[1][name], other[1][name]) for name in one[1])]
    return all(near(a, b, RULE_TOLERANCE) for a, b in pairs)
