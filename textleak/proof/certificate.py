"""Is this the batch? A certificate that needs no truth.

The recovered batch's own gradient is formed in float64 and compared with the shared one. They are equal where rounding
explains how far apart they are: the client's precision against float64, on this very answer. That proves it where those
most like it are all clearly farther. Where one isn't, which of them it was can't be told; unless rounding is coarse and
the client's own computation, repeated, tells.

Where the client defended its gradient, the nearest gradient that its defenses turn into the shared one takes the shared
one's place: what they hide can't be told from the answer's own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from textleak.clients.view import Clock, View
from textleak.events import Recovery, Sentence, Stop
from textleak.models import TextModel
from textleak.models.deferred import Deferred
from textleak.models.gradient import mutually_apart, plainly_apart
from textleak.proof.answers import Answer, Comparison, TimeUpError, clock_of, cut_off
from textleak.proof.distances import Gradient, apart, distance_to, relative
from textleak.proof.texts import Text
from textleak.shared.traits import Trait

# Gradients are equal where they are no farther apart than this many times what rounding does to the answer's own here:
# its distance in the client's precision from that in float64. Our choice; measured: a client with other kernels or
# another number of threads is at most 1.8 times as far.
_ROUNDINGS = 4.0
# Beyond this rounding of float32 can't have been at work, so that it needn't be worked out (our choice; pretrained
# Gemma 3, where it is largest, has 2e-4; bfloat16 has up to 3e-2).
_FAR = 0.05

_REPLAY_CUT_OFF = (
    "Time was up before the client's steps had been replayed on the answer and on the texts most like it."
)
_PROOF_CUT_OFF = (
    "Time was up before the answer had been compared with all that is most like it; more may prove it."
)
_NOT_FINITE = "The answer's own gradient isn't finite here, so it can't be compared."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """How far the recovery's own gradient is from the shared one, and what that says.

    Attributes:
        gradient_distance: relative L2 distance over all shared tensors; None where a token was left open, and where
            the client draws what the same batch gives.
        verified: whether they are equal, as far as the defenses let through, and no other text's is; None where that
            can't be told.
        reason: why it can't be told, a sentence without any text; None where it can.
        rivals: a few of the texts that fit as well, where it can't be told for their sake.
        cut_off: whether it can't be told because time was up.
    """

    gradient_distance: float | None
    verified: bool | None
    reason: str | None = None
    rivals: tuple[str, ...] = ()
    cut_off: bool = False

    def stop(self, otherwise: Stop) -> Stop:
        """Why an attack ends with this answer: none can fit better, or what it says itself."""
        return Stop.VERIFIED if self.verified else Stop.UNTOLD if self.rivals else otherwise

    @property
    def notes(self) -> tuple[str, ...]:
        """The reason for a person, with the texts that fit as well."""
        named = f" Among them: {'; '.join(self.rivals)}." if self.rivals else ""
        return () if self.reason is None else (self.reason + named,)


class CutOffError(Exception):
    """Time was up while an attack proved sentences whose gradient is the shared one: none can fit better.

    Attributes:
        sentences: the answer.
        distance: of its gradient.
    """

    def __init__(self, sentences: tuple[Sentence, ...], distance: float) -> None:
        super().__init__(_PROOF_CUT_OFF)
        self.sentences = sentences
        self.distance = distance


def _time_up(reason: str, distance: float | None = None) -> Certificate:
    return Certificate(gradient_distance=distance, verified=None, reason=reason, cut_off=True)


def certificate_of(recovery: Recovery, view: View, *, limit: float | None = None) -> Certificate:
    """The certificate of an attack's answer: its own where it has certified it itself, else `certify`'s.

    Args:
        recovery: the answer.
        view: what the server sees.
        limit: seconds that the attack was given, and a proof may take; None for any.
    """
    own = own_certificate(recovery)
    if not own.verified and recovery.stop is Stop.TIME and not view.has(Trait.ONE_POINT):
        return _time_up(_REPLAY_CUT_OFF)
    timed = dataclasses.replace(view, clock=Clock(limit=limit))
    return own if own.verified or own.cut_off else certify(timed, recovery.sentences)


def own_certificate(recovery: Recovery) -> Certificate:
    """What an attack has certified itself; one that says nothing where it hasn't."""
    if recovery.stop is Stop.VERIFIED and recovery.gradient_distance is not None:
        return Certificate(gradient_distance=recovery.gradient_distance, verified=True)
    if recovery.stop is Stop.PROVED:
        return Certificate(gradient_distance=None, verified=True)
    if recovery.proof_cut_off:
        return _time_up(_PROOF_CUT_OFF, recovery.gradient_distance)
    return Certificate(gradient_distance=None, verified=None)


def certify(view: View, answer: Answer | tuple[Sentence, ...]) -> Certificate:
    """Form the gradient of an answer in float64 and compare; see the module's first lines for how.

    Args:
        view: what the server sees, with the model in any precision.
        answer: a recovery's; sentences alone are a `Text`.

    Returns:
        The certificate; nothing can be told where time is up before all has been compared.

    Raises:
        CutOffError: that is so, and in an attack.
    """
    answer = Text(answer) if isinstance(answer, tuple) else answer
    untold = _unrepeatable(view) or answer.unsaid(view.model)
    if not answer.complete(view.model) or not view.has(Trait.REPEATABLE) or not _whole(view):
        return Certificate(gradient_distance=None, verified=None if untold else False, reason=untold)
    if cut_off(view):
        return _time_up(_REPLAY_CUT_OFF)
    exactly = view.double()
    own = answer.own(exactly)
    measured = _Measured(view, answer, own)
    distance, norm = measured.distance
    if untold:
        return Certificate(gradient_distance=distance, verified=None, reason=untold)
    if math.isnan(distance):
        return Certificate(gradient_distance=None, verified=None, reason=_NOT_FINITE)
    if distance > _FAR and not view.shared.client.kinds:
        return _denied(view, answer, distance)
    client = getattr(torch, view.shared.model.dtype)
    roughly, again, rounding = measured.roughly, measured.again, measured.rounding
    if not math.isfinite(rounding):
        return Certificate(gradient_distance=distance, verified=None, reason=_NOT_FINITE)
    rounding *= torch.finfo(client).eps / torch.finfo(roughly.model.dtype).eps
    if not distance <= max(answer.equal, _ROUNDINGS * rounding):
        return _denied(view, answer, distance)
    compared = Comparison(
        view=view,
        exactly=exactly,
        own=own,
        norm=norm,
        distance=distance,
        roughly=roughly,
        again=again,
        rounding=rounding,
        clock=clock_of(view),
    )
    return _told(answer, compared)


def _told(answer: Answer, compared: Comparison) -> Certificate:
    """What those most like an answer say of it, whose gradient is the shared one as far as rounding goes.

    Raises:
        CutOffError: as of `certify`.
    """
    view, distance, rounding = compared.view, compared.distance, compared.rounding
    try:
        compared.go_on()
        near = answer.near(compared)
    except TimeUpError:
        if not view.has(Trait.ONE_POINT):
            return _time_up(_REPLAY_CUT_OFF, distance)
        if view.clock.deadline is not None and isinstance(answer, Text):
            raise CutOffError(answer.sentences, distance) from None
        return _time_up(_PROOF_CUT_OFF, distance)
    if not near:
        return Certificate(gradient_distance=distance, verified=True)
    return Certificate(
        gradient_distance=distance,
        verified=None,
        reason=f"{answer.others} fit as well as this one, so which of them it was can't be told: their own gradients "
        f"are no farther than {compared.bar:.0e} from the shared one, and rounding alone makes {rounding:.0e}.",
        rivals=near,
    )


def _denied(view: View, answer: Answer, distance: float) -> Certificate:
    """That an answer's own gradient isn't the shared one; with sentences that were kept, once all of it was run."""
    kept = view.known, view.double().known
    if not any(kept):
        assumed = answer.assumed(view.model)
        return Certificate(gradient_distance=distance, verified=None if assumed else False, reason=assumed)
    for known in kept:
        known.clear()
    return certify(view, answer)


class _Measured:
    """An answer's own gradient beside the shared one and beside itself in the client's precision.

    What is formed where it is asked for (`Deferred`) is asked for once: both distances are taken on the way.
    """

    def __init__(self, view: View, answer: Answer, own: Gradient) -> None:
        self._view, self._answer, self._own = view, answer, own

    @functools.cached_property
    def roughly(self) -> View:
        """The view in the client's precision, float32 at the finest."""
        client = getattr(torch, self._view.shared.model.dtype)
        return _in(self._view, torch.float32 if client == torch.float64 else client)

    @functools.cached_property
    def again(self) -> Gradient:
        """The gradient there."""
        return self._answer.own(self.roughly)

    @functools.cached_property
    def distance(self) -> tuple[float, float]:
        """Relative distance from the shared gradient, and the norm of that."""
        distance, norm = self._at_once[0] if self._deferred else apart(self._view.shared, self._own)
        return relative(distance, norm), norm

    @functools.cached_property
    def rounding(self) -> float:
        """Relative distance of the gradient in the client's precision."""
        return relative(*(self._at_once[1] if self._deferred else plainly_apart(self._own, self.again)))

    @property
    def _deferred(self) -> bool:
        return isinstance(self._own, Deferred) and not self._view.shared.seen_effects

    @functools.cached_property
    def _at_once(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return mutually_apart(self._view.shared.gradients, self._own, self.again)


def distance_of(view: View, sentences: tuple[Sentence, ...]) -> float | None:
    """`Certificate.gradient_distance` of an answer, without a word on what it proves."""
    answer = Text(sentences)
    if not answer.complete(view.model) or not view.has(Trait.REPEATABLE) or not _whole(view):
        return None
    return distance_to(view.shared, answer.own(view.double()))


def own_gradient(view: View, sentences: tuple[Sentence, ...]) -> Mapping[str, Tensor]:
    """The gradient that a client with `sentences` has before the defenses of its batch, on the shared parameters.

    Args:
        view: what the server sees, with the model in the precision wanted.
        sentences: every position filled.
    """
    return Text(sentences).own(view)


def _in(view: View, dtype: torch.dtype) -> View:
    """The view with its model in another precision; itself where that is the same."""
    model = view.model.in_dtype(dtype)
    return view if model is view.model else dataclasses.replace(view, model=model)


def _whole(view: View) -> bool:
    """Whether all layers of the model are at hand."""
    return not isinstance(view.model, TextModel) or view.model.first_layers is None


def _unrepeatable(view: View) -> str | None:
    """Why no answer's own gradient can be compared with the shared one; None where it can."""
    shared = view.shared
    if not _whole(view):
        return "Only the model's first layers were read, so no answer's own gradient can be formed."
    if not view.has(Trait.REPEATABLE):
        return f"The client ({shared.client.spec}) draws what the same batch gives, so no answer's gradient equals it."
    for defense in shared.defenses:
        if defense.effects is None:
            return f"The defense {defense.name} doesn't say what it does, so no answer's gradient can be compared."
    if any(effect.unbounded for effect in shared.effects):
        return "Noise was added to the gradient, so no answer's own equals it."
    return None
