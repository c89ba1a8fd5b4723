"""Our attack: proposals, continuous matching and a discrete search, until the gradients are equal.

1. Proposals: which tokens could stand where, by the soft span of the first layers' inputs (`exact`); a search
   then finds out by matching which of them stand where, in which sentence and with which labels (`search`).
2. Where that leaves no exact match, or the proposals are switched off or closed: dummy embeddings and soft labels
   of K candidates are optimized, decoded to the nearest tokens and pooled; a search goes on from there with the
   pool and the tokens that the slope of the matching loss proposes. Stuck, it opens places of the best guess again.
The attack stops as soon as the recovery's own gradient equals the shared one, as far as a defense lets through, or
leaves of a noisy one nothing but noise (`settle`).

Shapes: K candidates, B sentences, T tokens, E embedding size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from textleak.attacks.base import ATTACKS, Steps
from textleak.attacks.search.judge import Judge, Verdict
from textleak.attacks.search.opened import Place, optimize
from textleak.attacks.search.problem import TextProblem
from textleak.attacks.search.search import Search
from textleak.attacks.search.shapes import Shape, batch_shapes
from textleak.clients.view import View
from textleak.errors import InputError
from textleak.events import Phase, Progress, Recovery, Sentence, Stop, Tokens, main_channel
from textleak.exact.classes import single_class
from textleak.exact.prefixes import extend_prefixes
from textleak.exact.proposals import Proposals, span_proposals
from textleak.matching import CosinePerTensor, Matcher, Step
from textleak.matching.discrete import Guess, Row, SearchStep
from textleak.models.base import Modality
from textleak.models.decoding import fixed_tokens, nearest_tokens, to_sentence, unreachable_tokens
from textleak.proof.certificate import Certificate, certify
from textleak.shared.traits import Trait

# All constants of the continuous stage are our choice, measured on minilm (README, "What each stage is worth").
# Dummies start at the mask token's embedding plus noise of this part of the table's standard deviation.
_NOISE = 0.3
_LEARNING_RATE = 0.01
# The dummies are decoded at these parts of the steps; what they pass through is as good as where they end.
_SNAPSHOTS = (0.5, 0.75, 1.0)
# Every so many steps all candidates are decoded, for those who watch; the best one is at every step.
_OTHERS_EVERY = 10
# A best distance beyond which half of a guess isn't worth keeping: the dummies begin anew instead.
_FAR = 0.1
# Label combinations that several sentences' restarts begin with.
_LABELS_KEPT = 4
# A cosine distance that float32 rounding alone makes (measured: 1e-8 to 1e-7 at the truth).
_ROUNDING = 1e-6
_PARALLEL = (
    "The answer's own gradient points the same way as the shared one, but isn't equal to it: the client may have "
    "scaled, clipped or rounded it."
)
_ONE = "How many sentences there were isn't known, and doesn't show behind the defense: it was taken for one."
# Part of the batch's tokens whose directions must stand out of the noise for the span's lists to be searched (our
# choice; measured on minilm: at sigma = 3e-4 5 to 7 of 10 do, at 1e-3 2 or 3, where the lists lead astray).
_TRUSTED = 0.5
# When the search is stuck: steps and learning rate for places opened again, noise where half of them are, and tokens
# tried where each is opened alone.
_AGAIN_STEPS, _AGAIN_LEARNING_RATE, _AGAIN_NOISE, _AGAIN_TOKENS = 20, 0.01, 0.15, 24
# A step of the continuous stage costs about as much as this many evaluations (two passes more, measured).
_STEP_COST = 2.4


@ATTACKS.register("match")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Match:
    """Proposals, continuous matching and discrete search; stops once the gradients are equal.

    Attributes:
        restarts: candidates K that the continuous stage optimizes at once.
        steps: optimizer steps of the continuous stage.
        span_proposals: rank tokens by the span of the first layers' inputs, where those gradients were shared.
        proposals: tokens proposed for each position.
        beam: guesses that the search keeps.
        expansions: guesses that one search expands.
        budget: gradient evaluations after which the best answer so far is returned.
        solved_at: a distance at or below which a guess is put to the exact test.
        time_limit: seconds after which the best answer so far is returned; None for no limit.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.ONE_POINT, Trait.REPEATABLE})

    restarts: Annotated[int, Field(ge=1)] = 8
    steps: Annotated[int, Field(ge=1)] = 40
    span_proposals: bool = True
    proposals: Annotated[int, Field(ge=1)] = 32
    beam: Annotated[int, Field(ge=1)] = 3
    expansions: Annotated[int, Field(ge=1)] = 30
    budget: Annotated[int, Field(ge=1)] = 12_000
    solved_at: Annotated[float, Field(gt=0)] = 1e-3
    time_limit: Annotated[float, Field(gt=0)] | None = None

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how."""
        return (yield from matching(view, generator, options=self))


Test = Callable[[tuple[Sentence, ...]], Certificate]
"""Puts an answer to the exact test."""


def matching(
    view: View, generator: torch.Generator, *, options: Match | None = None, test: Test | None = None
) -> Steps:
    """The attack, its answers put to another test than the view's own where one is given."""
    problem = TextProblem(view=view, objective=CosinePerTensor())
    test = test or functools.partial(certify, view)
    return (yield from _Run(options or Match(), problem, generator, test).steps())


class _Run:
    """One run of the attack: what it has found so far."""

    def __init__(self, options: Match, problem: TextProblem, generator: torch.Generator, test: Test) -> None:
        self.options = options
        self.test = test
        self.problem = problem
        self.model = problem.model
        self.generator = generator
        self.search: Search | None = None
        self.before: Search | None = None  # the one among the span's proposals
        self.optimizer_steps = 0
        self.optimizer_evaluations = 0
        self.earlier_evaluations = 0
        self.settled: Stop | None = None  # why the best guess can't be bettered, where it can't
        self.judge = Judge(problem)
        self.verdict: Verdict | None = None
        self.judged_at = -1
        self.refuted: set[Guess] = set()
        self.gradient_distance: float | None = None
        self.stages: dict[str, tuple[Sentence, ...]] = {}
        self.others: tuple[Tokens, ...] = ()
        self.guessed_size = False

    def steps(self) -> Steps:
        """The attack's phases, one after the other."""
        proposals, prefixes = yield from self._propose()
        shapes = batch_shapes(self.model, self.problem.shared, proposals, prefixes)
        size = self.problem.shared.known.size
        self.guessed_size = size is None and proposals is not None and bool(proposals.ends)
        drowned = self._noisy and proposals is not None and proposals.above_noise < _TRUSTED * sum(shapes[0])
        if proposals is not None and not drowned:
            self.search = Search(
                problem=self.problem,
                matcher=self._matcher(),
                proposals=proposals,
                shapes=shapes,
                generator=self.generator,
                width=self.options.beam,
                listed=self.options.proposals,
            )
            yield Phase(name="discrete", detail="which proposed token stands where")
            for some in self._turns(shapes, proposals):
                if not self.search.beam or not self._finished():
                    self.search.shapes = some if proposals.ends else shapes
                    yield from self._search(list(self.search.starts(some, prefixes)))
        if self.search is None or not (self._finished() or self._parallel()):
            best = self.search.beam[0][0].rows if self.search is not None else ()
            yield from self._match(tuple(map(len, best)) or shapes[0])
        return self._recovery()

    @staticmethod
    def _turns(shapes: list[Shape], proposals: Proposals) -> list[list[Shape]]:
        """Shapes that are searched together, group after group.

        Fewest sentences first: a batch in which every sentence stands twice has the same gradient. Lengths of one
        sentence that are only ranked come one by one, as a search that may change them gets lost (measured on minilm).
        """
        if proposals.ends and len(shapes[0]) == 1:
            return [[shape] for shape in shapes]
        return [list(some) for _, some in itertools.groupby(shapes, key=len)]

    @property
    def _noisy(self) -> bool:
        """Whether the shared gradient has noise of known strength in it."""
        return self.problem.shared.noise_sigma > 0

    # Proposals

    def _propose(self) -> Generator[Phase | Progress, None, tuple[Proposals | None, list[Row]]]:
        shared = self.problem.shared
        if not self.options.span_proposals:
            return None, []
        yield Phase(name="proposals", detail="tokens whose layer inputs the gradient spans")
        longest = max(shared.known.lengths) if shared.known.lengths else None
        found = span_proposals(self.model, shared, longest=longest, keep=self.options.proposals)
        if found is None:
            return None, []
        layers, proposals = found
        if self.model.task != "causal-lm":
            return proposals, []
        prefixes = extend_prefixes(
            self.model, shared, layers, proposals, longest=(longest or self.model.max_length) - 1
        )
        return proposals, prefixes

    # Discrete search

    def _matcher(self) -> Matcher:
        """What scores a search among proposals: every tensor, but the whitened ones alone behind noise.

        There the distance over all tensors leads a greedy search astray (measured on minilm at sigma = 1e-4, the
        first six sentences of CoLA, 3,000 evaluations each: a mean match of 0.81 by all tensors, of 0.91 by these).
        """
        return (self.problem.whitened if self._noisy else None) or self.problem.matcher

    def _search(self, start: Sequence[Guess], *, expansions: int | None = None) -> Iterator[Progress]:
        """Search from `start`, and put what looks solved to the exact test."""
        assert self.search is not None
        solved_at = self.options.solved_at
        while True:
            for step in self.search.run(
                start, expansions=expansions or self.options.expansions, solved_at=solved_at
            ):
                yield self._progress("discrete", step.expanded)
                if self._judged(step) or self._spent():
                    break
            if self._finished():
                return
            best, loss = self.search.beam[0]
            if loss > solved_at or best in self.refuted:
                return
            yield self._progress("verify", 0)
            if self.problem.shared.effects:
                if not self.judge.has_judged(best):
                    self._put_to_the_test(best)  # it was found right after another one was
                yield self._progress("verify", 1)
                return
            self._note(self.test(self.search.sentences()))
            yield self._progress("verify", 1)
            if self._finished():
                return
            self.refuted.add(best)
            start, solved_at = [best], loss / 2  # close, but not it: look further from here

    # Continuous matching

    def _match(self, lengths: tuple[int, ...]) -> Iterator[Phase | Progress]:
        """Dummies, search, and opening places again, until it is found or the budget is spent."""
        self.before = before = self.search
        if self.model.task == "masked-lm":
            if before is None:
                raise InputError(
                    "match can't attack masked language modeling without the span's proposals.",
                    why="Which tokens were hidden behind masks doesn't come out of its dummies.",
                    fix="Leave attack.span_proposals on and share a first layer's weights, or choose --attack tag.",
                )
            return
        try:
            matcher = self.problem.whitened or self.problem.soft_matcher
        except InputError:  # dummies leave no trace in what was shared
            if before is None:
                raise
            return
        barred = unreachable_tokens(self.model)
        self.earlier_evaluations = before.evaluations if before else 0
        self.search = search = Search(
            problem=self.problem,
            matcher=matcher,
            proposals=None,
            shapes=[lengths],
            generator=self.generator,
            barred=barred,
            width=self.options.beam,
            listed=self.options.proposals,
            pool={s % self.model.vocab_size for guess, _ in before.beam for row in guess.rows for s in row}
            - barred
            if before
            else set(),
        )
        yield Phase(name="labels", detail="labels whose gradient points the right way")
        classes = self._classes(lengths)
        blank = Guess(search.first(lengths), classes[0])
        everything = [search.inner(blank)] * self.options.restarts
        bases = [
            dataclasses.replace(blank, classes=classes[k % len(classes)]) for k in range(len(everything))
        ]
        yield from self._begin(bases, everything, beside=[g for g, _ in before.beam] if before else [])
        for attempt in itertools.count():
            if self._finished():
                return
            best = search.beam[0][0]
            places = search.inner(best)
            if not places:
                return
            alone = attempt % 2 == 0
            if not alone and search.beam[0][1] > _FAR:
                yield from self._begin(bases, everything, beside=[])
                continue
            yield Phase(name="continuous", detail="places of the best guess opened again")
            opened = (
                [[p] for p in places] if alone else [self._half(places) for _ in range(self.options.restarts)]
            )
            decoded = yield from self._optimize(
                [best] * len(opened),
                opened,
                steps=_AGAIN_STEPS,
                learning_rate=_AGAIN_LEARNING_RATE,
                noise=0.0 if alone else _AGAIN_NOISE,
                tokens=_AGAIN_TOKENS if alone else 1,
            )
            yield Phase(name="discrete", detail="the places opened again, rearranged and replaced")
            yield from self._search([best, *decoded] if alone else decoded, expansions=6)

    def _begin(
        self, bases: list[Guess], opened: list[list[Place]], *, beside: list[Guess]
    ) -> Iterator[Phase | Progress]:
        """Dummies from the start, and a search from what they decode to and the guesses `beside`."""
        if not any(opened):  # the tokenizer fixes every token
            yield from self._search([*bases, *beside])
            return
        yield Phase(name="continuous", detail="dummy embeddings and soft labels matched to the gradient")
        decoded = yield from self._optimize(
            bases, opened, steps=self.options.steps, learning_rate=_LEARNING_RATE, noise=_NOISE
        )
        yield Phase(name="discrete", detail="the tokens that the dummies decoded to, rearranged and replaced")
        yield from self._search([*decoded, *beside])

    def _classes(self, lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The likeliest labels: read off the head's gradient where it tells, else by the distance of a blank guess.

        A wrong label turns a sentence's gradient round, whatever its tokens.
        """
        assert self.search is not None
        shared = self.problem.shared
        if len(lengths) == 1 and self.model.num_labels is not None and shared.known.labels is None:
            try:
                return [(single_class(shared, self.model, self.generator),)]
            except InputError:  # the head wasn't shared
                pass
        combinations = self.search.label_combinations(len(lengths))
        blank = self.search.first(lengths)
        scored = self.search.scores(Guess(blank, classes) for classes in combinations)
        ranked = sorted(scored, key=scored.__getitem__)
        return [guess.classes for guess in ranked[: 1 if len(lengths) == 1 else _LABELS_KEPT]]

    def _half(self, places: list[Place]) -> list[Place]:
        chosen = torch.rand(len(places), generator=self.generator) < 0.5
        return [place for place, take in zip(places, chosen.tolist(), strict=True) if take] or places

    def _optimize(
        self,
        bases: list[Guess],
        opened: list[list[Place]],
        *,
        steps: int,
        learning_rate: float,
        noise: float,
        tokens: int = 1,
    ) -> Generator[Progress, None, list[Guess]]:
        """Optimize the dummies at each candidate's open places, and decode them.

        Args:
            bases: a guess for each candidate, which holds what isn't open.
            opened: each candidate's open places.
            steps: optimizer steps.
            learning_rate: at the start; it falls linearly.
            noise: on the start, in units of the embedding table's standard deviation.
            tokens: decoded tokens tried at each place; more than one only where a candidate has one open place.

        Returns:
            The decoded guesses.
        """
        assert self.search is not None
        snapshots = {max(1, int(part * steps)) for part in _SNAPSHOTS}
        found: list[Guess] = []
        for step in optimize(
            self.problem,
            self.search.matcher,
            bases,
            opened,
            steps=steps,
            learning_rate=learning_rate,
            noise=noise,
            generator=self.generator,
        ):
            self.optimizer_steps += 1
            self.optimizer_evaluations += len(bases)
            if step.step in snapshots:
                found += self._decode(bases, opened, step, tokens=tokens)
            if step.step == 1 or step.step % _OTHERS_EVERY == 0:
                self.others = tuple(
                    self._tokens(self._nearest(k, base, opened[k], step)) for k, base in enumerate(bases)
                )
            yield self._continuous_progress(bases, opened, step, steps)
            if self._spent():
                break
        if not found:  # it ended before the first of them
            found = self._decode(bases, opened, step, tokens=tokens)
        self.stages.setdefault("continuous", self._decoded_sentences(bases, opened, step))
        return found

    def _decode(
        self, bases: list[Guess], opened: list[list[Place]], step: Step, *, tokens: int
    ) -> list[Guess]:
        """Each candidate's guess by nearest neighbor; its two nearest tokens a place go to the pool."""
        search = self.search
        assert search is not None
        found = []
        for k, (base, places) in enumerate(zip(bases, opened, strict=True)):
            rows, columns = zip(*places, strict=True)
            nearest = nearest_tokens(
                step.best["inputs"][k, list(rows), list(columns)],
                self.problem.table_VE,
                candidates=max(2, tokens),
                excluded=search.barred,
            ).ids_NC.tolist()
            search.pool |= {token for ids in nearest for token in ids[:2]}
            if tokens > 1:
                found += [base.with_symbol(*places[0], token) for token in nearest[0][:tokens]]
                continue
            for place, ids in zip(places, nearest, strict=True):
                base = base.with_symbol(*place, ids[0])
            found.append(base)
        return found

    # What it shows

    def _parallel(self) -> bool:
        """Whether the best guess's gradient points exactly the shared one's way, and yet isn't equal to it.

        Behind noise that says nothing: no gradient is equal to the shared one there.
        """
        if self.search is None or self._noisy:
            return False
        return self.search.beam[0][1] <= _ROUNDING and self.settled is None

    def _certain(self) -> bool:
        """Whether the best guess is the answer, by its gradient or by likelihood."""
        return self.settled in (Stop.VERIFIED, Stop.LIKELIEST)

    def _finished(self) -> bool:
        """Whether there is an answer that nothing can better, or no more to spend."""
        return self.settled is not None or self._spent()

    def _note(self, certificate: Certificate) -> None:
        """Keep what the exact test says of the best guess."""
        stop = certificate.stop(Stop.CONVERGED)
        self.settled = stop if stop.settled else None
        self.gradient_distance = certificate.gradient_distance if certificate.verified else None

    def _judged(self, step: SearchStep) -> bool:
        """Behind a defense, where no distance falls to 0: whether the best guess is the answer all the same.

        It is put to the test at the start, and after each expansion that brought a better one.
        """
        assert self.search is not None
        best = self.search.beam[0][0]
        if not self.problem.shared.effects or self.judge.has_judged(best) or step.expanded == self.judged_at:
            return False
        self.judged_at = step.expanded
        return self._put_to_the_test(best)

    def _put_to_the_test(self, guess: Guess) -> bool:
        """Whether a guess, or a likelier one near it, is the answer behind a defense."""
        assert self.search is not None
        self.verdict = self.judge.verdict(guess, self.search.scores)
        while self.verdict.better is not None:
            self.search.put_first(self.verdict.better)
            self.verdict = self.judge.verdict(self.verdict.better, self.search.scores)
        self.settled = None
        if self.verdict.certificate is not None:
            self._note(self.verdict.certificate)
        elif self.verdict.likeliest:
            self.settled = Stop.LIKELIEST
        return self.settled is not None

    def _spent(self) -> bool:
        """Whether the budget or the time is used up."""
        if self.problem.view.clock.over:
            return True
        return self._evaluations() + (_STEP_COST - 1) * self.optimizer_evaluations >= self.options.budget

    def _evaluations(self) -> int:
        scored = self.search.evaluations if self.search is not None else 0
        return self.earlier_evaluations + scored + self.optimizer_evaluations

    def _progress(self, phase: str, step: int) -> Progress:
        assert self.search is not None
        return Progress(
            phase=phase,
            step=step,
            steps=self.options.expansions,
            loss=self.search.beam[0][1],
            losses=tuple(score for _, score in self.search.beam),
            evaluations=self._evaluations(),
            total_steps=self.optimizer_steps,
            sentences=self.search.sentences(verified=self._certain()),
            others=tuple(self._tokens(guess) for guess, _ in self.search.beam),
        )

    def _tokens(self, guess: Guess) -> Tokens:
        """A guess's tokens, a row a sentence."""
        rows = [[symbol % self.model.vocab_size for symbol in row] for row in guess.rows]
        return tuple(tuple(zip(row, self.model.token_texts(row), strict=True)) for row in rows)

    def _continuous_progress(
        self, bases: list[Guess], opened: list[list[Place]], step: Step, steps: int
    ) -> Progress:
        losses = step.best_losses_K.tolist()
        return Progress(
            phase="continuous",
            step=step.step,
            steps=steps,
            loss=min(losses),
            losses=tuple(losses),
            candidate=losses.index(min(losses)),
            evaluations=self._evaluations(),
            total_steps=self.optimizer_steps,
            sentences=self._best_guess() or self._decoded_sentences(bases, opened, step),
            others=self.others,
        )

    def _best_guess(self) -> tuple[Sentence, ...]:
        """The best guess that a search has scored; nothing before the first."""
        scored = [search for search in (self.search, self.before) if search is not None and search.beam]
        return scored[0].sentences() if scored else ()

    def _nearest(self, k: int, base: Guess, places: list[Place], step: Step) -> Guess:
        """What candidate k's dummies decode to."""
        assert self.search is not None
        rows, columns = zip(*places, strict=True)
        inputs = step.best["inputs"][k, list(rows), list(columns)]
        nearest = nearest_tokens(inputs, self.problem.table_VE, candidates=1, excluded=self.search.barred)
        for place, (token,) in zip(places, nearest.ids_NC.tolist(), strict=True):
            base = base.with_symbol(*place, token)
        return base

    def _decoded_sentences(
        self, bases: list[Guess], opened: list[list[Place]], step: Step
    ) -> tuple[Sentence, ...]:
        """What the best candidate's dummies decode to; a token's confidence is its cosine similarity."""
        assert self.search is not None
        k = int(step.best_losses_K.argmin())
        found = []
        for row, symbols in enumerate(bases[k].rows):
            nearest = nearest_tokens(
                step.best["inputs"][k, row, : len(symbols)],
                self.problem.table_VE,
                candidates=4,
                excluded=self.search.barred,
            )
            fixed = fixed_tokens(self.model, len(symbols))
            free = {position for r, position in opened[k] if r == row}
            listed = [
                list(zip(ids, similarities, strict=True))
                for ids, similarities in zip(
                    nearest.ids_NC.tolist(), nearest.similarity_NC.clamp(0, 1).tolist(), strict=True
                )
            ]
            found.append(
                to_sentence(
                    self.model,
                    [
                        listed[t][0][0] if t in free else s % self.model.vocab_size
                        for t, s in enumerate(symbols)
                    ],
                    confidence=[1.0 if t in fixed else listed[t][0][1] for t in range(len(symbols))],
                    candidates=[listed[t][1:] if t in free else [] for t in range(len(symbols))],
                    label=bases[k].classes[row] if bases[k].classes else None,
                )
            )
        return tuple(found)

    def _recovery(self) -> Recovery:
        assert self.search is not None
        if self._noisy and not self._certain():
            self._put_to_the_test(self.search.beam[0][0])
        sentences = self.search.sentences(verified=self._certain())
        timed = self.problem.view.clock.deadline is not None
        spent = (Stop.TIME if timed else Stop.STEPS) if self._spent() else Stop.CONVERGED
        return Recovery(
            sentences=sentences,
            stop=self.settled or spent,
            final_loss=self.search.beam[0][1],
            steps=self.optimizer_steps,
            evaluations=self._evaluations(),
            channel=main_channel(sentences),
            stages=self.stages,
            gradient_distance=self.gradient_distance,
            notes=(
                *((_PARALLEL,) if self._parallel() else ()),
                *((_ONE,) if self.guessed_size else ()),
                *self.judge.notes(self.search.beam[0][0]),
            ),
        )
