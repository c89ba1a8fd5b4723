"""What the events of a run add up to, for every viewer: a terminal, the app, a replay."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from textleak.events import Event, Finished, Phase, Progress, Sentence, Started, Truth
from textleak.scoring import metrics, output_ids
from textleak.view.waterfall import ROWS_KEPT, WaterRow, row_of, thinned

POINTS_KEPT = 400


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseSpan:
    """A phase that began, and how far it got.

    Attributes:
        name: the phase.
        start: seconds after the run's start.
        end: likewise; None while it runs.
        first_step: the step of its first progress, and when (for the speed).
    """

    name: str
    start: float
    end: float | None = None
    first_step: tuple[float, int] | None = None


class Point(NamedTuple):
    """One progress of a run's course.

    Attributes:
        t: seconds after the start.
        step: steps done over all phases.
        evaluations: gradient evaluations so far.
        loss: the best candidate's; None where there is none, or it isn't a number.
        match_rate: the answer's token match rate; None where the truth isn't known.
    """

    t: float
    step: int
    evaluations: int
    loss: float | None
    match_rate: float | None

    @classmethod
    def of(cls, t: float, progress: Progress, rate: float | None) -> Self:
        """The point that a progress adds."""
        loss = progress.loss if progress.loss is not None and math.isfinite(progress.loss) else None
        return cls(t, progress.total_steps, progress.evaluations, loss, rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewState:
    """What the events of a run add up to; `t` is in seconds after its start.

    Attributes:
        settings: as in run.json.
        truth: what was in the batch, where that is known.
        originals: likewise the pictures of an image run.
        labels: their classes.
        phases: those that began, in order.
        progress: the newest, with the newest answer there is.
        points: the course so far: every `stride`-th progress and the newest.
        stride: doubled whenever there are too many points, so that a course of any length stays even.
        seen: how many progress events there were.
        rows: the answers so far, as a waterfall draws them: every `row_stride`-th progress and the newest.
        row_stride: doubled as that of the points is.
        finished: the last event of a run that ended.
        t: when the newest event was.
    """

    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    truth: tuple[Sentence, ...] = ()
    originals: tuple[Any, ...] = ()
    labels: tuple[int, ...] = ()
    phases: tuple[PhaseSpan, ...] = ()
    progress: Progress | None = None
    points: tuple[Point, ...] = ()
    stride: int = 1
    seen: int = 0
    rows: tuple[WaterRow, ...] = ()
    row_stride: int = 1
    finished: Finished | None = None
    t: float = 0.0

    @property
    def losses(self) -> tuple[float, ...]:
        """The losses along the course, where there are any."""
        return tuple(point.loss for point in self.points if point.loss is not None)

    @property
    def rates(self) -> tuple[float, ...]:
        """The token match rates along the course; none where the truth isn't known."""
        return tuple(point.match_rate for point in self.points if point.match_rate is not None)

    def add(self, event: Event, t: float) -> Self:
        """The state after one more event."""
        match event:
            case Started():
                return dataclasses.replace(self, settings=event.settings, t=t)
            case Truth():
                return dataclasses.replace(
                    self, truth=event.sentences, originals=event.image, labels=event.labels, t=t
                )
            case Phase():
                return dataclasses.replace(self, phases=self._begun(event.name, t), t=t)
            case Progress():
                phases = self.phases
                if not phases or (phases[-1].name != event.phase and event.phase):
                    phases = self._begun(event.phase, t)
                if phases[-1].first_step is None:
                    phases = (*phases[:-1], dataclasses.replace(phases[-1], first_step=(t, event.step)))
                event = event.keeping(self.progress)
                point = Point.of(t, event, match_rate(self.truth, event.sentences))
                points, stride = thinned(
                    self.points, point, stride=self.stride, seen=self.seen, most=POINTS_KEPT
                )
                rows, row_stride = self._with_row(t, event)
                return dataclasses.replace(
                    self,
                    phases=phases,
                    progress=event,
                    points=points,
                    stride=stride,
                    seen=self.seen + 1,
                    rows=rows,
                    row_stride=row_stride,
                    t=t,
                )
            case Finished():
                return dataclasses.replace(self, phases=self._ended(t), finished=event, t=t)

    @classmethod
    def of(cls, events: Iterable[tuple[float, Event]]) -> Self:
        """What recorded events add up to, each with its time."""
        state = cls()
        for t, event in events:
            state = state.add(event, t)
        return state

    def _ended(self, t: float) -> tuple[PhaseSpan, ...]:
        if not self.phases or self.phases[-1].end is not None:
            return self.phases
        return (*self.phases[:-1], dataclasses.replace(self.phases[-1], end=t))

    def _begun(self, name: str, t: float) -> tuple[PhaseSpan, ...]:
        return (*self._ended(t), PhaseSpan(name=name, start=t))

    def _with_row(self, t: float, progress: Progress) -> tuple[tuple[WaterRow, ...], int]:
        """The waterfall with one more row, and its stride; pictures have none."""
        if progress.image:
            return (), 1
        row = row_of(self.seen, t, progress)
        return thinned(self.rows, row, stride=self.row_stride, seen=self.seen, most=ROWS_KEPT)

    def assigned(self) -> list[Sentence | None]:
        """For each sentence shown the true one it stands for; None where the truth isn't known."""
        shown = self.progress.sentences if self.progress else ()
        if not self.truth or not shown:
            return [None] * len(shown)
        if len(shown) == len(self.truth) == 1:
            return [self.truth[0]]
        special = {p.id for sentence in self.truth for p in sentence.positions if p.special}
        references = [output_ids(sentence) for sentence in self.truth]
        found: list[Sentence | None] = [None] * len(shown)
        for reference, output in enumerate(
            metrics.assign(references, [output_ids(sentence) for sentence in shown], special)
        ):
            if output is not None:
                found[output] = self.truth[reference]
        return found

    def match_rate(self) -> float | None:
        """The token match rate of the newest answer, 0 to 1; None where the truth isn't known."""
        return match_rate(self.truth, self.progress.sentences if self.progress else ())


def match_rate(truth: Sequence[Sentence], shown: Sequence[Sentence]) -> float | None:
    """The token match rate of an answer, as in a result; None without a truth or an answer."""
    if not truth or not shown:
        return None
    special = {p.id for sentence in (*truth, *shown) for p in sentence.positions if p.special}
    return match_rate_of(
        [output_ids(sentence) for sentence in truth], [output_ids(sentence) for sentence in shown], special
    )


def match_rate_of(
    references: Sequence[metrics.Tokens], outputs: Sequence[metrics.Tokens], special: Collection[int]
) -> float:
    """`metrics.token_match_rate`, without the assignment where there is nothing to assign."""
    if len(references) == len(outputs) == 1:
        return metrics.sentence_match_rate(references[0], outputs[0], special)
    return metrics.token_match_rate(references, outputs, special)


def remaining_seconds(state: ViewState, now: float) -> float | None:
    """How long the running phase takes at most, judged by its speed so far; None where that isn't known."""
    progress, phases = state.progress, state.phases
    if progress is None or not progress.steps or not phases or phases[-1].first_step is None:
        return None
    since, first = phases[-1].first_step
    done = progress.step - first
    if done <= 0 or progress.step > progress.steps or state.t <= since:
        return None
    speed = done / (state.t - since)
    return max(0.0, (progress.steps - progress.step) / speed - (now - state.t))


class Newest:
    """A state that is added up only when it is looked at.

    Events come from an attack's thread many times between two looks. A progress gives way there to the next one
    of its phase, so that taking it in costs the attack next to nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[tuple[float, Event]] = []
        self._state = ViewState()

    def add(self, event: Event, t: float) -> None:
        """Take in one more event."""
        with self._lock:
            before = self._waiting[-1][1] if self._waiting else None
            if isinstance(event, Progress) and isinstance(before, Progress) and before.phase == event.phase:
                event = event.keeping(before)
                self._waiting.pop()
            self._waiting.append((t, event))

    @property
    def state(self) -> ViewState:
        """What the events so far add up to."""
        with self._lock:
            for t, event in self._waiting:
                self._state = self._state.add(event, t)
            self._waiting.clear()
            return self._state
