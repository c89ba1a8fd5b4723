"""Search over sequences of symbols by gradient distance: substitutions, swaps, moves, exchanges, a beam.

The engine doesn't know what a symbol is; the caller's score says how far a guess's gradient is from the shared one
(a forward and one backward pass, many guesses at once), and its moves say what may follow a guess.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

# Guesses scored between two steps of a search at most, and symbols in all of them (our choice: seconds on the longest
# batches).
PORTION, _SYMBOLS = 128, 2**13

Row = tuple[int, ...]
Class = float | tuple[float, ...]
"""What a sequence is taken for: a class, or what a loss takes in its place."""


@dataclass(frozen=True, slots=True)
class Guess:
    """One guess of a whole batch.

    Attributes:
        rows: the symbols of each sequence; lengths may differ.
        classes: of each sequence; empty where labels follow from the symbols.
    """

    rows: tuple[Row, ...]
    classes: tuple[Class, ...] = ()

    def with_symbol(self, row: int, position: int, symbol: int) -> Guess:
        """The guess with one symbol changed."""
        old = self.rows[row]
        return self.with_row(row, (*old[:position], symbol, *old[position + 1 :]))

    def with_row(self, row: int, symbols: Iterable[int]) -> Guess:
        """The guess with one sequence changed."""
        return replace(self, rows=(*self.rows[:row], tuple(symbols), *self.rows[row + 1 :]))

    def with_class(self, row: int, class_: Class) -> Guess:
        """The guess with one label changed."""
        return replace(self, classes=(*self.classes[:row], class_, *self.classes[row + 1 :]))


Score = Callable[[Sequence[Guess]], Sequence[float]]
Expansion = Generator[Iterable[Guess], Guess, Guess]
"""What follows a guess: yields guesses to be scored, is sent the best so far each time, and returns it."""


class Scores:
    """Remembers the score of every guess, so that none is computed twice.

    Attributes:
        evaluations: guesses that were really scored.
    """

    def __init__(self, score: Score) -> None:
        self._score = score
        self._known: dict[Guess, float] = {}
        self.evaluations = 0

    def __call__(self, guesses: Iterable[Guess]) -> dict[Guess, float]:
        """Scores of all `guesses`."""
        asked = list(dict.fromkeys(guesses))
        new = [guess for guess in asked if guess not in self._known]
        if new:
            self._known.update(zip(new, self._score(new), strict=True))
            self.evaluations += len(new)
        return {guess: self._known[guess] for guess in asked}


@dataclass(frozen=True, kw_only=True)
class SearchStep:
    """Where a search stands.

    Attributes:
        beam: the best guesses with their scores, best first.
        expanded: guesses whose followers have been looked at.
        solved: whether the best score is at most `solved_at`.
        begun: whether all that the search starts from is scored.
    """

    beam: tuple[tuple[Guess, float], ...]
    expanded: int
    solved: bool
    begun: bool


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Expands the best guesses until one is solved, or all of the beam are expanded.

    Attributes:
        beam: guesses that are worth expanding.
        expansions: guesses expanded at most.
        solved_at: a score at or below it is the answer.
    """

    beam: int = 3
    expansions: int = 20
    solved_at: float = 1e-3

    def run(
        self, scores: Scores, start: Iterable[Guess], expand: Callable[[Guess], Expansion]
    ) -> Iterator[SearchStep]:
        """Search from the best of `start`; a step after each portion of scores, so that it can be left there."""
        known: dict[Guess, float] = {}
        expanded: set[Guess] = set()

        def step(*, begun: bool = True) -> SearchStep:
            beam = best_of(known, self.beam)
            solved = beam[0][1] <= self.solved_at
            return SearchStep(beam=tuple(beam), expanded=len(expanded), solved=solved, begun=begun)

        for portion in _portions(start):
            if known:
                yield step(begun=False)
            known |= scores(portion)
        while known:
            here = step()
            yield here
            waiting = [guess for guess, _ in here.beam if guess not in expanded]
            if here.solved or not waiting or len(expanded) >= self.expansions:
                return
            expanded.add(waiting[0])
            expansion = expand(waiting[0])
            batch = next(expansion, None)
            while batch is not None:
                for portion in _portions(batch):
                    known = dict(best_of({**known, **scores(portion)}, 4 * self.beam))
                    here = step()
                    yield here
                    if here.solved:
                        return
                try:
                    batch = expansion.send(here.beam[0][0])
                except StopIteration:
                    break


def _portions(batch: Iterable[Guess]) -> Iterator[list[Guess]]:
    """Up to `PORTION` guesses each, fewer of many symbols; an empty batch is one portion."""
    guesses = list(batch)
    longest = max((sum(map(len, guess.rows)) for guess in guesses), default=0)
    size = max(1, min(PORTION, _SYMBOLS // max(1, longest)))
    for start in range(0, max(1, len(guesses)), size):
        yield guesses[start : start + size]


def best_of(scored: dict[Guess, float], count: int) -> list[tuple[Guess, float]]:
    """The `count` best guesses, best first; one whose score is no number is as bad as can be, but still a guess."""
    numbered = [(guess, math.inf if math.isnan(score) else score) for guess, score in scored.items()]
    return sorted(numbered, key=lambda pair: pair[1])[:count]


# What may follow a guess. `head` and `tail` symbols at the two ends of a row stay as they are.


def substitutions(guess: Guess, row: int, position: int, symbols: Iterable[int]) -> list[Guess]:
    """Each of `symbols` at one position."""
    now = guess.rows[row][position]
    return [guess.with_symbol(row, position, symbol) for symbol in symbols if symbol != now]


def reorderings(
    guess: Guess, row: int, *, head: int = 0, tail: int = 0, longest_span: int | None = None
) -> list[Guess]:
    """All swaps of two positions, and all moves of a span of up to `longest_span` symbols, within a row."""
    symbols = guess.rows[row]
    first, inner, last = symbols[:head], symbols[head : len(symbols) - tail], symbols[len(symbols) - tail :]
    found: list[Row] = []
    for i, j in itertools.combinations(range(len(inner)), 2):
        swapped = list(inner)
        swapped[i], swapped[j] = swapped[j], swapped[i]
        found.append(tuple(swapped))
    for length in range(1, min(longest_span or len(inner), len(inner)) + 1):
        for i in range(len(inner) - length + 1):
            span, rest = inner[i : i + length], inner[:i] + inner[i + length :]
            found += [rest[:j] + span + rest[j:] for j in range(len(rest) + 1) if j != i]
    return [guess.with_row(row, first + order + last) for order in dict.fromkeys(found) if order != inner]


def insertions(guess: Guess, row: int, symbol: int, *, head: int = 0, tail: int = 0) -> list[Guess]:
    """`symbol` put in at one place and what stood at another dropped, so that all between moves by one."""
    symbols = guess.rows[row]
    first, inner, last = symbols[:head], symbols[head : len(symbols) - tail], symbols[len(symbols) - tail :]
    found = []
    for i in range(len(inner)):
        rest = inner[:i] + inner[i + 1 :]
        found += [
            guess.with_row(row, (*first, *rest[:j], symbol, *rest[j:], *last)) for j in range(len(inner))
        ]
    return found


def exchanges(guess: Guess, first: int, second: int, *, head: int = 0, tail: int = 0) -> list[Guess]:
    """Two rows exchange the symbols of one position, or all from one position on, with and without their ends."""
    a, b = guess.rows[first], guess.rows[second]
    shared = min(len(a), len(b)) - tail
    found = []
    for t in range(head, shared):
        for new_a, new_b in (
            ((*a[:t], b[t], *a[t + 1 :]), (*b[:t], a[t], *b[t + 1 :])),
            (a[:t] + b[t:], b[:t] + a[t:]),
            (a[:t] + b[t:shared] + a[shared:], b[:t] + a[t:shared] + b[shared:]),
        ):
            found.append(guess.with_row(first, new_a).with_row(second, new_b))
    return found


def class_changes(guess: Guess, row: int, classes: Iterable[int]) -> list[Guess]:
    """Each of `classes` as a row's label."""
    return [guess.with_class(row, class_) for class_ in classes if class_ != guess.classes[row]]


def shuffled(count: int, generator: torch.Generator) -> list[int]:
    """0 to count − 1 in random order."""
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
