"""Our attack: proposals, continuous matching and a discrete search, until the gradients are equal.

1. Proposals: which tokens could stand where, by the soft span of the first layers' inputs (`exact`); a search
   then finds out by matching which of them stand where, in which sentence and with which labels (`proposing`).
2. Where that leaves no exact match, or the proposals are switched off or closed: dummy embeddings and soft labels
   of K candidates are optimized, decoded to the nearest tokens and pooled; a search goes on from there with the
   pool and the tokens that dummies are pulled to. Stuck, it opens places of the best guess again (`reopening`).
The attack stops as soon as the recovery's own gradient equals the shared one, as far as a defense lets through, or
leaves of a noisy one nothing but noise (`answer`).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from textleak.attacks.base import ATTACKS, Steps
from textleak.attacks.search.answer import Test
from textleak.attacks.search.budget import Budget
from textleak.attacks.search.problem import TextProblem
from textleak.attacks.search.proposing import Proposed, propose, search_among
from textleak.attacks.search.reopening import match_lengths
from textleak.attacks.search.run import Run, SearchSettings
from textleak.attacks.search.shapes import batch_shapes
from textleak.clients.view import View
from textleak.events import Progress, Recovery, Stop
from textleak.matching import CosinePerTensor
from textleak.models.base import Modality
from textleak.proof.certificate import certify
from textleak.shared.traits import Trait

_ONE = "How many sentences there were isn't known, and doesn't show behind the defense: it was taken for one."


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
    when: ClassVar[str] = "you watch optimizing, or set its options"
    paper: ClassVar[str] = "ours"

    restarts: Annotated[int, Field(ge=1, le=4096)] = 8
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


def matching(
    view: View, generator: torch.Generator, *, options: Match | None = None, test: Test | None = None
) -> Steps:
    """The attack, its answers put to another test than the view's own where one is given."""
    options = options or Match()
    problem = TextProblem(view=view, objective=CosinePerTensor())
    run = Run(
        problem=problem,
        settings=SearchSettings(
            width=options.beam,
            listed=options.proposals,
            expansions=options.expansions,
            solved_at=options.solved_at,
        ),
        budget=Budget(limit=options.budget, clock=view.clock),
        generator=generator,
        test=test or functools.partial(certify, view),
    )
    proposed = Proposed()
    if options.span_proposals:
        proposed = yield from propose(problem, keep=options.proposals)
        if proposed.proposals is None and view.shared.known.lengths is None and view.clock.over:
            return Recovery.from_progress(Progress(phase="proposals", step=0), Stop.TIME)
    shapes = batch_shapes(problem.model, view.shared, proposed.proposals, proposed.prefixes)
    noisy = view.shared.noise_sigma > 0
    trusted = proposed.trusted(shapes[0], noisy=noisy)
    if trusted is not None:
        yield from search_among(run, trusted, proposed.prefixes, shapes)
    if run.search is None or not (run.finished() or run.answer.parallel(run.search)):
        lengths = shapes[0] if run.search is None else tuple(map(len, run.search.beam[0][0].rows))
        yield from match_lengths(run, lengths, restarts=options.restarts, steps=options.steps)
    search = run.search
    assert search is not None
    if noisy and not run.answer.certain:
        run.answer.judge(search, search.beam[0][0])
    guessed = view.shared.known.size is None and proposed.guesses_lengths
    return run.teller.recovery(search, notes=(_ONE,) if guessed else ())
