"""Sentences of the tokens that a step looked up, by the signs of what moved these tokens' rows (our choice).

The gradient at a token depends on all of its sentence: its neighbors, their order, where it stands. So of all ways to
put a step's tokens into sentences the true one's gradients agree with the rows as few others' do. What the
client dropped, how large its steps were, and what other steps had moved before changes how much, hardly which way. The
rows of the positions say besides which token is likely where: each is the sum of what stood there.

One sentence's agreement doesn't depend on the others but for tokens that stand in both, so it is taken once.

Shapes: K sentences, T positions, E embedding size.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from textleak.assignment import assignment
from textleak.attacks.replaying.moved import MovedRows
from textleak.clients.view import Clock
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.guesses import inputs_and_targets

State = tuple[Row, ...]
"""The sentences of one step."""

# Sentences whose gradient is taken at once, or changes of a step whose sentences' is (our choice).
_AT_ONCE = 32
# How often a step that no change makes better is tried from so many changes beside it (our choice).
_KICKS, _CHANGED = 6, 3
# What one more token has to bring where nothing says that it is there, in units of the logarithm of a likelihood (our
# choice; measured on minilm after a Trainer's four steps: four needless ones brought 24 together).
_MORE = 8.0
# Changes that are an improvement bring more than this (our choice: above rounding in float32).
_LEAST = 1e-3
# The largest correlation that is reckoned with (our choice: of few entries).
_MOST = 0.99


class ByRows:
    """Puts tokens into sentences.

    Attributes:
        evaluations: sentences whose gradient was taken.
    """

    def __init__(self, model: TextModel, moved: MovedRows, clock: Clock, *, longest: int) -> None:
        """Nothing is looked at yet.

        Args:
            model: the public one.
            moved: the rows.
            clock: when to end.
            longest: tokens of a sentence at most.
        """
        self.model, self.moved, self.clock, self.longest = model, moved, clock, longest
        self.evaluations = 0
        self._known: dict[Row, list[list[float]]] = {}
        self._zeros = torch.zeros(model.embedding_size)
        self._there = {
            token: _there(row_E, moved.places_PE, longest) for token, row_E in moved.rows_LE.items()
        }

    def put_together(self, own: Sequence[int], size: int, draws: random.Random) -> Iterator[State]:
        """Sentences of one step's tokens, better ones each time; the last is the best.

        Args:
            own: tokens that stand in this step alone, each somewhere.
            size: sentences.
            draws: orders changes are tried in.
        """
        state = yield from self._climbed(self._begun(own, size, draws), own, self.moved.several, draws)
        for _ in range(_KICKS):
            if self.clock.over:
                return
            kicked = state
            for _ in range(_CHANGED):
                kicked = draws.choice(list(self._changes(kicked, own, ())))
            for other in self._climbed(kicked, own, self.moved.several, draws):
                if self.worth(other, own) > self.worth(state, own) + _LEAST:
                    state = other
                    yield state
        yield from self._climbed(state, own, (*self.moved.several, *own), draws)

    def _climbed(
        self, state: State, own: Sequence[int], more: Sequence[int], draws: random.Random
    ) -> Generator[State, None, State]:
        """Take changes that are better until none is; each better one as it is found."""
        best = self.worth(state, own)
        yield state
        changed = True
        while changed:
            changed = False
            changes = list(self._changes(state, own, more))
            draws.shuffle(changes)
            for start in range(0, len(changes), _AT_ONCE):
                if self.clock.over:
                    break
                tried = changes[start : start + _AT_ONCE]
                self._look([row for other in tried for row in other])
                worths = [self.worth(other, own) for other in tried]
                if max(worths) > best + _LEAST:
                    best, changed = max(worths), True
                    state = tried[worths.index(best)]
                    yield state
                    break
        return state

    def worth(self, state: State, own: Sequence[int]) -> float:
        """How much likelier sentences are than none, by the rows of the tokens that stand in their step alone.

        In units of the likelihood's logarithm, had entries no more in common than a normal distribution's.
        """
        self._look(state)
        counts = Counter(token for row in state for token in row)
        total = sum(each / counts[token] for row in state for token, each in self._worths(row, own))
        needless = sum(map(len, state)) - len(state) * self._around - len(set(own))
        return total - _MORE * needless

    def mean_worth(self, row: Row, own: Sequence[int]) -> float:
        """How much likelier than none one sentence is, in the mean over its tokens of this step."""
        found = [each for _, each in self._worths(row, own)]
        return sum(found) / len(found) if found else 0.0

    def _worths(self, row: Row, own: Sequence[int]) -> list[tuple[int, float]]:
        """The tokens of a sentence that stand in their step alone, and how much likelier than none each one is."""
        mine = set(own)
        return [
            (token, self._likelier(agreement) + self._likelier(self._there[token][t]))
            for t, (token, agreement) in enumerate(zip(row, self.agreement(row, own), strict=True))
            if token in mine
        ]

    def _likelier(self, correlation: float) -> float:
        """By how much a correlation of so many entries is likelier than none; one of the wrong sign counts nothing."""
        return -self.model.embedding_size / 2 * math.log(1 - min(max(correlation, 0.0), _MOST) ** 2)

    def clearness(self, state: State, own: Sequence[int]) -> list[list[float]]:
        """How much likelier a step's sentences are than what any one change puts at a place; 0 where that isn't known.

        For each sentence and place, in units of `worth`, at least 0. Nothing is looked at anew: changes that there was
        no time for leave nothing clear.
        """
        best = self.worth(state, own)
        clear = [[math.inf] * len(row) for row in state]
        for other in self._changes(state, own, (*self.moved.several, *own)):
            if sorted(other) == sorted(state):  # the same sentences in another order
                continue
            if any(row not in self._known for row in other):
                return [[0.0] * len(row) for row in state]
            apart = max(0.0, best - self.worth(other, own))
            for row, changed, here in zip(state, other, clear, strict=True):
                for t, (token, there) in enumerate(itertools.zip_longest(row, changed)):
                    if token != there and t < len(row):
                        here[t] = min(here[t], apart)
        return clear

    def label(self, row: Row, own: Sequence[int]) -> int:
        """The class with which a sentence agrees best."""
        self._look([row])
        mine = set(own)
        sums = [
            sum(agreement for token, agreement in zip(row, each, strict=True) if token in mine)
            for each in self._known[row]
        ]
        return max(range(len(sums)), key=sums.__getitem__)

    def agreement(self, row: Row, own: Sequence[int]) -> list[float]:
        """Of each position of a sentence, with the class that it agrees best with."""
        return self._known[row][self.label(row, own)]

    # Gradients

    def _look(self, rows: Sequence[Row]) -> None:
        new = [row for row in dict.fromkeys(rows) if row not in self._known]
        by_length = itertools.groupby(sorted(new, key=len), key=len)
        for _, alike in by_length:
            together = list(alike)
            for start in range(0, len(together), _AT_ONCE):
                chunk = together[start : start + _AT_ONCE]
                self.evaluations += len(chunk)
                for row, each_CT in zip(chunk, self._agreements(chunk), strict=True):
                    self._known[row] = each_CT.tolist()

    def _agreements(self, rows: Sequence[Row]) -> Tensor:
        """For each sentence, label and position, (K, C, T)."""
        rows_E = self.moved.rows_LE
        seen_KTE = torch.stack(
            [torch.stack([rows_E.get(token, self._zeros) for token in row]) for row in rows]
        ).sign()
        assert self.model.num_labels is not None
        found: list[Tensor] = []
        for label in range(self.model.num_labels):
            if label == 1 and self.model.num_labels == 2:  # of two, one's gradient points against the other's
                found.append(-found[0])
                break
            slope_KTE = self._slope(rows, label)
            slope_KTE = torch.nn.functional.normalize(slope_KTE, dim=-1)
            found.append((slope_KTE * seen_KTE).sum(-1) / self.model.embedding_size**0.5)
        return torch.stack(found, 1)

    def _slope(self, rows: Sequence[Row], label: int) -> Tensor:
        """The loss's gradient at each token's embedding, (K, T, E), float32 on the CPU."""
        model = self.model
        ids_K1T = torch.tensor(rows, device=model.device)[:, None]
        mask_K1T = torch.ones_like(ids_K1T)
        labels_K1 = torch.full_like(ids_K1T[..., 0], label)
        inputs_K1T, targets = inputs_and_targets(model, ids=ids_K1T, mask=mask_K1T, labels=labels_K1)
        embeddings = model.embed(inputs_K1T).detach().requires_grad_(True)
        with torch.enable_grad():
            loss = model.loss(embeddings, mask_K1T, targets).sum()
            (slope,) = torch.autograd.grad(loss, embeddings)
        sloped: Tensor = slope[:, 0].detach().float().cpu()
        return sloped

    # Sentences

    @property
    def _around(self) -> int:
        return len(self.model.prefix_ids) + len(self.model.suffix_ids)

    def _begun(self, own: Sequence[int], size: int, draws: random.Random) -> State:
        """Sentences to begin with: each token at the place whose row its own is most like.

        Gaps are filled with tokens of several steps, and closed where there are none.
        """
        before, after = self.model.prefix_ids, self.model.suffix_ids
        places = [
            t
            for t in range(len(before), max(self.longest - len(after), len(before) + 1))
            for _ in range(size)
        ]
        like = [[self._there[token][t] for t in places] for token in own]
        at = [place for _, place in assignment(like, maximize=True)]
        tokens = sorted(range(len(own)), key=lambda index: (places[at[index]], draws.random()))
        rows: list[list[int]] = [[] for _ in range(size)]
        for index in tokens:
            place = places[at[index]] - len(before)
            most = self.longest - self._around
            off = [(len(row) >= most, abs(len(row) - place), draws.random()) for row in rows]
            row = rows[off.index(min(off))]
            while len(row) < min(place, most - 1) and self.moved.several:
                here = len(before) + len(row)
                row.append(max(self.moved.several, key=lambda token: self._there[token][here]))
            row.append(own[index])
        return tuple((*before, *row, *after) for row in rows)

    def _changes(self, state: State, own: Sequence[int], more: Sequence[int]) -> Iterator[State]:
        """What one change makes of sentences.

        Two tokens or two ends of sentences are exchanged, or one token moved, added, left out or put for another.
        """
        slots = [(b, t) for b, row in enumerate(state) for t in self._inside(row)[:-1]]
        for (b, t), (c, u) in itertools.combinations(slots, 2):
            one, other = state[b][t], state[c][u]
            if one != other:
                yield _put(_put(state, b, t, other), c, u, one)
        for b, c in itertools.combinations(range(len(state)), 2):
            yield from _tails_exchanged(state, b, c, self._inside(min(state[b], state[c], key=len)))
        for b, t in slots:
            without = _left_out(state, b, t)
            yield from (
                _added(without, c, u, state[b][t]) for c, u in self._gaps(without) if (c, u) != (b, t)
            )
        counts = Counter(token for row in state for token in row)
        for b, t in slots:
            token = state[b][t]
            if token not in own or counts[token] > 1:
                yield from (_put(state, b, t, other) for other in more if other != token)
                yield _left_out(state, b, t)
        for c, u in self._gaps(state):
            yield from (_added(state, c, u, token) for token in more)

    def _gaps(self, state: State) -> Iterator[tuple[int, int]]:
        """Where one more token has room."""
        for c, row in enumerate(state):
            if len(row) < self.longest:
                yield from ((c, u) for u in self._inside(row))

    def _inside(self, row: Row) -> range:
        """Places between what the tokenizer adds, that of the end too."""
        return range(len(self.model.prefix_ids), len(row) - len(self.model.suffix_ids) + 1)


def _there(row_E: Tensor, places_PE: Tensor | None, longest: int) -> list[float]:
    """How a token's row is correlated with each position's."""
    if places_PE is None:
        return [0.0] * longest
    found: list[float] = (places_PE @ row_E.sign() / len(row_E) ** 0.5).tolist()
    return found + [0.0] * (longest - len(found))


def _tails_exchanged(state: State, b: int, c: int, cuts: Iterable[int]) -> Iterator[State]:
    """Two sentences with all from one place on in each other's stead."""
    for cut in cuts:
        rows = list(state)
        rows[b], rows[c] = (*state[b][:cut], *state[c][cut:]), (*state[c][:cut], *state[b][cut:])
        yield tuple(rows)


def _put(state: State, b: int, t: int, token: int) -> State:
    row = state[b]
    return (*state[:b], (*row[:t], token, *row[t + 1 :]), *state[b + 1 :])


def _left_out(state: State, b: int, t: int) -> State:
    row = state[b]
    return (*state[:b], (*row[:t], *row[t + 1 :]), *state[b + 1 :])


def _added(state: State, b: int, t: int, token: int) -> State:
    row = state[b]
    return (*state[:b], (*row[:t], token, *row[t:]), *state[b + 1 :])
