"""What viewers are told of dummies while they are optimized."""

from __future__ import annotations

import dataclasses

from textleak.attacks.dummies.problem import StandIns
from textleak.events import Progress, Stop, Tokens
from textleak.matching import Ending, Iterate
from textleak.words import count_of

# Steps from one progress event to the next (our choice).
_EVERY = 5
# Steps from one decoding of all candidates, for those who watch, to the next.
_OTHERS_EVERY = 50

STOPS = {
    Ending.CONVERGED: Stop.CONVERGED,
    Ending.STEPS: Stop.STEPS,
    Ending.TIME: Stop.TIME,
    Ending.TOLERANCE: Stop.MATCHED,
}


def in_words(candidates: int, stand_ins: StandIns) -> str:
    """What is optimized, for a person."""
    return f"{count_of(candidates, 'dummy batch')}, {', '.join(stand_ins.free)} optimized"


@dataclasses.dataclass(kw_only=True, eq=False)
class Teller:
    """Tells of one run.

    Attributes:
        stand_ins: the dummies.
        steps: steps that the run may take.
        phase: its name in events.
        again: how many candidates began anew so far.
    """

    stand_ins: StandIns
    steps: int
    phase: str
    again: int = 0
    _others: tuple[Tokens, ...] = ()

    def told(self, here: Iterate, happened: str = "") -> Progress | None:
        """What is told of a step; None of most, but always of the last and of one in which something happened.

        Args:
            here: the step.
            happened: what else it brought, for a person.
        """
        self.again += len(here.restarted)
        if here.step == 1 or here.step % _OTHERS_EVERY == 0:
            self._others = self.stand_ins.others(here.best)
        if here.step == 1 or here.step % _EVERY == 0 or here.ending is not None or happened:
            return self._progress(here, happened)
        return None

    def _progress(self, here: Iterate, happened: str) -> Progress:
        best = int(here.best_losses_K.argmin())
        shows = here.ending is not None or self.stand_ins.shows(here.step)
        again = ", ".join(str(k) for k in here.restarted)
        return Progress(
            phase=self.phase,
            step=here.step,
            steps=self.steps,
            loss=float(here.best_losses_K[best]),
            losses=tuple(here.losses_K.tolist()),
            candidate=best,
            evaluations=here.evaluations,
            total_steps=here.step,
            detail=f"candidate {again} diverged or was stuck and began anew" if again else happened,
            others=self._others,
            **(self.stand_ins.shown(here.best, best, coarse=True) if shows else {}),
        )
