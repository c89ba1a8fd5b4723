"""A picture that was read off the gradient in closed form, shown and put to the exact test."""

from __future__ import annotations

from torch import Tensor

from textleak.attacks.base import Steps
from textleak.clients.view import View
from textleak.events import Phase, Progress, Recovery, Stop
from textleak.proof.certificate import certify
from textleak.proof.pictures import Pictures


def put_to_the_test(view: View, pixels_CHW: Tensor, labels_KB: Tensor | None) -> Steps:
    """Show a picture that was read off, and see whether its own gradient equals the shared one."""
    yield Phase(name="closed form", detail="the gradients of patches and positions are equations for pixels")
    shared, model = view.shared, view.image_model
    picture_1CHW = model.pictures(pixels_CHW.to(model.device, model.dtype)).clamp(0, 1)[None]
    labels = shared.known.classes or (() if labels_KB is None else tuple(labels_KB[0].tolist()))
    certificate = certify(view, Pictures(picture_1CHW, labels))
    image = tuple(picture_1CHW.cpu().permute(0, 2, 3, 1).tolist())
    yield Progress(
        phase="closed form",
        step=1,
        steps=1,
        loss=certificate.gradient_distance,
        evaluations=1,
        total_steps=1,
        image=image,
        labels=labels,
    )
    return Recovery(
        sentences=(),
        image=image,
        labels=labels,
        stop=Stop.MATCHED if certificate.verified else Stop.CONVERGED,
        final_loss=certificate.gradient_distance,
        steps=1,
        evaluations=1,
        channel="closed form",
        notes=("Read off the gradients of patches and positions in closed form; nothing was matched.",),
        gradient_distance=certificate.gradient_distance,
    )
