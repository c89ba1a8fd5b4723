"""Is this the text? A certificate that needs no truth.

The recovered batch's own gradient is formed in float64 and compared with the shared one. Equal means that a client
with this batch would have shared exactly this gradient. Where the client defended it, the nearest gradient that its
defenses turn into the shared one takes the shared one's place: what they hide can't be told from the answer's own.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.events import Recovery, Sentence, Stop
from textleak.models import Batch, TextModel
from textleak.models.batches import TextExamples
from textleak.models.guesses import inputs_and_targets
from textleak.models.vision import PictureExamples
from textleak.numerics import exact
from textleak.shared.effects import nearest_accepted, of_batch
from textleak.shared.gradient import SharedGradient
from textleak.shared.traits import Trait

# Relative distance up to which gradients count as equal. Our choice: far above what float32 rounding does to a
# gradient, far below what a changed token does. Where a defense hides part of a change, less (measured on minilm and
# bert-tiny: the true text is off by at most 6e-7 under every defense, the nearest wrong one by 3e-5 and more).
_EQUAL, _EQUAL_BEHIND_DEFENSE = 1e-4, 1e-5
# Pictures have no nearest wrong answer, and cutting off values beyond 0 and 1 moves them: at this distance they are at
# about 30 dB or more from the truth (our choice; LeNet).
_EQUAL_PICTURES = 1e-3
# What a wrong sentence changes must show: each sentence's part of the gradient is this many times the distance. A
# sentence whose loss is almost 0 leaves next to no gradient, and another such sentence in its place would look the same
# (our choice: then a change of 1/200 of any sentence's own gradient is too much; measured on minilm, bert-base, gpt2,
# smollm2: a wrong token changes it by 4e-2 and more, the faintest of 8 sentences has 6e-2 of the whole, the true
# batch is off by at most 5e-5).
_SHOWS = 200.0
# Entries compared at once (our choice: a piece fits a core's cache).
_PIECE = 2**18
# A client that computes in half precision is off by 4e-3 to 3e-2 from float64, as far as a wrong token can be (measured
# on minilm and bert-tiny: 5e-3 to 4e-2). So the same computation is repeated in the same precision: exactly equal with
# the same kernels, 2e-4 with another number of threads, 2e-3 and more with any wrong token or order. Where kernels
# differ it settles nothing, unless the distance is beyond all rounding.
_HALVES = ("bfloat16", "float16")
_EQUAL_IN_HALVES, _BEYOND_ROUNDING = 1e-3, 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """How far the recovery's own gradient is from the shared one.

    Attributes:
        gradient_distance: relative L2 distance over all shared tensors; None where a token was left open.
        verified: whether they are equal, as far as the defenses let through; None where that can't be told: noise,
            a defense that doesn't say what it does, half precision computed elsewhere, or a sentence whose part in
            the gradient is too faint to tell it from another.
    """

    gradient_distance: float | None
    verified: bool | None


def certificate_of(recovery: Recovery, view: View) -> Certificate:
    """The certificate of an attack's answer: its own where it has certified it itself, else `certify`'s."""
    if recovery.stop is Stop.VERIFIED and recovery.gradient_distance is not None:
        return Certificate(gradient_distance=recovery.gradient_distance, verified=True)
    return certify(view, recovery.sentences)


def certify(view: View, sentences: tuple[Sentence, ...]) -> Certificate:
    """Form the gradient of `sentences` in float64 and compare.

    Args:
        view: what the server sees, with the model in any precision.
        sentences: a recovery's answer.
    """
    shared, model = view.shared, view.model
    meaningful = _repeatable(view)
    complete = bool(sentences) and all(s.positions and all(p.id >= 0 for p in s.positions) for s in sentences)
    if not complete:
        return Certificate(gradient_distance=None, verified=False if meaningful else None)
    distance = _distance(shared, own_gradient(view.double(), sentences))
    if not meaningful:
        return Certificate(gradient_distance=distance, verified=None)
    if shared.model.dtype not in _HALVES:
        limit = _EQUAL_BEHIND_DEFENSE if shared.effects else _EQUAL
        equal = distance <= limit
        shows = equal and _faintest(model, sentences) >= _SHOWS * distance
        return Certificate(gradient_distance=distance, verified=equal if shows or not equal else None)
    verified: bool | None = False if distance > _BEYOND_ROUNDING else None
    if verified is None and str(model.dtype) == f"torch.{shared.model.dtype}":
        again = _distance(shared, own_gradient(view, sentences))
        verified = True if again <= _EQUAL_IN_HALVES else None
    return Certificate(gradient_distance=distance, verified=verified)


def certify_pictures(view: View, pictures_BCHW: Tensor, labels: tuple[int, ...]) -> Certificate:
    """As `certify`, for pictures of values 0 to 1 with their classes."""
    shared, meaningful = view.shared, _repeatable(view)
    if not len(pictures_BCHW):
        return Certificate(gradient_distance=None, verified=False if meaningful else None)
    double = view.double()
    pixels_BCHW = double.model.normalized(pictures_BCHW.to(device=double.model.device, dtype=torch.float64))
    examples = PictureExamples(pixels_BCHW=pixels_BCHW, targets=double.model.targets(labels))
    distance = _distance(shared, double.own(examples))
    exact_enough = distance <= _EQUAL_PICTURES and shared.model.dtype not in _HALVES
    return Certificate(gradient_distance=distance, verified=exact_enough if meaningful else None)


def own_gradient(view: View, sentences: tuple[Sentence, ...]) -> dict[str, Tensor]:
    """The gradient that a client with `sentences` has before the defenses of its batch, on the shared parameters.

    Args:
        view: what the server sees, with the model in the precision wanted.
        sentences: every position filled.
    """
    return view.own(_read(view.model, sentences))


def _read(model: TextModel, sentences: tuple[Sentence, ...]) -> TextExamples:
    """The sentences as the network reads them, and what it is asked to predict."""
    longest = max(len(sentence.positions) for sentence in sentences)
    shape = (len(sentences), longest)
    ids_BT = torch.full(shape, model.pad_id)
    mask_BT = torch.zeros(shape, dtype=torch.long)
    hidden_BT = torch.zeros(shape, dtype=torch.bool)
    for row, sentence in enumerate(sentences):
        length = len(sentence.positions)
        ids_BT[row, :length] = torch.tensor([p.id for p in sentence.positions])
        hidden_BT[row, :length] = torch.tensor([p.masked for p in sentence.positions])
        mask_BT[row, :length] = 1
    inputs_BT, targets = inputs_and_targets(
        model,
        ids=ids_BT.to(model.device),
        mask=mask_BT.to(model.device),
        labels=torch.tensor([s.label or 0 for s in sentences]).to(model.device),
        hidden=hidden_BT.to(model.device),
    )
    return TextExamples(batch=Batch(ids_BT=inputs_BT, mask_BT=mask_BT.to(model.device)), targets=targets)


def _faintest(model: TextModel, sentences: tuple[Sentence, ...]) -> float:
    """The smallest part that a sentence has in the gradient, seen at the embeddings; 1 for a single one."""
    if len(sentences) == 1:
        return 1.0
    examples = _read(model, sentences)
    batch, targets = examples.batch, examples.targets
    embeddings_BTE = model.embed(batch.ids_BT).detach().requires_grad_(True)
    with torch.enable_grad():
        loss = model.loss(embeddings_BTE[None], batch.mask_BT[None], targets.expand(1))
        (slope_BTE,) = torch.autograd.grad(loss.sum(), embeddings_BTE)
    norms_B = exact(slope_BTE).flatten(1).norm(dim=1)
    return float(norms_B.min() / norms_B.norm().clamp_min(torch.finfo(norms_B.dtype).tiny))


def _repeatable(view: View) -> bool:
    """Whether all that client and defenses do is known, and none of it is drawn or noise without bounds."""
    shared = view.shared
    if not view.has(Trait.REPEATABLE) or any(defense.effects is None for defense in shared.defenses):
        return False
    return not any(effect.unbounded for effect in shared.effects)


def _distance(shared: SharedGradient, own: dict[str, Tensor]) -> float:
    """Relative distance of a gradient from the nearest one that the defenses turn into the shared one."""
    device = next(iter(own.values())).device
    if not shared.effects:
        return _plain_distance(shared.gradients, own, device)
    full = {
        name: exact(own[name]) if name in own else torch.zeros_like(exact(gradient), device=device)
        for name, gradient in shared.gradients.items()
    }
    nearest = nearest_accepted(full, shared.gradients, of_batch(shared.effects))
    squared_distance = sum(float((nearest[name] - full[name]).square().sum()) for name in nearest)
    squared_norm = sum(float(value.square().sum()) for value in nearest.values())
    return (squared_distance / squared_norm) ** 0.5 if squared_norm else float("inf")


def _plain_distance(seen: dict[str, Tensor], own: dict[str, Tensor], device: torch.device) -> float:
    """The same without defenses, a piece after the other, so that nothing large is in memory twice."""
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
    return (squared_distance / squared_norm) ** 0.5 if squared_norm else float("inf")
