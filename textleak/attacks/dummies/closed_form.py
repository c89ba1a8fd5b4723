"""A picture that was read off the gradient in closed form, shown and put to the exact test."""

from __future__ import annotations

from torch import Tensor

from textleak.attacks.base import Steps
from textleak.clients.view import View
from textleak.events import Progress, Recovery, Stop
from textleak.proof.certificate import certify
from textleak.proof.pictures import Pictures


def classes_of(view: View, labels_KB: Tensor | None) -> tuple[int, ...]:
    """The classes that a picture that was read off is of.

    Args:
        view: what the server sees, and may know them from.
        labels_KB: its class, for each candidate; None where it was told.
    """
    return view.shared.known.classes or (() if labels_KB is None else tuple(labels_KB[0].tolist()))


def put_to_the_test(
    view: View, pixels_CHW: Tensor, labels: tuple[int, ...], *, channel: str = "closed form", note: str = ""
) -> Steps:
    """Show a picture that was read off, and see whether its own gradient equals the shared one.

    Args:
        view: what the server sees.
        pixels_CHW: the picture as the network reads it.
        labels: its class.
        channel: what the picture was read off by.
        note: one sentence on that.
    """
    model = view.image_model
    picture_1CHW = model.pictures(pixels_CHW.to(model.device, model.dtype)).clamp(0, 1)[None]
    certificate = certify(view, Pictures(picture_1CHW, labels))
    image = tuple(picture_1CHW.cpu().permute(0, 2, 3, 1).tolist())
    yield Progress(
        phase=channel,
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
        channel=channel,
        notes=(note,) if note else (),
        gradient_distance=certificate.gradient_distance,
    )
