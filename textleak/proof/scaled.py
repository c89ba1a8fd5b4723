"""Is the shared gradient a multiple of an answer's own? A loss that was scaled, or a sum where a mean was told."""

from __future__ import annotations

import math

from textleak.clients.view import View
from textleak.events import Sentence
from textleak.numerics import exact
from textleak.proof.certificate import distance_of, own_gradient
from textleak.proof.distances import norm_of, off_direction

# Part of the shared gradient that a multiple may leave unexplained to be mentioned (our choice; what is said names it).
_LEFT = 1e-3


def scaled(view: View, sentences: tuple[Sentence, ...]) -> str | None:
    """What is said of an answer whose own gradient is the shared one but for a factor; None of any other.

    Nothing is proved by it: the factor is fitted.

    Args:
        view: what the server sees.
        sentences: the answer.
    """
    shared = view.shared
    if shared.seen_effects or distance_of(view, sentences) is None:
        return None
    own = own_gradient(view.double(), sentences)
    norm, size = norm_of(shared.gradients), norm_of(own)
    if not norm or not size:
        return None
    product = sum(
        float((exact(gradient).to(own[name].device) * own[name]).sum())
        for name, gradient in shared.gradients.items()
        if name in own
    )
    left = off_direction(shared.gradients, own, as_one=True) / norm
    factor = product / size**2
    if left > _LEFT or math.isclose(factor, 1, rel_tol=_LEFT):
        return None
    return (
        f"The shared gradient is {factor:.6g} times the answer's own, to {left:.1e}: it was scaled (by a GradScaler "
        "that didn't unscale it, by clipping, as a sum over clients or sentences). That factor is fitted: nothing is "
        "verified; divide the gradient by the one that you know and audit it again, or tell a sum: "
        "--client loss:reduction=sum."
    )
