"""The discrete half of `match`: from proposals, or from what dummies decode to, to the guess whose gradient fits.

Shapes: K candidates, B sentences, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch

from textleak.attacks.search.labels import rank_labels
from textleak.attacks.search.opened import Place, pulls
from textleak.attacks.search.problem import TextProblem
from textleak.attacks.search.shapes import Shape
from textleak.events import Sentence
from textleak.exact.proposals import Proposals
from textleak.matching import Matcher
from textleak.matching.discrete import (
    BeamSearch,
    Expansion,
    Guess,
    Row,
    Scores,
    SearchStep,
    class_changes,
    exchanges,
    insertions,
    reorderings,
    shuffled,
    substitutions,
)
from textleak.models.decoding import fixed_tokens, to_sentence

# Random arrangements of the proposals that a search starts from, over all shapes of the batch (our choice).
_STARTS = 64
# Beginnings of one length that are combined (our choice).
_PREFIXES = 8
# Label combinations tried from the start; where there are more, the search changes labels one by one.
_LABEL_COMBINATIONS = 16
# Steps and learning rate that tell where an open place is pulled to, tokens tried there from the pool and from the
# whole vocabulary, and guesses with a token put in whose gap is filled so (our choice; measured on minilm).
_PULL_STEPS, _PULL_LEARNING_RATE = 8, 0.01
_FROM_POOL, _FROM_VOCABULARY = 10, 10
_GAPS = 4


@dataclasses.dataclass(kw_only=True, eq=False)
class Search:
    """The search of one run: what it may change, what it found.

    Attributes:
        problem: scores guesses.
        matcher: which distance scores them.
        proposals: from the span; None when it is switched off or closed.
        shapes: lengths of the sentences, likeliest first.
        generator: for random orders.
        barred: tokens that can't be part of a text.
        width: guesses that the beam keeps.
        listed: tokens tried at a place that only labels show.
        pool: tokens that dummies decoded to.
        beam: the best guesses so far, best first.
    """

    problem: TextProblem
    matcher: Matcher
    proposals: Proposals | None
    shapes: list[Shape]
    generator: torch.Generator
    barred: frozenset[int] = frozenset()
    width: int = 3
    listed: int = 32
    pool: set[int] = dataclasses.field(default_factory=set)
    beam: tuple[tuple[Guess, float], ...] = ()

    def __post_init__(self) -> None:
        """Nothing is scored yet."""
        self.model = self.problem.model
        self.pull_evaluations = 0
        self.scores = Scores(functools.partial(self.problem.score, matcher=self.matcher))
        self.head = len(self.model.prefix_ids)
        self.tail = len(self.model.suffix_ids)

    @property
    def evaluations(self) -> int:
        """Gradient evaluations so far, those for pulls among them."""
        return self.scores.evaluations + self.pull_evaluations

    def run(self, start: Sequence[Guess], *, expansions: int, solved_at: float) -> Iterator[SearchStep]:
        """Search from `start`; the best guesses are in `beam`."""
        search = BeamSearch(beam=self.width, expansions=expansions, solved_at=solved_at)
        expand = self._by_proposals if self.proposals is not None else self._by_pulls
        for step in search.run(self.scores, start, expand):
            merged = dict([*self.beam, *step.beam])
            self.beam = tuple(sorted(merged.items(), key=lambda pair: pair[1])[: self.width])
            yield step

    def put_first(self, guess: Guess) -> None:
        """Let a guess lead the beam, whatever its distance: something better than the distance says so."""
        score = min(self.scores([guess])[guess], self.beam[0][1])
        self.beam = ((guess, score), *(pair for pair in self.beam if pair[0] != guess))[: self.width]

    # Where it starts

    def starts(self, shapes: list[Shape], prefixes: list[Row]) -> Iterator[Guess]:
        """Random arrangements of the surest proposals, over shapes of the batch and label combinations."""
        draws = max(1, _STARTS // len(shapes))
        for shape in shapes:
            arranged = set(itertools.islice(self._from_prefixes(shape, prefixes), draws))
            arranged = arranged or {self.first(shape), *(self._arrange(shape) for _ in range(draws))}
            for rows, classes in itertools.product(sorted(arranged), self.label_combinations(len(shape))):
                yield Guess(rows, classes)

    def label_combinations(self, count: int) -> list[tuple[int, ...]]:
        """Labels of `count` sentences: the known ones, all combinations, or some of too many."""
        classes = self.model.num_labels
        if classes is None:
            return [()]
        if self.problem.shared.known.classes is not None:
            return [self.problem.shared.known.classes]
        if classes**count <= _LABEL_COMBINATIONS:
            return list(itertools.product(range(classes), repeat=count))
        return [
            tuple(torch.randint(classes, (count,), generator=self.generator).tolist())
            for _ in range(_LABEL_COMBINATIONS)
        ]

    def first(self, shape: Shape) -> tuple[Row, ...]:
        """Rows of the surest proposal at each place; of placeholders where there are no proposals."""
        return tuple(tuple(self.symbols_at(t, length)[0] for t in range(length)) for length in shape)

    def _arrange(self, shape: Shape) -> tuple[Row, ...]:
        """Rows of the given lengths with a random arrangement of the proposals."""
        rows = [[self.symbols_at(0, length)[0]] * length for length in shape]
        for position in range(max(shape)):
            alive = [row for row, length in enumerate(shape) if position < length]
            for row in alive:
                options = self.symbols_at(position, shape[row])
                rows[row][position] = options[shuffled(len(options), self.generator)[0]]
            # One token a sentence where there are enough of them.
            free = [row for row in alive if self.head <= position < shape[row] - self.tail]
            options = self.symbols_at(position, max(shape) + self.tail + 1)
            if len(free) > 1 and len(options) >= len(free):
                for row, chosen in zip(free, shuffled(len(options), self.generator), strict=False):
                    rows[row][position] = options[chosen]
        return tuple(tuple(row) for row in rows)

    def _from_prefixes(self, shape: Shape, prefixes: list[Row]) -> Iterator[tuple[Row, ...]]:
        """Rows that begin with the given beginnings, the combinations with the most different tokens first."""
        fitting = [[p for p in prefixes if len(p) == length - 1][:_PREFIXES] for length in shape]
        combinations = itertools.islice(itertools.product(*fitting), _PREFIXES**2)
        for rows in sorted(combinations, key=lambda rows: -len({*itertools.chain(*rows)})):
            yield tuple((*row, *self.symbols_at(len(row), len(row) + 1)) for row in rows)

    def symbols_at(self, position: int, length: int) -> tuple[int, ...]:
        """Symbols that can stand at a position of a sentence of `length`: what is fixed, else the surest."""
        if position < self.head:
            return (self.model.prefix_ids[position],)
        if position >= length - self.tail:
            return (self.model.suffix_ids[position - length + self.tail],)
        shown = self.proposals is not None and not (self._last_is_open and position == length - 1)
        symbols = self._plain(self.proposals.surest_at(position)) if self.proposals and shown else ()
        return symbols or (self.placeholder,)

    @functools.cached_property
    def placeholder(self) -> int:
        """Stands where nothing is known yet: the mask token, else any."""
        mask = self.model.mask_id
        return mask if mask is not None and self.model.task != "masked-lm" else self._any_token

    @functools.cached_property
    def _any_token(self) -> int:
        """A token that text can turn into."""
        return int(self.model.content_ids[0])

    @property
    def _last_is_open(self) -> bool:
        """Whether a sentence's last token is a label only, as in a causal model: no layer's gradient shows it."""
        return self.model.task == "causal-lm" and self.tail == 0

    def _plain(self, tokens: Iterable[int]) -> tuple[int, ...]:
        """Tokens as symbols: no special ones, and a hidden token's symbol for a mask."""
        hidden = self._any_token + self.model.vocab_size
        masks = self.model.task == "masked-lm"
        return tuple(
            hidden if masks and token == self.model.mask_id else token
            for token in tokens
            if token not in self.model.special_ids or (masks and token == self.model.mask_id)
        )

    # What may follow a guess

    def _goes_on(self, guess: Guess, batch: Sequence[Guess], *, lengths: bool = True) -> Expansion:
        """Have what may follow a guess scored; the guess to go on from.

        That is the best of all so far, where the batch has the same sentences' lengths in it (or as many sentences, if
        lengths don't matter to what comes next): the places of one guess mean nothing in another of other lengths.
        Else it's the best of these.
        """
        leader = yield batch
        if _alike(leader, guess, lengths=lengths):
            return leader
        alike = [guess, *(after for after in batch if _alike(after, guess, lengths=lengths))]
        scored = self.scores(alike)
        return min(alike, key=scored.__getitem__)

    def inner(self, guess: Guess) -> list[Place]:
        """The places (row, position) whose token isn't fixed."""
        return [
            (row, position)
            for row, symbols in enumerate(guess.rows)
            for position in range(self.head, len(symbols) - self.tail)
        ]

    def _by_proposals(self, guess: Guess) -> Expansion:
        """Labels, open tokens, every place one after the other, what the sentences exchange, the order."""
        assert self.proposals is not None
        best = yield from self._relabel(guess)
        places = self.inner(best)
        for index in shuffled(len(places), self.generator):
            row, position = places[index]
            symbols = self._plain(self.proposals.surest_at(position))
            best = yield from self._goes_on(best, substitutions(best, row, position, symbols))
        best = yield from self._rearrange(best)
        best = yield [
            after
            for row in range(len(best.rows))
            for after in reorderings(best, row, head=self.head, tail=self.tail, longest_span=3)
        ]
        return best

    def _by_pulls(self, guess: Guess) -> Expansion:
        """Every place opened: the tokens it is pulled to, then the best of each together, then the order."""
        best = yield from self._relabel(guess)
        places = self.inner(guess)
        by_place = self._pulled(guess, places)
        best = yield [after for replaced in by_place for after in replaced]
        # The best replacement of each place, added one after the other, the best first.
        scored = self.scores([after for replaced in by_place for after in replaced])
        winners = [
            (min(replaced, key=scored.__getitem__), place)
            for replaced, place in zip(by_place, places, strict=True)
            if replaced
        ]
        together, batch = guess, []
        for winner, (row, position) in sorted(winners, key=lambda pair: scored[pair[0]]):
            together = together.with_symbol(row, position, winner.rows[row][position])
            batch.append(together)
        best = yield batch
        best = yield from self._rearrange(best)
        rows = range(len(best.rows))
        best = yield [
            after for row in rows for after in reorderings(best, row, head=self.head, tail=self.tail)
        ]
        return (yield from self._fill_gaps(best))

    def _pulled(self, guess: Guess, places: Sequence[Place]) -> list[list[Guess]]:
        """For each place the guesses with a token that it is pulled to, from the pool and from the vocabulary."""
        if not places:
            return []
        cosines = pulls(
            self.problem, self.matcher, guess, places, steps=_PULL_STEPS, learning_rate=_PULL_LEARNING_RATE
        )
        self.pull_evaluations += _PULL_STEPS * len(places)
        cosines[:, sorted(self.barred)] = -torch.inf
        pool = torch.tensor(sorted(self.pool), dtype=torch.long, device=cosines.device)
        found = []
        for (row, position), cosine_V in zip(places, cosines, strict=True):
            chosen = set(cosine_V.topk(_FROM_VOCABULARY).indices.tolist())
            chosen |= set(pool[cosine_V[pool].topk(min(_FROM_POOL, len(pool))).indices].tolist())
            found.append(substitutions(guess, row, position, sorted(chosen)))
        return found

    def _fill_gaps(self, best: Guess) -> Expansion:
        """A token put in at one place and another dropped, so that all between moves by one; then the gap filled."""
        gapped = [
            after
            for row in range(len(best.rows))
            for after in insertions(best, row, self.placeholder, head=self.head, tail=self.tail)
        ]
        best = yield gapped
        scored = self.scores(gapped)
        batch: list[Guess] = []
        for guess in sorted(scored, key=scored.__getitem__)[:_GAPS]:
            gaps = [(r, t) for r, t in self.inner(guess) if guess.rows[r][t] == self.placeholder]
            for replaced in self._pulled(guess, gaps[:1]):
                batch += replaced
        return (yield batch)

    def _relabel(self, guess: Guess) -> Expansion:
        """Other classes, and what only labels show; ends with the best guess so far."""
        best = guess
        if guess.classes and self.problem.shared.known.labels is None:
            for row in range(len(guess.rows)):
                changes = class_changes(best, row, range(self.model.num_labels or 0))
                best = yield from self._goes_on(best, changes)
        return (yield from self._open_labels(best))

    def _open_labels(self, best: Guess) -> Expansion:
        """Tokens that only a label shows: the last of a causal model's sentence, those behind masks."""
        V = self.model.vocab_size
        if self._last_is_open:
            places = [(row, len(symbols) - 1) for row, symbols in enumerate(best.rows)]
            shift, offset = 1, 0
        else:
            places = [
                (row, position)
                for row, symbols in enumerate(best.rows)
                for position, symbol in enumerate(symbols)
                if symbol >= V
            ]
            shift, offset = 0, V
        if not places:
            return best
        keep = min(self.listed, V)
        predictions = [(row, position - shift) for row, position in places]
        ranked = rank_labels(self.problem, best, predictions, keep)
        if ranked:
            # Together first: one wrong label can hide that the others are right.
            together = best
            for (row, position), prediction in zip(places, predictions, strict=True):
                together = together.with_symbol(row, position, ranked[prediction][0] + offset)
            best = yield from self._goes_on(best, [together])
        else:
            slopes_BLC = self.problem.label_slopes(best)
            ranked = {place: slopes_BLC[place].topk(keep).indices.tolist() for place in predictions}
        for (row, position), prediction in zip(places, predictions, strict=True):
            symbols = [token + offset for token in ranked[prediction]]
            best = yield from self._goes_on(best, substitutions(best, row, position, symbols))
        return best

    def _rearrange(self, guess: Guess) -> Expansion:
        """What sentences exchange, and their lengths; ends with the best guess so far."""
        best = guess
        for first, second in itertools.combinations(range(len(guess.rows)), 2):
            changed = exchanges(best, first, second, head=self.head, tail=self.tail)
            best = yield from self._goes_on(best, changed, lengths=False)
        if len(self.shapes) > 1:
            for row in range(len(guess.rows)):
                best = yield from self._goes_on(best, list(self._lengths(best, row)), lengths=False)
        return best

    def _lengths(self, guess: Guess, row: int) -> Iterator[Guess]:
        """Another length for a row: cut off, or filled with the surest proposals."""
        old = guess.rows[row]
        for length in sorted({length for shape in self.shapes for length in shape}):
            if length != len(old):
                kept = old[: min(len(old), length) - self.tail]
                rest = [self.symbols_at(t, length)[0] for t in range(len(kept), length)]
                yield guess.with_row(row, (*kept, *rest))

    # What it found

    def sentences(self, *, verified: bool = False) -> tuple[Sentence, ...]:
        """The best guess as events carry it; a token's confidence is its share among the beam's guesses."""
        V = self.model.vocab_size
        best = self.beam[0][0]
        found = []
        for row, symbols in enumerate(best.rows):
            votes = [
                Counter(
                    g.rows[row][t] % V for g, _ in self.beam if row < len(g.rows) and t < len(g.rows[row])
                )
                for t in range(len(symbols))
            ]
            fixed = fixed_tokens(self.model, len(symbols))
            sure = [verified or t in fixed for t in range(len(symbols))]
            found.append(
                to_sentence(
                    self.model,
                    symbols,
                    confidence=[
                        1.0 if sure[t] else votes[t][symbols[t] % V] / (1 + votes[t].total())
                        for t in range(len(symbols))
                    ],
                    channels=[
                        "" if t in fixed else self._channel(symbols[t], t) for t in range(len(symbols))
                    ],
                    candidates=[self._others(row, t, votes[t]) for t in range(len(symbols))],
                    label=best.classes[row] if best.classes else None,
                    label_posterior=self._label_posterior(row),
                )
            )
        return tuple(found)

    def _channel(self, symbol: int, position: int) -> str:
        """The proposals' channel where they had the token for certain; else only matching can have told."""
        if self.proposals is None or symbol >= self.model.vocab_size:
            return "matching"
        index = min(position, len(self.proposals.inside) - 1)
        inside = self.proposals.tokens[index][: self.proposals.inside[index]]
        return self.proposals.channel if symbol in inside else "matching"

    def _others(self, row: int, position: int, votes: Counter[int]) -> list[tuple[int, float]]:
        own = self.beam[0][0].rows[row][position] % self.model.vocab_size
        others = [(token, count / votes.total()) for token, count in votes.most_common() if token != own]
        if self.proposals is not None and self.head <= position:
            listed = [(token, 0.0) for token in self.proposals.at(position) if token != own]
            others += [pair for pair in listed if pair[0] not in votes]
        return others[:3]

    def _label_posterior(self, row: int) -> tuple[float, ...]:
        if self.model.num_labels is None:
            return ()
        votes = Counter(g.classes[row] for g, _ in self.beam if row < len(g.classes))
        return tuple(votes[c] / votes.total() for c in range(self.model.num_labels))


def _alike(guess: Guess, other: Guess, *, lengths: bool) -> bool:
    """Whether two guesses have as many sentences, of the same lengths if these matter."""
    if lengths:
        return [*map(len, guess.rows)] == [*map(len, other.rows)]
    return len(guess.rows) == len(other.rows)
