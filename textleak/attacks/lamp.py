"""LAMP: Extracting Text from Gradients with Language Model Priors (Balunović et al. 2022, arXiv 2202.08827).

Continuous steps on dummy embeddings alternate with discrete moves of whole tokens, which a language model judges too
(sec. 4):

1. The best of 500 Gaussian starts by gradient distance, then the best of 500 permutations of it.
2. Adam on distance + α_reg · (mean norm of the dummies − mean norm of the vocabulary's embeddings)².
3. Every 75 steps, of 200 orders of each sentence the one of least distance + α_lm · language-model loss.
4. The dummies of least loss (that of 2) are decoded, each to the token of the nearest embedding by cosine.

"Released code" is eth-sri/lamp. Where it and this file differ:
- it has the norm 1.4, BERT-base's mean, for every model; the paper and this file take the attacked model's;
- its prior is a GPT-2 trained on the attacked model's own vocabulary, and reads the special tokens too; here any prior
  reads the decoded text in its own vocabulary, and its loss is likewise a mean over the batch's tokens;
- it keeps the dummies one step after those of least loss; here these themselves;
- it moves padding about with a batch's shorter sentences, and judges each sentence of a batch beside the others' order
  of before; here padding stays, and the language model reads what it would get;
- it compares every tensor; here those whose gradient is only rounding (key biases) are left out, as in all attacks.

Labels and lengths are known to the published attack. Labels that aren't are optimized, as DLG's and TAG's are; so are
those of language modeling, which move with their tokens (our reading, the paper has classification only).

Shapes: K candidates, M orders or starts compared, B sentences, T tokens, E embedding size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from textleak.attacks.base import ATTACKS, Steps
from textleak.attacks.dummies.regularized import Regularized
from textleak.attacks.dummies.telling import STOPS, Teller, in_words
from textleak.attacks.dummies.text import Dummies, known_lengths
from textleak.attacks.dummies.trials import Moves, Starts, Trials
from textleak.attacks.search.problem import TextProblem
from textleak.clients.view import View
from textleak.events import Phase, Recovery
from textleak.matching import TAG, Adam, CosinePerTensor, Objective, StepDecay, minimize
from textleak.models.base import Modality
from textleak.models.prior import LanguagePrior
from textleak.shared.traits import Trait


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Recipe:
    """What the two variants differ in."""

    objective: Objective
    alpha_lm: float
    alpha_reg: float


_RECIPES: Mapping[str, _Recipe] = {
    # Released code, lamp_cos.sh.
    "cos": _Recipe(objective=CosinePerTensor(), alpha_lm=0.2, alpha_reg=1.0),
    # Released code, lamp_l1l2.sh; the L1 distance's weight is 0.01.
    "l1l2": _Recipe(objective=TAG(alpha=0.01), alpha_lm=60.0, alpha_reg=25.0),
}


@ATTACKS.register("lamp")
@dataclasses.dataclass(frozen=True, kw_only=True)
class LAMP:
    """Dummy embeddings, Adam, and moves of tokens that a language model judges with the gradient.

    Attributes:
        variant: the distance: "cos", the mean over tensors of 1 − cosine, or "l1l2", squared L2 plus 0.01 · L1.
        restarts: candidates K, each with starts of its own; the best by its own loss is the answer.
        steps: optimizer steps.
        learning_rate: of Adam, times 0.89 every 50 steps.
        prior: causal language model that judges texts, as --model names one; null for none, and alpha_lm is 0.
        alpha_lm: weight of the language model's loss; null for the variant's.
        alpha_reg: weight of the difference of mean norms; null for the variant's.
        embedding_norm: norm that the dummies are kept near; null for the mean of the model's embeddings.
        starts: Gaussian starts, and then permutations of the best one, that a candidate begins with the best of.
        moves: orders of each sentence tried in a round, the one that it has among them.
        moves_every: steps from one round to the next.
        burn_in: part of the steps before the first round.
        time_limit: seconds after which the best answer so far is returned; None for no limit.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.ONE_POINT, Trait.REPEATABLE})
    when: ClassVar[str] = "you compare with LAMP"
    paper: ClassVar[str] = "Balunović et al. 2022"

    variant: Literal["cos", "l1l2"] = "cos"
    restarts: Annotated[int, Field(ge=1, le=4096)] = 1  # released code: one candidate
    steps: Annotated[int, Field(ge=1)] = 2000  # released code, n_steps
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01  # released code, lr
    prior: str | None = None
    alpha_lm: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    alpha_reg: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    embedding_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    starts: Annotated[int, Field(ge=1)] = 500  # released code, init_candidates
    moves: Annotated[int, Field(ge=1)] = 200  # released code, swap_tokens
    moves_every: Annotated[int, Field(ge=1)] = 75  # released code, swap_every
    burn_in: Annotated[float, Field(ge=0, le=1)] = 0.1  # released code, swap_burnin
    time_limit: Annotated[float, Field(gt=0)] | None = None

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how.

        Raises:
            InputError: lengths that aren't known, a prior that can't be had, or nothing that dummies leave a trace in.
        """
        recipe = self._recipe()
        problem = TextProblem(view=view, objective=recipe.objective)
        known = view.shared.known.labels
        dummies = Dummies(
            model=problem.model,
            lengths=known_lengths(view.shared),
            labels_KB=None if known is None else torch.tensor(known).expand(self.restarts, -1),
        )
        prior = None
        if self.prior is not None:
            yield Phase(name="prior", detail=f"loading {self.prior}")
            prior = LanguagePrior.load(self.prior, problem.model.device)
        trials = Trials(problem=problem, dummies=dummies, matcher=problem.soft_matcher, generator=generator)
        norm = self.embedding_norm or float(problem.table_VE.norm(dim=-1).mean())
        yield Phase(name="initialize", detail=f"the best of {self.starts} starts, and of its permutations")
        starts = Starts(trials=trials, candidates=self.restarts, count=self.starts, norm=norm)
        begin = yield from starts.best()
        moves = Moves(trials=trials, tries=self.moves, prior=prior, weight=recipe.alpha_lm)
        steps = Regularized(trials=trials, norm=norm, weight=recipe.alpha_reg)
        return (yield from self._alternate(steps, moves, begin))

    def _alternate(self, steps: Regularized, moves: Moves, begin: dict[str, Tensor]) -> Steps:
        """Continuous steps and, after some of them, a round of moves."""
        trials, dummies, rounds = moves.trials, moves.trials.dummies, self.rounds()
        detail = f"{in_words(self.restarts, dummies)}, tokens moved in {len(rounds)} rounds"
        yield Phase(name="alternate", detail=detail)
        run = minimize(
            steps.value_and_gradient,
            {**dummies.given(self.restarts), **begin},
            Adam(learning_rate=self.learning_rate, schedule=StepDecay(gamma=0.89, every=50)),
            limits=trials.problem.view.clock.limits(self.steps),
            wrt=dummies.free,
        )
        teller = Teller(stand_ins=dummies, steps=self.steps, phase="alternate")
        here = next(run)
        while True:
            moved, happened = None, ""
            if here.step in rounds and here.ending is None:
                moved, happened = moves.round(here.points)
            progress = teller.told(here, happened)
            if progress is not None:
                yield (last := dataclasses.replace(progress, evaluations=trials.matcher.evaluations))
            if here.ending is not None:
                break
            here = run.send(moved)
        return Recovery(
            sentences=last.sentences,
            stop=STOPS[here.ending],
            final_loss=last.loss,
            steps=last.step,
            evaluations=last.evaluations,
            channel="matching",
            notes=tuple(self._notes(moves, teller.again)),
        )

    def _recipe(self) -> _Recipe:
        """The variant's, with the weights that were given."""
        published = _RECIPES[self.variant]
        return dataclasses.replace(
            published,
            alpha_lm=published.alpha_lm if self.alpha_lm is None else self.alpha_lm,
            alpha_reg=published.alpha_reg if self.alpha_reg is None else self.alpha_reg,
        )

    @staticmethod
    def _notes(moves: Moves, again: int) -> Iterator[str]:
        dummies = moves.trials.dummies
        if moves.prior is None:
            yield "There was no language-model prior (--prior): moves were judged by the gradient alone."
        if dummies.labels_KB is None and dummies.model.num_labels is not None:
            yield "Labels were not known, as they are to the published attack: soft labels were optimized."
        if again:
            yield f"{again} candidates that diverged began anew from their best point."

    def rounds(self) -> list[int]:
        """After which steps, counted from 1, tokens are moved."""
        # Released code counts steps from 0, and moves after those that are 1 more than a multiple.
        return [
            step + 1
            for step in range(self.steps)
            if step >= self.burn_in * self.steps and step % self.moves_every == 1 % self.moves_every
        ]
