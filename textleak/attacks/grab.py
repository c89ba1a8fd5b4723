"""GRAB: gradient inversion with hybrid optimization (Feng et al. 2024, arXiv 2507.21198).

Made for clients that train as in practice, with dropout on and the embeddings frozen: continuous optimization of dummy
embeddings and of the dropout's masks at once alternates with a beam search for the order of the tokens that this found.

1. The best of 2,000 Gaussian starts by gradient distance, then the best of 2,000 permutations of it.
2. A round: 2,000 steps of AdamW on distance + α_reg · (mean norm of the dummies − mean norm of the vocabulary's
   embeddings)², as LAMP has it, every mask a variable; then each embedding is taken for the nearest token, and these
   tokens, with what was dropped of them, are put in the order of least distance by a beam search.
3. Five rounds, each from the order that the one before found. The answer is the nearest of all rounds' tokens.

Where the client's defense set entries to 0 (`prune`), the same entries of the dummies' gradients are left out.

What we read of the method is its abstract and its constants; our reading where these don't say:
- a mask is any number from 0 to 1, times 1 / (1 − rate), and begins at 1 − rate, the network without dropout;
- each call of dropout has its mask: after the embeddings, of attention, after each sublayer, before the head;
- a mask's rows belong to the tokens at their places, and move with them;
- distance and regularizer are those of LAMP's cosine variant, and no language model is read;
- the beam search goes through the places from the left, and tries each of the tokens further right there.

Labels and lengths are known to the published attack; labels that aren't are optimized, as in LAMP.

Shapes: K candidates, B sentences, T tokens, E embedding size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from textleak.attacks.base import ATTACKS, Steps
from textleak.attacks.dummies.dropped import DroppedDummies, dropped_by
from textleak.attacks.dummies.orders import reordered
from textleak.attacks.dummies.regularized import Regularized
from textleak.attacks.dummies.sequences import Sequencer
from textleak.attacks.dummies.telling import Teller
from textleak.attacks.dummies.text import known_lengths
from textleak.attacks.dummies.trials import Starts, Trials
from textleak.attacks.search.problem import TextProblem
from textleak.clients.view import View
from textleak.events import Followed, Phase, Progress, Recovery, Sentence, Stop
from textleak.matching import Adam, CosinePerTensor, Iterate, Leaves, StepDecay, minimize
from textleak.models.base import Modality
from textleak.shared.traits import Trait
from textleak.words import count_of


@ATTACKS.register("grab")
@dataclasses.dataclass(frozen=True, kw_only=True)
class GRAB:
    """Dummy embeddings and dropout masks, AdamW, and a beam search for the order of the tokens found.

    Attributes:
        masks: whether the masks of the client's dropout are optimized too; false matches as if it dropped nothing.
        restarts: candidates K, each with starts of its own; the nearest tokens of all are the answer.
        rounds: of continuous steps and a beam search.
        steps: optimizer steps a round.
        learning_rate: of AdamW, times 0.89 every 50 steps of a round.
        weight_decay: of AdamW.
        alpha_reg: weight of the difference of mean norms.
        starts: Gaussian starts, and then permutations of the best one, that a candidate begins with the best of.
        beams: orders that go on at each place of the beam search.
        sweeps: times that it goes through all places, at most.
        time_limit: seconds after which the best answer so far is returned; None for no limit.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})
    needs: ClassVar[frozenset[Trait]] = frozenset({Trait.ONE_POINT})
    when: ClassVar[str] = "you compare with GRAB, dropout on"
    paper: ClassVar[str] = "Feng et al. 2024"

    masks: bool = True
    restarts: Annotated[int, Field(ge=1, le=4096)] = 1
    rounds: Annotated[int, Field(ge=1)] = 5  # paper
    steps: Annotated[int, Field(ge=1)] = 2000  # paper
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01  # paper
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01  # our reading: torch's AdamW's
    alpha_reg: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0  # our reading: LAMP's for the cosine
    starts: Annotated[int, Field(ge=1)] = 2000  # paper, of starts and of permutations
    beams: Annotated[int, Field(ge=1)] = 4  # paper
    sweeps: Annotated[int, Field(ge=1)] = 5  # paper
    time_limit: Annotated[float, Field(gt=0)] | None = None

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how.

        Raises:
            InputError: lengths that aren't known, dropout that no mask can be made of, or nothing that dummies leave a
                trace in.
        """
        problem = TextProblem(view=view, objective=CosinePerTensor())
        known, lengths = view.shared.known.labels, known_lengths(view.shared)
        dummies = DroppedDummies(
            model=problem.model,
            lengths=lengths,
            labels_KB=None if known is None else torch.tensor(known).expand(self.restarts, -1),
            calls=dropped_by(view, lengths) if self.masks else (),
        )
        trials = Trials(problem=problem, dummies=dummies, matcher=problem.soft_matcher, generator=generator)
        norm = float(problem.table_VE.norm(dim=-1).mean())
        yield Phase(name="initialize", detail=f"the best of {self.starts} starts, and of its permutations")
        begin = yield from Starts(
            trials=trials, candidates=self.restarts, count=self.starts, norm=norm
        ).best()
        return (yield from _Rounds(self, trials, dummies, norm).run(begin))


class _Rounds:
    """Continuous steps and a beam search, in turn; what came of them so far."""

    def __init__(self, attack: GRAB, trials: Trials, dummies: DroppedDummies, norm: float) -> None:
        self.attack, self.trials, self.dummies = attack, trials, dummies
        self.objective = Regularized(trials=trials, norm=norm, weight=attack.alpha_reg)
        self.sequencer = Sequencer(trials=trials, beams=attack.beams, sweeps=attack.sweeps)
        self.clock = trials.problem.view.clock
        self.taken = self.again = 0
        self.distance = float("inf")
        self.sentences: tuple[Sentence, ...] = ()

    def run(self, begin: dict[str, Tensor]) -> Steps:
        """All rounds from where they begin."""
        stages, stop = {}, Stop.STEPS
        for number in range(1, self.attack.rounds + 1):
            yield Phase(name="continuous", detail=self._in_words(number))
            here, last = yield from self._continuous(begin, number)
            stages["continuous"] = last.sentences
            if self.clock.over:
                stop = Stop.TIME
                break
            yield Phase(name="order", detail=f"round {number} of {self.attack.rounds}")
            begin = yield from self._ordered(here.best)
        if self.distance == float("inf"):
            assert last.loss is not None
            self.distance, self.sentences = last.loss, last.sentences
        return Recovery(
            sentences=self.sentences,
            stop=stop,
            final_loss=self.distance,
            steps=self.taken,
            evaluations=self.trials.matcher.evaluations,
            channel="matching",
            stages=stages,
            notes=tuple(self._notes()),
        )

    def _continuous(
        self, begin: dict[str, Tensor], number: int
    ) -> Generator[Progress, None, tuple[Iterate, Progress]]:
        """One round's steps: where they ended, and what was told of it."""
        attack, dummies = self.attack, self.dummies
        optimizer = Adam(
            learning_rate=attack.learning_rate,
            weight_decay=attack.weight_decay,
            schedule=StepDecay(gamma=0.89, every=50),  # paper
        )
        teller = Teller(stand_ins=dummies, steps=attack.steps, phase="continuous")
        for here in minimize(
            self.objective.value_and_gradient,
            {**dummies.given(attack.restarts), **begin},
            optimizer,
            limits=self.clock.limits(attack.steps),
            wrt=dummies.free,
            project=dummies.within,
        ):
            progress = teller.told(here, f"round {number}" if here.step == 1 else "")
            if progress is not None:
                yield (last := self._counted(progress, self.taken + here.step))
        self.taken += here.step
        self.again += teller.again
        return here, last

    def _ordered(self, points: Leaves) -> Generator[Progress, None, dict[str, Tensor]]:
        """Every candidate as the tokens it stands for, in the best order found: where the next round begins."""
        dummies, found, step = self.dummies, [], 0
        for k in range(self.attack.restarts):
            tokens = dummies.rounded({name: leaf[k : k + 1] for name, leaf in points.items()})
            search = Followed(self.sequencer.best(tokens))
            for step, distance in enumerate(search, 1):
                yield self._counted(
                    Progress(phase="order", step=step, loss=distance, candidate=k), self.taken
                )
            orders, distance = search.result
            found.append(reordered(dummies, tokens, [orders]))
            if distance < self.distance:
                self.distance, self.sentences = distance, dummies.decode(found[-1], 0)
        told = Progress(phase="order", step=step, loss=self.distance, sentences=self.sentences)
        yield self._counted(told, self.taken)
        return {name: torch.cat([free[name] for free in found]) for name in dummies.free}

    def _counted(self, progress: Progress, steps: int) -> Progress:
        """The same with the steps and evaluations of all rounds."""
        evaluations = self.trials.matcher.evaluations
        return dataclasses.replace(progress, total_steps=steps, evaluations=evaluations)

    def _in_words(self, number: int) -> str:
        dummies = self.dummies
        named = [name for name in dummies.free if name not in dummies.masks]
        if dummies.masks:
            named.append(count_of(len(dummies.masks), "dropout mask"))
        batches = count_of(self.attack.restarts, "dummy batch")
        return f"round {number} of {self.attack.rounds}: {batches}, {', '.join(named)} optimized"

    def _notes(self) -> Iterator[str]:
        if self.attack.masks and not self.dummies.masks:
            yield "The client is known to drop nothing: there were no masks to optimize."
        if self.dummies.labels_KB is None and self.dummies.model.num_labels is not None:
            yield "Labels were not known, as they are to the published attack: soft labels were optimized."
        if self.again:
            yield f"{self.again} candidates that diverged began anew from their best point."
