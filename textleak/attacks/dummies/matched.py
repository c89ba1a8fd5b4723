"""What the published continuous attacks share: dummies of a batch and soft labels, optimized, then decoded.

K candidates start from N(0, 1), each is optimized on its own, and the one whose gradient comes nearest to the
shared one is decoded: pictures as they are, every embedding to its nearest token. What the tokenizer itself puts
around a sentence is public: those positions hold its embeddings from the start (as in LAMP's re-run of DLG and TAG).

Labels are optimized together with the dummies unless they are given: over the classes for classification,
over the vocabulary at every position for language modeling. Two readings of our own, as the papers have none:
- causal: the last token is an input to no prediction, so it is read from the soft label of the last one;
- masked: which positions were hidden is optimized too, as their share of the loss; a position whose embedding
  ends nearest to the mask token was one, and its token is read from its soft label.

Shapes: K candidates, B sentences or pictures, C color channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from textleak.attacks.dummies.problem import DummyProblem
from textleak.attacks.dummies.telling import STOPS, Teller, in_words
from textleak.events import Phase, Progress, Recovery
from textleak.matching import Iterate, Optimizer, minimize, minimize_in_turns


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Matched:
    """Where matching led.

    Attributes:
        recovery: the answer, which is the candidate with the lowest loss, decoded.
        losses_K: each candidate's lowest.
        pixels_KBCHW: each candidate's pictures there, as the network reads them; None of sentences.
        labels_KB: the classes that were held fixed; None where soft labels were optimized.
    """

    recovery: Recovery
    losses_K: Tensor
    pixels_KBCHW: Tensor | None = None
    labels_KB: Tensor | None = None

    def nearest(self, count: int) -> Matched:
        """So many candidates, the lowest loss first; the answer stays."""
        return self.only(self.losses_K.argsort()[:count])

    def only(self, chosen_K: Tensor) -> Matched:
        """Some of the candidates, by their numbers; the answer stays."""
        return dataclasses.replace(
            self,
            losses_K=self.losses_K[chosen_K],
            pixels_KBCHW=None if self.pixels_KBCHW is None else self.pixels_KBCHW[chosen_K],
            labels_KB=None if self.labels_KB is None else self.labels_KB[chosen_K.to(self.labels_KB.device)],
        )


def match_dummies(
    problem: DummyProblem,
    optimizer: Optimizer,
    *,
    steps: int,
    generator: torch.Generator,
    phase: str = "continuous",
) -> Generator[Phase | Progress, None, Matched]:
    """Optimize dummies until the steps are used up, and decode the best candidate.

    Args:
        problem: the dummies, and what they are compared by.
        optimizer: hyper-parameters of what minimizes the distance.
        steps: evaluations of each candidate, at most.
        generator: draws where the candidates start.
        phase: name of the phase in events.
    """
    stand_ins = problem.stand_ins
    yield Phase(name=phase, detail=in_words(problem.candidates, stand_ins))
    teller, last = Teller(stand_ins=stand_ins, steps=steps, phase=phase), None
    for here in _minimized(problem, optimizer, steps, generator):
        progress = teller.told(here)
        if progress is not None:
            yield (last := progress)
    assert last is not None
    assert here.ending is not None
    again = teller.again
    recovery = Recovery(
        **{"sentences": (), **stand_ins.shown(here.best, last.candidate, coarse=False)},
        stop=STOPS[here.ending],
        final_loss=last.loss,
        steps=last.step,
        evaluations=last.evaluations,
        channel="matching",
        stages={"continuous": last.sentences} if last.sentences else {},
        notes=(f"{again} candidates that diverged or were stuck began anew.",) if again else (),
    )
    return Matched(
        recovery=recovery,
        losses_K=here.best_losses_K,
        pixels_KBCHW=stand_ins.pixels(here.best),
        labels_KB=stand_ins.labels_KB,
    )


def _minimized(
    problem: DummyProblem, optimizer: Optimizer, steps: int, generator: torch.Generator
) -> Iterator[Iterate]:
    """All dummies at once, or in turns where the problem says so."""
    stand_ins = problem.stand_ins
    leaves = stand_ins.start(problem.candidates, generator)
    limits = problem.clock.limits(steps, tolerance=stand_ins.tolerance)
    if stand_ins.turns is not None:
        return minimize_in_turns(
            problem.value_and_gradient, leaves, optimizer, limits=limits, turns=stand_ins.turns
        )

    def drawn(_: int) -> dict[str, Tensor]:
        return {name: leaf[0] for name, leaf in stand_ins.draw(1, generator).items()}

    return minimize(
        problem.value_and_gradient,
        leaves,
        optimizer,
        limits=limits,
        wrt=stand_ins.free,
        reinitialize=drawn,
        project=stand_ins.project,
    )
