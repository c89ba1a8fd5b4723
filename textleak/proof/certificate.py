"""Is this the text? A certificate that needs no truth.

The recovered batch's own gradient is formed in float64 and compared with the shared one. They are equal where rounding
explains how far apart they are: the client's precision against float64, on this very answer. That proves the text where
those most like it (`rivals`) are all clearly farther. Where one isn't, which of them it was can't be told; unless
rounding is coarse and the client's own computation, repeated, tells.

Where the client defended its gradient, the nearest gradient that its defenses turn into the shared one takes the shared
one's place: what they hide can't be told from the answer's own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.events import Recovery, Sentence, Stop
from textleak.matching.discrete import Guess
from textleak.models import TextModel
from textleak.models.guesses import examples_of
from textleak.models.vision import PictureExamples
from textleak.numerics import exact
from textleak.proof.rivals import Parts, alike, distances, further, like_pictures, lines_of
from textleak.shared.effects import nearest_accepted, of_batch
from textleak.shared.gradient import SharedGradient
from textleak.shared.traits import Trait

# Gradients are equal where they are no farther apart than this many times what rounding does to the answer's own here:
# its distance in the client's precision from that in float64. Our choice; measured: a client with other kernels or
# another number of threads is at most 1.8 times as far.
_ROUNDINGS = 4.0
# And they prove a text only where each of those most like it is so many times farther than it, and than rounding (our
# choice). What is computed in float32 must show it with a margin for its own rounding.
_FARTHER, _ROUGHLY = 10.0, 2.0
# From here on rounding can be as far as a wrong token (measured on minilm and bert-tiny in bfloat16: 4e-3 to 3e-2, and
# 5e-3 to 4e-2). So there the same computation is repeated, which tells where its result is so many times nearer than
# rounding: exactly equal with the same kernels, 2e-4 with another number of threads, 2e-3 and more with any wrong token
# or order.
_COARSE, _REPEATED = 1e-3, 10.0
# Rivals whose whole gradient is formed at most, those that seem nearest: in general, and where nothing less than the
# whole gradient tells how near they are (our choice: each takes as long as the certificate itself).
_FORMED, _FORMED_ANYWAY = 32, 4
# Rivals named (our choice).
_NAMED = 3
# Beyond this rounding of float32 can't have been at work, so that it needn't be worked out (our choice; pretrained
# Gemma 3, where it is largest, has 2e-4; bfloat16 has up to 3e-2).
_FAR = 0.05
# Cutting off values beyond 0 and 1 moves pictures: at this distance LeNet's are at 30 dB or more from the truth (our
# choice; there pictures 30 dB away are farther than 1e-2, but on a ResNet with sigmoids 1e-5).
_EQUAL_PICTURES = 1e-3
# Entries compared at once (our choice: a piece fits a core's cache).
_PIECE = 2**18

_NOT_FINITE = "The answer's own gradient isn't finite in float64 here, so it can't be compared."

Gradient = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """How far the recovery's own gradient is from the shared one, and what that says.

    Attributes:
        gradient_distance: relative L2 distance over all shared tensors; None where a token was left open.
        verified: whether they are equal, as far as the defenses let through, and no other text's is; None where that
            can't be told.
        reason: why it can't be told, a sentence without any text; None where it can.
        rivals: a few of the texts that fit as well, where it can't be told for their sake.
    """

    gradient_distance: float | None
    verified: bool | None
    reason: str | None = None
    rivals: tuple[str, ...] = ()

    def stop(self, otherwise: Stop) -> Stop:
        """Why an attack ends with this answer: none can fit better, or what it says itself."""
        return Stop.VERIFIED if self.verified else Stop.UNTOLD if self.rivals else otherwise

    @property
    def notes(self) -> tuple[str, ...]:
        """The reason for a person, with the texts that fit as well."""
        named = f" Among them: {'; '.join(self.rivals)}." if self.rivals else ""
        return () if self.reason is None else (self.reason + named,)


def certificate_of(recovery: Recovery, view: View) -> Certificate:
    """The certificate of an attack's answer: its own where it has certified it itself, else `certify`'s."""
    own = own_certificate(recovery)
    return own if own.verified else certify(view, recovery.sentences)


def own_certificate(recovery: Recovery) -> Certificate:
    """What an attack has certified itself; one that says nothing where it hasn't."""
    if recovery.stop is Stop.VERIFIED and recovery.gradient_distance is not None:
        return Certificate(gradient_distance=recovery.gradient_distance, verified=True)
    if recovery.stop is Stop.PROVED:
        return Certificate(gradient_distance=None, verified=True)
    return Certificate(gradient_distance=None, verified=None)


def certify(view: View, sentences: tuple[Sentence, ...]) -> Certificate:
    """Form the gradient of `sentences` in float64 and compare; see the module's first lines for how.

    Args:
        view: what the server sees, with the model in any precision.
        sentences: a recovery's answer.
    """
    untold = _unrepeatable(view)
    if not _complete(sentences):
        return Certificate(gradient_distance=None, verified=None if untold else False, reason=untold)
    comparison = _Comparison(view, _guess(view.text_model, sentences))
    if untold:
        return Certificate(gradient_distance=comparison.distance, verified=None, reason=untold)
    return comparison.certificate()


class _Comparison:
    """An answer's gradient beside the shared one.

    Args:
        view: what the server sees.
        guess: the answer.

    Attributes:
        distance: relative, of the answer's own gradient in float64.
    """

    def __init__(self, view: View, guess: Guess) -> None:
        self.view, self.shared, self.model, self.guess = view, view.shared, view.text_model, guess
        self.exact = view.double()
        self.own = _own(self.exact, guess)
        apart, self.norm = _apart(self.shared, self.own)
        self.distance = _relative(apart, self.norm)

    def certificate(self) -> Certificate:
        """Whether it is equal, by what rounding does to it, and nothing else is."""
        if math.isnan(self.distance):
            return Certificate(gradient_distance=None, verified=None, reason=_NOT_FINITE)
        if self.distance > _FAR and not self.shared.client.kinds:
            return Certificate(gradient_distance=self.distance, verified=False)
        client = getattr(torch, self.shared.model.dtype)
        rough = _in(self.view, torch.float32 if client == torch.float64 else client)
        again = _own(rough, self.guess)
        rounding = _relative(*_plainly_apart(self.own, again))
        rounding *= torch.finfo(client).eps / torch.finfo(rough.model.dtype).eps
        if not self.distance <= _ROUNDINGS * rounding:
            return Certificate(gradient_distance=self.distance, verified=False)
        bar = _FARTHER * max(self.distance, rounding)
        if self._whole_only:
            left = self._nearest()
        else:
            margins = [(rough, _ROUGHLY)] if client == torch.float32 else []
            left = self._within(bar, [*margins, (self.exact, 1.0)])
        near = self._near(left, bar, self.exact)
        if not near or self._repeats(again, rough, rounding):
            return Certificate(gradient_distance=self.distance, verified=True)
        return Certificate(
            gradient_distance=self.distance,
            verified=None,
            reason="Other texts fit as well as this one, so which of them it was can't be told: their own gradients "
            f"are no farther than {bar:.0e} from the shared one, and rounding alone makes {rounding:.0e}.",
            rivals=tuple(_named(self.model, self.guess, rival) for rival in near),
        )

    def _repeats(self, again: Gradient, rough: View, rounding: float) -> bool:
        """Whether the answer's gradient in the client's own coarse arithmetic is the shared one, and no rival's is."""
        if rounding < _COARSE or self.model.dtype != rough.model.dtype:
            return False
        repeated = _distance(self.shared, again)
        near = _REPEATED * repeated <= rounding
        return near and not self._near(self._nearest(), _FARTHER * repeated, rough)

    @property
    def _whole_only(self) -> bool:
        """Whether single sentences at a few tensors tell no bound: their parts don't just add up, or were scaled."""
        scaled = any(effect.lost_scale in ("all", "layer") for effect in self.shared.effects)
        return scaled or not self.view.client.adds_up

    @functools.cached_property
    def _rivals(self) -> list[Guess]:
        known = self.shared.known.labels is not None
        found = [*alike(self.model, self.guess, classes=not known), *further(self.model, self.guess)]
        mine = sorted(lines_of(self.guess))  # the same sentences in another order are the same batch
        return [rival for rival in dict.fromkeys(found) if sorted(lines_of(rival)) != mine]

    def _within(self, bar: float, margins: Sequence[tuple[View, float]]) -> list[Guess]:
        """The rivals that a few tensors don't show to be beyond the bar, those that seem nearest first.

        Args:
            bar: relative distance.
            margins: views that compute these tensors one after the other, and what each one's rounding has the bar
                multiplied by.
        """
        left = [rival for rival in self._rivals if self._row_left(rival) <= bar]
        for view, margin in margins:
            if not left:
                break
            parts = Parts(view.text_model, self.own, self.guess)
            seen = {name: self.shared.gradients[name] for name in parts.names}
            some = dataclasses.replace(self.shared, gradients=seen)

            def bound(own: Gradient, some: SharedGradient = some) -> float:
                return _relative(_apart(some, own)[0], self.norm)

            left = [rival for least, rival in self._in_order(parts, left, bound) if not least > margin * bar]
        return left[:_FORMED]

    def _row_left(self, rival: Guess) -> float:
        """The relative norm of a shared embedding row that the rival's gradient has nothing in: its token isn't there.

        0 where no such row was shared, or the head reads the same table.
        """
        gone = {symbol for row in self.guess.rows for symbol in row} - {s for row in rival.rows for s in row}
        rows = (self._rows.get(symbol, 0.0) for symbol in gone)
        return _relative(max(rows, default=0.0), self.norm)

    @functools.cached_property
    def _rows(self) -> dict[int, float]:
        """Norms of the shared embedding rows by token, where only the batch's own tokens have any."""
        used = {symbol for row in self.guess.rows for symbol in row}
        table = self.exact.text_model.word_embedding.weight
        name = next((name for name in self.own if self.exact.text_model.parameters[name] is table), None)
        if name is None or self.shared.seen_effects:
            return {}
        touched = set(self.own[name].any(1).nonzero().flatten().tolist())
        seen_VE = self.shared.gradients[name]
        return {i: float(exact(seen_VE[i]).norm()) for i in touched} if touched <= used else {}

    def _nearest(self) -> list[Guess]:
        """The rivals whose gradients differ least from the answer's at a few tensors."""
        parts = Parts(self.exact.text_model, self.own, self.guess)
        mine = {name: self.own[name] for name in parts.names}
        order = self._in_order(parts, self._rivals, lambda own: _plainly_apart(mine, own)[0])
        return [rival for _, rival in order][:_FORMED_ANYWAY]

    def _in_order(
        self, parts: Parts, rivals: list[Guess], distance: Callable[[Gradient], float]
    ) -> list[tuple[float, Guess]]:
        """Rivals with their distances at the tensors of `parts`, the nearest first."""
        if not parts.names:
            return [(0.0, rival) for rival in rivals]
        found = (
            0.0 if math.isnan(d) else d for d in distances(parts, self.guess, rivals, self.own, distance)
        )
        return sorted(zip(found, rivals, strict=True), key=lambda pair: pair[0])

    def _near(self, rivals: Iterable[Guess], bar: float, view: View) -> list[Guess]:
        """The rivals whose whole gradient is within the bar, a few at most."""
        near = (rival for rival in rivals if not _distance(self.shared, _own(view, rival)) > bar)
        return list(itertools.islice(near, _NAMED))


def certify_pictures(view: View, pictures_BCHW: Tensor, labels: tuple[int, ...]) -> Certificate:
    """As `certify`, for pictures of values 0 to 1 with their classes.

    They are never quite the true ones, so equal means near enough, and proved that pictures which are clearly others
    (`like_pictures`) are all clearly farther.
    """
    shared, untold = view.shared, _unrepeatable(view)
    if not len(pictures_BCHW):
        return Certificate(gradient_distance=None, verified=None if untold else False, reason=untold)
    exactly = view.double()
    own = _of_pictures(exactly, pictures_BCHW, labels)
    distance = _distance(shared, own)
    if untold:
        return Certificate(gradient_distance=distance, verified=None, reason=untold)
    client = getattr(torch, shared.model.dtype)
    rough = _in(view, client)
    rounding = _relative(*_plainly_apart(own, _of_pictures(rough, pictures_BCHW, labels)))
    if math.isnan(distance):
        return Certificate(gradient_distance=None, verified=None, reason=_NOT_FINITE)
    if not distance <= max(_EQUAL_PICTURES, _ROUNDINGS * rounding):
        return Certificate(gradient_distance=distance, verified=False)
    bar = _FARTHER * max(distance, rounding)
    classes = None if shared.known.labels is not None else view.model.num_labels
    for others_BCHW, theirs in like_pictures(pictures_BCHW, labels, classes):
        if _distance(shared, _of_pictures(rough, others_BCHW, theirs)) > _ROUGHLY * bar:
            continue
        if not _distance(shared, _of_pictures(exactly, others_BCHW, theirs)) > bar:
            return Certificate(
                gradient_distance=distance,
                verified=None,
                reason="Pictures that are clearly others fit as well as these, so which it was can't be told: "
                f"their own gradients are no farther than {bar:.0e} from the shared one.",
            )
    return Certificate(gradient_distance=distance, verified=True)


def _of_pictures(view: View, pictures_BCHW: Tensor, labels: tuple[int, ...]) -> dict[str, Tensor]:
    """The gradient that a client with these pictures has before the defenses of its batch."""
    model = view.image_model
    pixels_BCHW = model.normalized(pictures_BCHW.to(device=model.device, dtype=model.dtype))
    return view.own(PictureExamples(pixels_BCHW=pixels_BCHW, targets=model.targets(labels)))


def distance_of(view: View, sentences: tuple[Sentence, ...]) -> float | None:
    """`Certificate.gradient_distance` of an answer, without a word on what it proves."""
    return _Comparison(view, _guess(view.text_model, sentences)).distance if _complete(sentences) else None


def own_gradient(view: View, sentences: tuple[Sentence, ...]) -> dict[str, Tensor]:
    """The gradient that a client with `sentences` has before the defenses of its batch, on the shared parameters.

    Args:
        view: what the server sees, with the model in the precision wanted.
        sentences: every position filled.
    """
    return _own(view, _guess(view.text_model, sentences))


def _own(view: View, guess: Guess) -> dict[str, Tensor]:
    """`own_gradient` of a guess."""
    return view.own(examples_of(view.text_model, guess.rows, guess.classes))


def _in(view: View, dtype: torch.dtype) -> View:
    """The view with its model in another precision."""
    return dataclasses.replace(view, model=view.model.in_dtype(dtype))


def _guess(model: TextModel, sentences: tuple[Sentence, ...]) -> Guess:
    """An answer with every position filled as symbols."""
    V = model.vocab_size
    return Guess(
        rows=tuple(tuple(p.id + V * p.masked for p in sentence.positions) for sentence in sentences),
        classes=() if model.num_labels is None else tuple(sentence.label or 0 for sentence in sentences),
    )


def _named(model: TextModel, guess: Guess, rival: Guess) -> str:
    """What a rival has in the answer's place."""
    words = []
    for old, (symbols, label) in zip(lines_of(guess), lines_of(rival), strict=True):
        if old != (symbols, label):
            text = repr(model.decode([symbol % model.vocab_size for symbol in symbols]))
            words.append(text if label == old[1] else f"{text} of class {label}")
    return " with ".join(words)


def _complete(sentences: tuple[Sentence, ...]) -> bool:
    """Whether every position is filled."""
    return bool(sentences) and all(s.positions and all(p.id >= 0 for p in s.positions) for s in sentences)


def _unrepeatable(view: View) -> str | None:
    """Why no answer's own gradient can be compared with the shared one; None where it can."""
    shared = view.shared
    if not view.has(Trait.REPEATABLE):
        return f"The client ({shared.client.spec}) draws what the same batch gives, so no answer's gradient equals it."
    for defense in shared.defenses:
        if defense.effects is None:
            return f"The defense {defense.name} doesn't say what it does, so no answer's gradient can be compared."
    if any(effect.unbounded for effect in shared.effects):
        return "Noise was added to the gradient, so no answer's own equals it."
    return None


def _distance(shared: SharedGradient, own: Gradient) -> float:
    """Relative distance of a gradient from the nearest one that the defenses turn into the shared one."""
    return _relative(*_apart(shared, own))


def _apart(shared: SharedGradient, own: Gradient) -> tuple[float, float]:
    """The nearest gradient to `own` that the defenses turn into the shared one: its distance, and its norm."""
    effects = of_batch(shared.seen_effects)
    if not effects:
        return _plainly_apart(shared.gradients, own)
    device = next(iter(own.values())).device
    full = {
        name: exact(own[name]) if name in own else torch.zeros_like(exact(gradient), device=device)
        for name, gradient in shared.gradients.items()
    }
    nearest = nearest_accepted(full, shared.gradients, effects)
    squared_distance = sum(float((nearest[name] - full[name]).square().sum()) for name in nearest)
    squared_norm = sum(float(value.square().sum()) for value in nearest.values())
    return squared_distance**0.5, squared_norm**0.5


def _plainly_apart(seen: Gradient, own: Gradient) -> tuple[float, float]:
    """The same without defenses, a piece after the other, so that nothing large is in memory twice."""
    device = next(iter(own.values())).device
    squared_distance = squared_norm = 0.0
    for name, gradient in seen.items():
        pieces_P = torch.split(gradient.reshape(-1), _PIECE)
        # A parameter that the answer's loss doesn't reach has a gradient of 0.
        own_P = torch.split(own[name].reshape(-1), _PIECE) if name in own else (None,) * len(pieces_P)
        for piece, other in zip(pieces_P, own_P, strict=True):
            reference = exact(piece.to(device))
            difference = reference if other is None else reference - exact(other)
            squared_norm += float(reference.dot(reference))
            squared_distance += float(difference.dot(difference))
    return squared_distance**0.5, squared_norm**0.5


def _relative(distance: float, norm: float) -> float:
    return distance / norm if norm else math.inf
