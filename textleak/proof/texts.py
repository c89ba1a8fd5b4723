"""Sentences as an answer: nothing but the very text is equal, and the texts most like it must be clearly farther."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from torch import Tensor

from textleak.clients.view import AnyModel, View
from textleak.events import Label, Sentence
from textleak.matching.discrete import Guess
from textleak.models import TextModel
from textleak.models.gradient import plainly_apart
from textleak.models.guesses import examples_of
from textleak.models.own_labels import nearest_head, solved_labels
from textleak.models.probes.layers import local_layers
from textleak.models.probes.reach import sees_ahead
from textleak.numerics import exact
from textleak.proof.answers import FARTHER, ROUGHLY, Answer, Comparison
from textleak.proof.distances import Gradient, apart, distance_to, norm_of, off_direction, relative
from textleak.proof.endings import ending_distances
from textleak.proof.labels import label_distances
from textleak.proof.rivals import Parts, alike, distances, further, lines_of, moved
from textleak.proof.spans import LayerSpan, first_layers, leaves_room
from textleak.shared.effects import Clipped
from textleak.shared.traits import Trait

# From here on rounding can be as far as a wrong token (measured on minilm and bert-tiny in bfloat16: 4e-3 to 3e-2, and
# 5e-3 to 4e-2). So there the same computation is repeated, which tells where its result is so many times nearer than
# rounding: exactly equal with the same kernels, 2e-4 with another number of threads, 2e-3 and more with any wrong token
# or order.
_COARSE, _REPEATED = 1e-3, 10.0
# Rivals whose whole gradient is formed at most, those that seem nearest: in general, and where nothing less than the
# whole gradient tells how near they are (our choice: each takes as long as the certificate itself).
_FORMED, _FORMED_ANYWAY = 32, 4
# Tensors that most rivals are told apart by where labels are fitted: a head's own (our choice).
_FEW = 2
# Rivals named (our choice).
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Text(Answer):
    """Sentences."""

    others: ClassVar[str] = "Other texts"

    sentences: tuple[Sentence, ...]

    def complete(self, model: AnyModel) -> bool:
        """Whether every position is filled, and every label that is the head's own."""
        return self._filled and not self.unsaid(model)

    def unsaid(self, model: AnyModel) -> str | None:
        """Labels that are the head's own and don't show."""
        own = isinstance(model, TextModel) and model.own_loss is not None
        if not own or not self._filled or all(sentence.label is not None for sentence in self.sentences):
            return None
        return "The labels stay open, so the answer has no gradient of its own that could be compared."

    def assumed(self, model: AnyModel) -> str | None:
        """Classes that weren't found."""
        classes = isinstance(model, TextModel) and model.num_labels is not None
        if not classes or all(sentence.label is not None for sentence in self.sentences):
            return None
        return (
            "The labels weren't found, and with class 0 in their place its own gradient isn't the shared one."
        )

    @property
    def _filled(self) -> bool:
        rows = [sentence.positions for sentence in self.sentences]
        return bool(rows) and all(row and all(p.id >= 0 for p in row) for row in rows)

    def own(self, view: View) -> Gradient:
        """Their gradient."""
        return _own(view, self._guess(view.text_model))

    def near(self, compared: Comparison) -> tuple[str, ...]:
        """Some of the texts that fit as well, by what they have in this one's place."""
        model = compared.exactly.text_model
        if _may_go_on(compared.view):
            return ("each of them going on after its last token that has a label",)
        guess = self._guess(model)
        if _may_be_fewer(compared.view, guess):
            return (
                "each of them fewer times, beside sentences too short to predict a token, which leave no trace",
            )
        return _Rivals(compared, guess).near()

    def _guess(self, model: TextModel) -> Guess:
        """The answer as symbols, every position filled."""
        V = model.vocab_size
        return Guess(
            rows=tuple(tuple(p.id + V * p.masked for p in s.positions) for s in self.sentences),
            classes=self._classes(model),
        )

    def _classes(self, model: TextModel) -> tuple[Label, ...]:
        if model.num_labels is None and model.own_loss is None:
            return ()
        return tuple(s.label or 0 for s in self.sentences)


class _Rivals:
    """The texts most like an answer, and which of them fit as well.

    Args:
        compared: the answer's gradient beside the shared one.
        guess: the answer.
    """

    def __init__(self, compared: Comparison, guess: Guess) -> None:
        self.compared, self.guess, self.own = compared, guess, compared.own
        self.exact, self.rough = compared.exactly, compared.roughly
        self.model, self.shared = compared.view.text_model, compared.view.shared
        self._made: dict[str, Tensor] = {}

    def near(self) -> tuple[str, ...]:
        """Those within the bar that repeating the client's computation doesn't tell from the answer, in words."""
        if self.model.own_loss is not None:
            left = self._unlike_any_labels()
        elif self._whole_only:
            left = self._nearest()
        else:
            fine = self.shared.model.dtype == "float32"
            margins = [(self.rough, ROUGHLY)] if fine else []
            left = self._within(self.compared.bar, [*margins, (self.exact, 1.0)])
        near = self._near(left, self.compared.bar, self.exact)
        if not near or self._repeats():
            return ()
        return tuple(_named(self.model, self.guess, rival) for rival in near)

    def _repeats(self) -> bool:
        """Whether the answer's gradient in the client's own coarse arithmetic is the shared one, and no rival's is."""
        rounding = self.compared.rounding
        if rounding < _COARSE or self.model.dtype != self.rough.model.dtype:
            return False
        repeated = distance_to(self.shared, self.compared.again)
        near = _REPEATED * repeated <= rounding
        return near and not self._near(self._nearest(), FARTHER * repeated, self.rough)

    @property
    def _whole_only(self) -> bool:
        """Whether single sentences at a few tensors tell no bound: their parts don't just add up, or were scaled."""
        scaled = any(effect.lost_scale in ("all", "layer") for effect in self.shared.effects)
        return (
            (scaled and not self._scaled)
            or not self.compared.view.client.adds_up
            or not self.model.language.apart
        )

    @functools.cached_property
    def _scaled(self) -> bool:
        """Whether the gradient was scaled, and nothing else was done to it: its directions are the batch's own."""
        effects = self.shared.seen_effects
        return bool(effects) and all(
            isinstance(effect, Clipped) and not effect.before_mean for effect in effects
        )

    @property
    def _changed(self) -> bool:
        """Whether more was done to the gradient than to scale it."""
        return bool(self.shared.seen_effects) and not self._scaled

    @functools.cached_property
    def _norm(self) -> float:
        """Of the shared gradient, as distances from it are taken: where it was scaled, as it was sent."""
        return norm_of(self.shared.gradients) if self._scaled else self.compared.norm

    @functools.cached_property
    def _rivals(self) -> list[Guess]:
        known = self.shared.known.labels is not None
        guess = self.guess if self.model.own_loss is None else Guess(self.guess.rows)
        found = [*alike(self.model, guess, classes=not known), *further(self.model, guess)]
        mine = sorted(lines_of(self.guess))  # the same sentences in another order are the same batch
        return [rival for rival in dict.fromkeys(found) if sorted(lines_of(rival)) != mine]

    def _within(self, bar: float, margins: Sequence[tuple[View, float]]) -> list[Guess]:
        """The rivals that a few tensors don't show to be beyond the bar, those that seem nearest first.

        Args:
            bar: relative distance.
            margins: views that compute these tensors one after the other, and what each one's rounding has the bar
                multiplied by.
        """
        left = [rival for rival in self.compared.in_time(self._rivals) if self._row_left(rival) <= bar]
        left = self._spanned(left, bar)
        left = self._ending(left, bar, *margins[0])
        for view, margin in margins:
            left = self._labeled(left, bar, view, margin)
        # So few that the finest alone takes no longer.
        for view, margin in margins if len(left) > _FORMED else margins[-1:]:
            if not left:
                break
            parts = Parts(view.text_model, self.own, self.guess)
            left = self._moved(parts, left, margin * bar)
            in_order = self._in_order(parts, left, self._bound)
            left = [rival for least, rival in in_order if not least > margin * bar]
        if left:
            left = self._moved(Parts(self.exact.text_model, self.own, self.guess, most=None), left, bar)
        return left[:_FORMED]

    def _moved(self, parts: Parts, rivals: list[Guess], bar: float) -> list[Guess]:
        """The rivals that aren't beyond a bar by how far they are from the answer at some tensors."""
        if not rivals or not parts.names or self.shared.seen_effects:
            return rivals
        nearer = self._bound({name: self.own[name] for name in parts.names})
        found = zip(moved(parts, self.guess, rivals), rivals, strict=True)
        timed = self.compared.in_time(found)
        return [rival for far, rival in timed if not relative(far, self._norm) - nearer > bar]

    def _bound(self, own: Gradient) -> float:
        """How far a gradient of a few tensors is from these of the shared one, relative to all of that."""
        self.compared.go_on()
        if not self.shared.seen_effects:
            return relative(plainly_apart({name: self._seen(name) for name in own}, own)[0], self._norm)
        some = {name: self.shared.gradients[name] for name in own}
        if self._scaled:
            as_one = all(effect.lost_scale == "all" for effect in self.shared.seen_effects)
            return relative(off_direction(some, own, as_one=as_one), self._norm)
        return relative(apart(dataclasses.replace(self.shared, gradients=some), own)[0], self._norm)

    def _seen(self, name: str) -> Tensor:
        """A shared tensor in float64, made so once for all rivals."""
        if name not in self._made:
            self._made[name] = exact(self.shared.gradients[name])
        return self._made[name]

    def _ending(self, rivals: list[Guess], bar: float, view: View, margin: float) -> list[Guess]:
        """The rivals that another last token doesn't show to be beyond the bar; as for `_within`."""
        bounds = ending_distances(view.text_model, self.guess, rivals, self.own, self._bound)
        return [rival for rival in rivals if not bounds.get(rival, 0.0) > margin * bar]

    def _labeled(self, rivals: list[Guess], bar: float, view: View, margin: float) -> list[Guess]:
        """The rivals that other classes don't show to be beyond the bar; as for `_within`."""
        model, known = view.text_model, view.known
        bounds = label_distances(model, self.guess, rivals, self.own, self._bound, known=known)
        return [rival for rival in rivals if not bounds.get(rival, 0.0) > margin * bar]

    def _row_left(self, rival: Guess) -> float:
        """The relative norm of a shared embedding row that the rival's gradient has nothing in: its token isn't there.

        0 where no such row was shared, or the head reads the same table.
        """
        gone = {symbol for row in self.guess.rows for symbol in row} - {s for row in rival.rows for s in row}
        rows = (self._rows.get(symbol, 0.0) for symbol in gone)
        return relative(max(rows, default=0.0), self._norm)

    def _spanned(self, rivals: list[Guess], bar: float) -> list[Guess]:
        """The rivals that what the first layers read doesn't show to be beyond the bar."""
        view, shared = self.compared.view, self.shared
        # What the layers read must be the same for every batch, and show in the gradient as it is; a masked token's
        # input isn't the symbol that a rival has there.
        plain = view.has(Trait.IN_SPAN) and view.has(Trait.ONE_POINT) and not self._changed
        if not plain or self.model.task == "masked-lm":
            return rivals
        model, gradients = self.exact.text_model, shared.gradients
        local, spans, most = local_layers(self.model), [], bar * self._norm
        for layers in first_layers(self.model, gradients):
            if not rivals:
                break
            if not leaves_room(model, gradients, layers, local, self.guess):
                continue
            span = LayerSpan.of(
                model, gradients, layers, local, answer=self.guess, rivals=rivals, go_on=self.compared.go_on
            )
            spans.append(span)
            rivals = span.within(rivals, most)
        timed = self.compared.in_time(rivals)
        return [rival for rival in timed if not any(span.least(rival) > most for span in spans)]

    @functools.cached_property
    def _rows(self) -> dict[int, float]:
        """Norms of the shared embedding rows by token, where only the batch's own tokens have any."""
        used = {symbol for row in self.guess.rows for symbol in row}
        table = self.exact.text_model.word_embedding.weight
        name = next((name for name in self.own if self.exact.text_model.parameters[name] is table), None)
        if name is None or self._changed:
            return {}
        touched = set(self.own[name].any(1).nonzero().flatten().tolist())
        seen_VE = self.shared.gradients[name]
        return {i: float(exact(seen_VE[i]).norm()) for i in touched} if touched <= used else {}

    def _unlike_any_labels(self) -> list[Guess]:
        """The rivals that some labels bring within the bar, as far as a few tensors tell, with the labels that do.

        The labels of a loss of the head's own are fitted, so those of a rival are too.
        """
        model, known = self.exact.text_model, self.shared.known.labels
        known = known if known is not None and len(known) == 1 else None
        bar = math.inf if self.shared.seen_effects else self.compared.bar * self.compared.norm
        names = nearest_head(model, self.shared.gradients)
        found: list[tuple[float, Guess]] = []
        for rows in dict.fromkeys(rival.rows for rival in self.compared.in_time(self._rivals)):
            for some in (names[:_FEW], names):
                solved = solved_labels(model, self.shared.gradients, rows, some)
                if solved.off > bar:
                    break
            else:
                labels = known or solved.labels
                if labels is not None:
                    found.append((solved.off, Guess(rows, labels)))
        found.sort(key=lambda pair: pair[0])
        return [rival for _, rival in found][:_FORMED]

    def _nearest(self) -> list[Guess]:
        """The rivals whose gradients differ least from the answer's at a few tensors."""
        if self.model.own_loss is not None:
            return self._unlike_any_labels()[:_FORMED_ANYWAY]
        model = self.exact.text_model
        if (
            len(model.language.prompt) > 1
        ):  # which one is a sentence's own doesn't show of it alone: about as near
            model = model.spoken_with(dataclasses.replace(model.language, prompt=()))
        parts = Parts(model, self.own, self.guess)
        mine = {name: self.own[name] for name in parts.names}
        order = self._in_order(parts, self._rivals, lambda own: plainly_apart(mine, own)[0])
        return [rival for _, rival in order][:_FORMED_ANYWAY]

    def _in_order(
        self, parts: Parts, rivals: list[Guess], distance: Callable[[Gradient], float]
    ) -> list[tuple[float, Guess]]:
        """Rivals with their distances at the tensors of `parts`, the nearest first."""
        if not parts.names:
            return [(0.0, rival) for rival in rivals]

        def timed(own: Gradient) -> float:
            self.compared.go_on()
            return distance(own)

        found = (0.0 if math.isnan(d) else d for d in distances(parts, self.guess, rivals, self.own, timed))
        return sorted(zip(found, rivals, strict=True), key=lambda pair: pair[0])

    def _near(self, rivals: Iterable[Guess], bar: float, view: View) -> list[Guess]:
        """The rivals whose whole gradient is within the bar, a few at most."""

        def fits(rival: Guess) -> bool:
            self.compared.go_on()
            return not distance_to(self.shared, _own(view, rival)) > bar

        return list(itertools.islice(filter(fits, rivals), _NAMED))


def _may_go_on(view: View) -> bool:
    """Whether what comes after the last labeled token leaves no trace, and nobody told how long the texts are."""
    model = view.text_model
    by_token = model.own_loss is not None and not model.own_loss.pooled
    return by_token and view.shared.known.lengths is None and not sees_ahead(model)


def _may_be_fewer(view: View, guess: Guess) -> bool:
    """Whether fewer of each text have the same gradient, a mean over tokens, and the others may be too short for any.

    A sentence of one token, or of no more than a prompt has, asks a causal language model for nothing.
    """
    model, shared = view.text_model, view.shared
    told = shared.known.lengths is not None or any(name != "loss" for name, _ in shared.client.kinds)
    mean = model.language.apart and model.language.reduction == "mean"
    return model.task == "causal-lm" and mean and not told and math.gcd(*Counter(guess.rows).values()) > 1


def _own(view: View, guess: Guess) -> Gradient:
    """The gradient that a client with a guess has before the defenses of its batch."""
    return view.own(examples_of(view.text_model, guess.rows, guess.classes))


def _named(model: TextModel, guess: Guess, rival: Guess) -> str:
    """What a rival has in the answer's place."""
    words = []
    for old, (symbols, label) in zip(lines_of(guess), lines_of(rival), strict=True):
        if old != (symbols, label):
            text = repr(model.decode([symbol % model.vocab_size for symbol in symbols]))
            words.append(text if label == old[1] else f"{text} of class {label}")
    return " with ".join(words)
