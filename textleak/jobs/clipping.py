"""The norm that gradients were clipped to before a step of Adam's: the one at which a found text has this very update.

Adam's first step r = |g| / (|g| + ε) hides how large a gradient was, but for entries as small as ε: of a gradient that
was clipped to a part c of itself they are moved as by ε / c. A text's own gradient has its size, so each such entry
tells that part; one number fitted to millions leaves as much proof as none.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from textleak.clients.view import view_of
from textleak.events import Recovery, Sentence
from textleak.jobs.fitted import STEPS, proved, view_at
from textleak.models.text import TextModel
from textleak.numerics import exact
from textleak.proof.certificate import certify, own_gradient
from textleak.proof.texts import Text
from textleak.shared.traits import Trait

if TYPE_CHECKING:
    from textleak.clients.view import AnyModel, View
    from textleak.shared.gradient import SharedGradient

# Which part of the rate entries are moved by that tell (our choice: neither lost in rounding nor in the rate).
_LEAST, _MOST = 0.2, 0.8
# Entries that have to tell, and up to which part of the gradient's norm nothing counts as clipped (our choice).
_ENTRIES, _CLIPPED = 100, 0.998
# How near to a number of two figures a norm has to be for that to be tried first (our choice).
_ROUND = 0.02


def may_be_clipped(recovery: Recovery, shared: SharedGradient, model: AnyModel) -> bool:
    """Whether an unproved answer, every token of it there, is of one step of AdamW without clipping or dropout."""
    steps = dict(shared.client.kinds).get(STEPS, {})
    if steps.get("optimizer") != "adamw" or steps.get("steps") != 1 or steps.get("max_grad_norm"):
        return False
    repeatable = Trait.REPEATABLE in shared.client.traits
    return repeatable and not recovery.settled and Text(recovery.sentences).complete(model)


def with_clipping(
    recovery: Recovery, shared: SharedGradient, model: AnyModel, view: View
) -> tuple[Recovery, float | None]:
    """The recovery, proved where it is once gradients were clipped; and to which norm, None where it isn't.

    Args:
        recovery: an attack's answer, for which `may_be_clipped` holds.
        shared: what the server has, after one step of AdamW.
        model: the public model.
        view: what the server made of both.
    """
    assert isinstance(model, TextModel)
    steps = dict(shared.client.kinds)[STEPS]
    for norm in _norms(steps, shared, model, view, recovery.sentences):
        certificate = certify(view_at(shared, model, max_grad_norm=norm), recovery.sentences)
        if certificate.verified:
            return proved(recovery, recovery.sentences, certificate), norm
    return recovery, None


def _norms(
    steps: Mapping[str, Any],
    shared: SharedGradient,
    model: TextModel,
    view: View,
    sentences: tuple[Sentence, ...],
) -> Iterator[float]:
    """What the text's own gradient would have been clipped to, as its smallest entries' moves tell; rounded first."""
    kinds = tuple((name, options) for name, options in shared.client.kinds if name != STEPS)
    client = dataclasses.replace(shared.client, kinds=kinds)
    plain = view_of(dataclasses.replace(shared, client=client), model)
    if view.text_model.pairs:  # which the update itself may have shown
        plain = dataclasses.replace(plain, model=plain.text_model.in_pairs())
    own = own_gradient(plain.double(), sentences)
    if not set(plain.model.trainable) <= own.keys():  # clipped by the norm of what wasn't shared too
        return
    told: list[torch.Tensor] = []
    square = 0.0
    for name, gradient in own.items():
        size = exact(gradient).cpu().abs()
        square += float(size.square().sum())
        # What was sent is r and what the weights' decay adds to it.
        shrunk = steps.get("weight_decay", 0.0) * exact(view.model.parameters[name].detach()).cpu()
        moved = (exact(view.shared.gradients[name]).cpu() - shrunk).abs()
        tells = (moved > _LEAST) & (moved < _MOST) & (size > 0)
        told.append((size * (1 / moved - 1))[tells])
    all_told = torch.cat(told)
    if len(all_told) < _ENTRIES:
        return
    part = steps.get("eps", 1e-8) / float(all_told.median())
    if not part < _CLIPPED:
        return
    norm = part * math.sqrt(square)
    near = float(f"{norm:.1e}")
    if abs(near / norm - 1) <= _ROUND:
        yield near
    yield norm
