"""The most that a gradient gives away: every channel that was shared, the cheapest first (our choice).

1. `embedding`: the rows of the embeddings' gradients, where they were shared.
2. `span`: whole sentences from the spans of the first layers' inputs.
3. `match`: where these end, matching of what they left: of the batch without the sentences that are proved already, or
   of all of it where none is (the span is closed by too many tokens, by noise, or by rounding).
4. `replay`: where the client's procedure isn't one plain step that these can rely on, its steps replayed on guesses;
   before `match` where a short type rounded the gradient of several sentences.
It stops as soon as the answer's own gradient equals the shared one. There is nothing to set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from textleak.attacks.base import ATTACKS, Attack, Steps, Totals, knows_layers, knows_loss
from textleak.attacks.embedding import Embedding
from textleak.attacks.match import Match, matching
from textleak.attacks.replay import Replay
from textleak.attacks.span import Span, answer, shown, spanned_sentences
from textleak.clients.view import View
from textleak.errors import InputError
from textleak.events import Followed, Phase, Progress, Recovery, Sentence, Stop, main_channel
from textleak.exact.found import Found
from textleak.models import TextModel
from textleak.models.base import Modality
from textleak.proof.certificate import certify, distance_of, own_gradient
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import SideInformation
from textleak.shared.traits import Trait


@ATTACKS.register("auto")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Auto:
    """Every channel that was shared, the cheapest first, until the gradients are equal.

    Attributes:
        time_limit: seconds after which the best answer so far is returned; None for no limit.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})
    needs: ClassVar[frozenset[Trait]] = frozenset()  # each channel has its own
    any_loss: ClassVar[bool] = True
    first_layers: ClassVar[bool] = True
    when: ClassVar[str] = "you want the most that a gradient gives away"
    paper: ClassVar[str] = "ours"

    time_limit: Annotated[float, Field(gt=0)] | None = None

    def run(self, view: View, *, generator: torch.Generator) -> Steps:
        """Attack; see the module's first lines for how.

        Where matching can't work on what is known, the recovery holds what was found before it, which may be nothing;
        its notes say why.
        """
        return (yield from _Run(view, generator).steps())


class _Run:
    """One run: the answers so far."""

    def __init__(self, view: View, generator: torch.Generator) -> None:
        self.view, self.shared, self.model, self.generator = view, view.shared, view.text_model, generator
        self.answers: list[Recovery] = []
        self.notes: list[str] = []
        self.totals = Totals()

    def steps(self) -> Steps:
        """The channels, one after the other."""
        if _shares_embeddings(self.model, self.shared) and self._can(Embedding):
            recovery = yield from self.totals.followed(Embedding().run(self.view, generator=self.generator))
            self.answers.append(recovery)
            if recovery.stop.settled:
                return recovery
        found = Found()
        if self._can(Span):
            found = yield from self.totals.followed(spanned_sentences(self.view))
            recovery = answer(self.view, found)
            # An answer that is settled says itself what of them stands.
            self.notes += () if recovery.stop.settled else recovery.notes
            self.totals.evaluations += recovery.final_loss is not None  # it was put to the exact test
            self.answers.append(recovery)
            # What only some of is proved is read by nothing else, where no answer can be put to the test.
            if recovery.stop.settled or (found.proved and not self.view.has(Trait.REPEATABLE)):
                return self._last(recovery)
        yield from self._further(found)
        if not self.answers:
            raise InputError(
                f"No channel reads what this client sends ({self.shared.client.spec}).",
                why=" ".join(self.notes),
                fix="What leaks can't be told: that nothing was found here is no sign of safety.",
            )
        best = self._best()
        if self.view.clock.over and not best.stop.settled:
            best = dataclasses.replace(best, stop=Stop.TIME)
        return self._last(best)

    def _further(self, found: Found) -> Generator[Phase | Progress, None, None]:
        """What is left, by matching; or by replaying the client's steps where they make no sum of gradients.

        Several sentences whose gradient a short type rounded are found as those behind a step are, and matched only
        where that doesn't tell them.
        """
        rounded = bool(self.shared.client.effects) and self.shared.known.batch_size != 1
        plain = self.view.has(Trait.ADDITIVE) and not rounded
        for attack in (Match, Replay) if plain else (Replay, Match):
            if self.answers and self.view.clock.over:
                return
            if not self._can(attack):
                continue
            if attack is Match:
                part = self._matched(found)
            else:
                part = self.totals.followed(Replay().run(self.view, generator=self.generator))
            try:
                self.answers.append((yield from part))
            except InputError as error:  # it has nothing to go by: what was found before is the answer
                self.notes.append(" ".join(str(error).splitlines()))
                if not plain:
                    continue
                return
            if not (rounded and attack is Replay) or self.answers[-1].stop.settled or self.view.clock.over:
                return

    def _can(self, attack: type[Attack]) -> bool:
        """Whether a channel's needs are met; a note says what is missing."""
        if not knows_layers(attack, self.view):
            return False
        if not knows_loss(attack, self.view):
            self.notes.append(
                f"{attack.name} was left out: it doesn't know the head's loss ({self.model.task})."
            )
            return False
        missing = [trait for trait in Trait if trait in attack.needs and not self.view.has(trait)]
        if missing:
            self.notes.append(f"{attack.name} was left out: it {missing[0].missing}")
        return not missing

    # Answers

    def _best(self) -> Recovery:
        """The answer that can't be bettered, else the whole one nearest to the gradient, or with the surest tokens."""
        settled = (recovery for recovery in self.answers if recovery.stop.settled)
        return next(settled, None) or max(self.answers, key=self._worth)

    def _worth(self, recovery: Recovery) -> tuple[float, float]:
        distance = distance_of(self.view, recovery.sentences)
        certain = sum(p.confidence for s in recovery.sentences for p in s.positions if p.id >= 0)
        return (-float("inf") if distance is None else -distance, certain)

    def _last(self, recovery: Recovery) -> Recovery:
        """The recovery as the whole run's."""
        return dataclasses.replace(
            recovery,
            steps=self.totals.steps,
            evaluations=self.totals.evaluations,
            channel=main_channel(recovery.sentences, recovery.channel),
            notes=tuple(dict.fromkeys((*self.notes, *recovery.notes))),
        )

    # Matching

    def _matched(self, found: Found) -> Generator[Phase | Progress, None, Recovery]:
        """Matching of what is left; its answer joined with what was proved before."""
        whole = found.rows and found.classes and not found.proved
        proved = shown(self.model, self.shared, found) if whole else ()
        left = self._without(proved, found.batch_size) if proved else self.shared
        view = dataclasses.replace(self.view, shared=left)
        # What is left has more rounding in it than a client's gradient: an answer is put to the test as a whole.
        steps = matching(view, self.generator, test=lambda rest: certify(self.view, (*proved, *rest)))
        recovery = yield from self._joined(self.totals.followed(steps), proved)
        if proved:
            distance = distance_of(self.view, recovery.sentences)
            recovery = dataclasses.replace(recovery, final_loss=distance)
        return recovery

    def _joined(
        self, steps: Generator[Phase | Progress, None, Recovery], proved: tuple[Sentence, ...]
    ) -> Generator[Phase | Progress, None, Recovery]:
        """A channel's events with the sentences that are proved already before its own."""
        followed = Followed(steps)
        for event in followed:
            if isinstance(event, Progress) and proved:
                event = dataclasses.replace(event, sentences=(*proved, *event.sentences))
            yield event
        recovery = followed.result
        return dataclasses.replace(recovery, sentences=(*proved, *recovery.sentences))

    def _without(self, proved: tuple[Sentence, ...], size: int | None) -> SharedGradient:
        """The gradient of the batch without some of its `size` sentences."""
        left = (size or 0) - len(proved)
        if size is not None and left <= 0:
            raise InputError(
                "All sentences were found, but their own gradient isn't the shared one: the client's loss, or how it "
                "trains, is another one than was told, or its batch holds equal sentences several times "
                "(--know batch-size=N)."
            )
        if size is None or self.shared.defenses:
            raise InputError("How many sentences are missing doesn't show, so matching has nothing to go by.")
        own = own_gradient(self.view.double(), proved)
        gradients = {
            name: ((gradient.double() * size - own[name].to(gradient.device) * len(proved)) / left).to(
                gradient.dtype
            )
            if name in own
            else gradient
            for name, gradient in self.shared.gradients.items()
        }
        return dataclasses.replace(self.shared, gradients=gradients, known=SideInformation(batch_size=left))


def _shares_embeddings(model: TextModel, shared: SharedGradient) -> bool:
    return any(name in model.embedding_names for name in shared.gradients)
