"""The continuous half of `match`: dummies in every place, then in places of the best guess that are opened again.

Shapes: K candidates, B sentences, T tokens, E embedding size.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator

import torch

from textleak.attacks.search.decoding import Decoder, filled
from textleak.attacks.search.opened import Opening, Place, optimize
from textleak.attacks.search.run import Run
from textleak.attacks.search.search import Search
from textleak.attacks.search.shapes import Shape
from textleak.errors import InputError
from textleak.events import Phase, Progress
from textleak.exact.classes import single_class
from textleak.matching import Iterate, Matcher
from textleak.matching.discrete import Guess
from textleak.models.decoding import unreachable_tokens

# All constants of the continuous stage are our choice, measured on minilm (README, "What each stage is worth").
# Dummies start at the mask token's embedding plus noise of this part of the table's standard deviation.
_NOISE = 0.3
_LEARNING_RATE = 0.01
# The dummies are decoded at these parts of the steps; what they pass through is as good as where they end.
_SNAPSHOTS = (0.5, 0.75, 1.0)
# A best distance beyond which half of a guess isn't worth keeping: the dummies begin anew instead.
_FAR = 0.1
# Label combinations that several sentences' restarts begin with.
_LABELS_KEPT = 4
# When the search is stuck: steps and learning rate for places opened again, noise where half of them are, tokens
# tried where each is opened alone, and guesses that the search from there expands.
_AGAIN_STEPS, _AGAIN_LEARNING_RATE, _AGAIN_NOISE, _AGAIN_TOKENS, _AGAIN_EXPANSIONS = 20, 0.01, 0.15, 24, 6


def match_lengths(run: Run, lengths: Shape, *, restarts: int, steps: int) -> Iterator[Phase | Progress]:
    """Dummies, search, and opening places again, until it is found or the budget is spent.

    Args:
        run: whose best guess so far, if it has one, the search begins with too.
        lengths: tokens of each sentence.
        restarts: K.
        steps: optimizer steps of the dummies in every place.

    Raises:
        InputError: dummies leave no trace in what was shared, and nothing was found before.
    """
    before = run.search
    matcher = _soft_matcher(run)
    if matcher is None:
        return
    barred = unreachable_tokens(run.problem.model)
    search = run.begin_search(
        matcher, proposals=None, shapes=[lengths], barred=barred, pool=_tokens_of(before) - barred
    )
    stage = _Stage(run, search, restarts)
    yield Phase(name="labels", detail="labels whose gradient points the right way")
    everywhere = stage.everywhere(lengths, steps)
    yield from stage.begun(everywhere, beside=[guess for guess, _ in before.beam] if before else [])
    for attempt in itertools.count():
        best, loss = search.beam[0]
        if run.finished() or not search.inner(best):
            return
        if attempt % 2 == 0:
            yield from stage.each_alone(best)
        elif loss > _FAR:
            yield from stage.begun(everywhere, beside=[])
        else:
            yield from stage.halves(best)


def _soft_matcher(run: Run) -> Matcher | None:
    """What dummies are compared by; None where they can't better what was found before.

    Raises:
        InputError: there is nothing to better either.
    """
    problem = run.problem
    if problem.model.task == "masked-lm":
        if run.search is None:
            raise InputError(
                "match can't attack masked language modeling without the span's proposals.",
                why="Which tokens were hidden behind masks doesn't come out of its dummies.",
                fix="Leave attack.span_proposals on and share a first layer's weights, or choose --attack tag.",
            )
        return None
    try:
        return problem.whitened or problem.soft_matcher
    except InputError:  # dummies leave no trace in what was shared
        if run.search is None:
            raise
        return None


def _tokens_of(search: Search | None) -> frozenset[int]:
    """All tokens of a search's best guesses."""
    if search is None:
        return frozenset()
    V = search.model.vocab_size
    return frozenset(symbol % V for guess, _ in search.beam for row in guess.rows for symbol in row)


class _Stage:
    """Dummies that are optimized and decoded, and the searches from there.

    Args:
        run: pays, tests and tells.
        search: goes on from what is decoded.
        restarts: K.
    """

    def __init__(self, run: Run, search: Search, restarts: int) -> None:
        self.run = run
        self.search = search
        self.restarts = restarts
        self.decoder = Decoder(problem=run.problem, barred=search.barred)

    def everywhere(self, lengths: Shape, steps: int) -> Opening:
        """Every place open, and each candidate with one of the likeliest labels."""
        classes = self._classes(lengths)
        blank = Guess(self.search.first(lengths), classes[0])
        return Opening(
            bases=[
                dataclasses.replace(blank, classes=classes[k % len(classes)]) for k in range(self.restarts)
            ],
            places=[self.search.inner(blank)] * self.restarts,
            steps=steps,
            learning_rate=_LEARNING_RATE,
            noise=_NOISE,
        )

    def _classes(self, lengths: Shape) -> list[tuple[int, ...]]:
        """The likeliest labels: read off the head's gradient where it tells, else by the distance of a blank guess.

        A wrong label turns a sentence's gradient round, whatever its tokens.
        """
        model, shared = self.run.problem.model, self.run.problem.shared
        if len(lengths) == 1 and model.num_labels is not None and shared.known.labels is None:
            try:
                return [(single_class(shared, model, self.run.generator),)]
            except InputError:  # the head wasn't shared
                pass
        combinations = self.search.label_combinations(len(lengths))
        blank = self.search.first(lengths)
        scored = self.search.scores(Guess(blank, classes) for classes in combinations)
        ranked = sorted(scored, key=scored.__getitem__)
        kept = 1 if len(lengths) == 1 else _LABELS_KEPT
        return [classes for classes in combinations if Guess(blank, classes) in ranked[:kept]]

    def begun(self, everywhere: Opening, *, beside: list[Guess]) -> Iterator[Phase | Progress]:
        """Dummies from the start, and a search from what they decode to and the guesses `beside`."""
        if not any(everywhere.places):  # the tokenizer fixes every token
            yield from self.run.searched(self.search, [*everywhere.bases, *beside])
            return
        yield Phase(name="continuous", detail="dummy embeddings and soft labels matched to the gradient")
        decoded = yield from self._decoded(everywhere, tokens=1)
        yield Phase(name="discrete", detail="the tokens that the dummies decoded to, rearranged and replaced")
        yield from self.run.searched(self.search, [*decoded, *beside])

    def each_alone(self, best: Guess) -> Iterator[Phase | Progress]:
        """Each place of the best guess opened alone, and a search from many tokens there."""
        places = [[place] for place in self.search.inner(best)]
        yield from self._again(best, places, noise=0.0, tokens=_AGAIN_TOKENS)

    def halves(self, best: Guess) -> Iterator[Phase | Progress]:
        """For each candidate half of the best guess's places opened, and a search from what they decode to."""
        inner = self.search.inner(best)
        places = [self._half(inner) for _ in range(self.restarts)]
        yield from self._again(best, places, noise=_AGAIN_NOISE, tokens=1)

    def _half(self, places: list[Place]) -> list[Place]:
        chosen = torch.rand(len(places), generator=self.run.generator) < 0.5
        return [place for place, take in zip(places, chosen.tolist(), strict=True) if take] or places

    def _again(
        self, best: Guess, places: list[list[Place]], *, noise: float, tokens: int
    ) -> Iterator[Phase | Progress]:
        yield Phase(name="continuous", detail="places of the best guess opened again")
        opening = Opening(
            bases=[best] * len(places),
            places=places,
            steps=_AGAIN_STEPS,
            learning_rate=_AGAIN_LEARNING_RATE,
            noise=noise,
        )
        decoded = yield from self._decoded(opening, tokens=tokens)
        yield Phase(name="discrete", detail="the places opened again, rearranged and replaced")
        start = [best, *decoded] if tokens > 1 else decoded
        yield from self.run.searched(self.search, start, expansions=_AGAIN_EXPANSIONS)

    def _decoded(self, opening: Opening, *, tokens: int) -> Generator[Progress, None, list[Guess]]:
        """Optimize the dummies, and decode them on the way.

        Args:
            opening: what is optimized.
            tokens: decoded tokens tried at each place; more than one only where a candidate has one open place.
        """
        run, found = self.run, []
        snapshots = {max(1, int(part * opening.steps)) for part in _SNAPSHOTS}
        for here in optimize(run.problem, self.search.matcher, opening, run.generator):
            run.budget.pay_step(len(opening.bases))
            if here.step in snapshots:
                found += self._guesses(opening, here, tokens)
            yield run.teller.continuous(opening, here, self.decoder)
            if run.budget.spent:
                break
        if not found:  # it ended before the first of them
            found = self._guesses(opening, here, tokens)
        run.teller.stages.setdefault("continuous", self.decoder.sentences(opening, here))
        return found

    def _guesses(self, opening: Opening, here: Iterate, tokens: int) -> list[Guess]:
        """Each candidate's guess by nearest neighbor; its two nearest tokens a place go to the pool."""
        found = []
        for k, base in enumerate(opening.bases):
            nearest = self.decoder.nearest(opening, here, k, max(2, tokens))
            self.search.pool |= {token for ids in nearest for token in ids[:2]}
            if tokens > 1:
                (place,) = opening.places[k]
                found += [base.with_symbol(*place, token) for token in nearest[0][:tokens]]
            else:
                found.append(filled(opening, k, nearest))
        return found
