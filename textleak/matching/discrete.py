"""Search over sequences of symbols by gradient distance: substitutions, swaps, moves, exchanges, a beam.

The engine doesn't know what a symbol is; the caller's score says how far a guess's gradient is from the shared one
(a forward and one backward pass, many guesses at once), and its moves say what may follow a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

Row = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Guess:
    """One guess of a whole batch.

    Attributes:
        rows: the symbols of each sequence; lengths may differ.
        classes: the label of each sequence, empty where labels follow from the symbols.
    """

    rows: tuple[Row, ...]
    classes: tuple[int, ...] = ()

    def with_symbol(self, row: int, position: int, symbol: int) -> Guess:
        """This guess with one symbol changed."""
        old = self.rows[row]
        return self.with_row(row, (*old[:position], symbol, *old[position + 1 :]))

    def with_row(self, row: int, symbols: Iterable[int]) -> Guess:
        """This guess with one sequence changed."""
        return replace(self, rows=(*self.rows[:row], tuple(symbols), *self.rows[row + 1 :]))

    def with_class(self, row: int, class_: int) -> Guess:
        """This guess with one label changed."""
        return replace(self, classes=(*self.classes[:row], class_, *self.classes[row + 1 :]))


Score = Callable[[Sequence[Guess]], Sequence[float]]
Move = Callable[[Guess], Iterable[Guess]]
Moves = Callable[[Guess], Iterable[Move]]
"""The moves of one sweep, in order, given the best guess as the sweep begins."""


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
        sweep: sweeps begun, from 1.
        evaluations: guesses scored since the search began.
        solved: whether the best score is at most `solved_at`.
    """

    beam: tuple[tuple[Guess, float], ...]
    sweep: int
    evaluations: int
    solved: bool


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """Sweeps of moves over a beam of guesses until one is solved or a sweep improves nothing.

    Attributes:
        beam: guesses kept.
        sweeps: sweeps at most.
        solved_at: a score at or below it is the answer.
        least_gain: a sweep that improves the best score by a smaller part of it ends the search.
    """

    beam: int = 3
    sweeps: int = 20
    solved_at: float = 1e-5
    least_gain: float = 1e-4

    def run(self, scores: Scores, start: Iterable[Guess], moves: Moves) -> Iterator[SearchStep]:
        """Search from the best of `start`; a step after each move."""
        before = scores.evaluations
        beam = best_of(scores(start), self.beam)
        if not beam:
            return

        def step(sweep: int) -> SearchStep:
            return SearchStep(
                beam=tuple(beam),
                sweep=sweep,
                evaluations=scores.evaluations - before,
                solved=beam[0][1] <= self.solved_at,
            )

        yield step(0)
        for sweep in range(1, self.sweeps + 1):
            at_start = beam[0][1]
            for move in moves(beam[0][0]):
                if beam[0][1] <= self.solved_at:
                    return
                following = [after for guess, _ in beam for after in move(guess)]
                if not following:
                    continue
                beam = best_of({**dict(beam), **scores(following)}, self.beam)
                yield step(sweep)
            if beam[0][1] > at_start - self.least_gain * abs(at_start):
                return


def best_of(scored: dict[Guess, float], count: int) -> list[tuple[Guess, float]]:
    """The `count` best guesses, best first; a score that isn't finite never counts as good."""
    finite = [(g, s) for g, s in scored.items() if s == s]
    return sorted(finite, key=lambda pair: pair[1])[:count]


# Moves. `head` and `tail` symbols at the two ends of a row stay as they are.


def substitutions(row: int, position: int, symbols: Sequence[int]) -> Move:
    """Each of `symbols` at one position."""

    def move(guess: Guess) -> Iterator[Guess]:
        if position < len(guess.rows[row]):
            for symbol in symbols:
                if symbol != guess.rows[row][position]:
                    yield guess.with_symbol(row, position, symbol)

    return move


def reorderings(row: int, *, head: int = 0, tail: int = 0, longest_span: int = 1) -> Move:
    """All swaps of two positions, and all moves of a span of up to `longest_span` symbols, within a row."""

    def move(guess: Guess) -> Iterator[Guess]:
        symbols = guess.rows[row]
        end = len(symbols) - tail
        for i in range(head, end):
            for j in range(i + 1, end):
                swapped = list(symbols)
                swapped[i], swapped[j] = swapped[j], swapped[i]
                yield guess.with_row(row, swapped)
        for length in range(1, longest_span + 1):
            for i in range(head, end - length + 1):
                span, rest = symbols[i : i + length], symbols[:i] + symbols[i + length :]
                for j in range(head, end - length + 1):
                    if j != i:
                        yield guess.with_row(row, rest[:j] + span + rest[j:])

    return move


def exchanges(first: int, second: int, *, head: int = 0, tail: int = 0) -> Move:
    """Two rows exchange the symbols of one position, or all from one position on (with their lengths)."""

    def move(guess: Guess) -> Iterator[Guess]:
        a, b = guess.rows[first], guess.rows[second]
        for t in range(head, min(len(a), len(b)) - tail):
            yield guess.with_symbol(first, t, b[t]).with_symbol(second, t, a[t])
            yield guess.with_row(first, a[:t] + b[t:]).with_row(second, b[:t] + a[t:])
            # The same, each row keeping its own length.
            shared = min(len(a), len(b)) - tail
            yield guess.with_row(first, a[:t] + b[t:shared] + a[shared:]).with_row(
                second, b[:t] + a[t:shared] + b[shared:]
            )

    return move


def class_changes(row: int, classes: Sequence[int]) -> Move:
    """Each of `classes` as a row's label."""

    def move(guess: Guess) -> Iterator[Guess]:
        for class_ in classes:
            if class_ != guess.classes[row]:
                yield guess.with_class(row, class_)

    return move


def shuffled(count: int, generator: torch.Generator) -> list[int]:
    """0 to count − 1 in random order."""
    order: list[int] = torch.randperm(count, generator=generator).tolist()
    return order
