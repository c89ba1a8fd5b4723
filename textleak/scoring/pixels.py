"""How near recovered pictures are to those that were in the batch: plain functions on values 0 to 1.

Shapes: B pictures, C color channels, H and W height and width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from textleak.assignment import assignment
from textleak.scoring.perceptual import lpips

_FIGURES = ("psnr", "mse", "ssim", "lpips")
INFINITE_PSNR = 100.0  # written where a picture is exact

# Wang et al. 2004, sec. III: a Gaussian window of 11 x 11 and 1.5 pixels, and the two small constants.
_WINDOW, _SIGMA, _K1, _K2 = 11, 1.5, 0.01, 0.03


def mse(reference_CHW: Tensor, recovered_CHW: Tensor) -> float:
    """Mean squared difference."""
    return float((reference_CHW.double() - recovered_CHW.double()).square().mean())


def psnr(reference_CHW: Tensor, recovered_CHW: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, for a peak of 1; at most 100."""
    error = mse(reference_CHW, recovered_CHW)
    return min(INFINITE_PSNR, -10 * math.log10(error)) if error > 0 else INFINITE_PSNR


def ssim(reference_CHW: Tensor, recovered_CHW: Tensor) -> float:
    """Structural similarity (Wang et al. 2004), mean over channels and places; pictures are mirrored at their edges.

    A picture that is smaller than the window gets the largest window of odd size that fits.
    """
    size = min(_WINDOW, *(side - 1 + side % 2 for side in reference_CHW.shape[1:]))
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    window = torch.outer(line, line)[None, None] / line.sum() ** 2

    def blurred(x_CHW: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x_CHW[:, None], (size // 2,) * 4, mode="reflect"), window)

    a, b = reference_CHW.double().cpu(), recovered_CHW.double().cpu()
    mean_a, mean_b = blurred(a), blurred(b)
    variance_a, variance_b = blurred(a * a) - mean_a**2, blurred(b * b) - mean_b**2
    covariance = blurred(a * b) - mean_a * mean_b
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float((luminance * structure).mean())


def assign_pictures(references: Sequence[Tensor], recovered: Sequence[Tensor]) -> tuple[int | None, ...]:
    """For each reference the recovered picture it is compared with: the least sum of errors, each at most once."""
    if not references or not recovered:
        return (None,) * len(references)
    errors = [[mse(reference, picture) for picture in recovered] for reference in references]
    chosen = dict(assignment(errors))
    return tuple(chosen.get(index) for index in range(len(references)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureScore:
    """One picture of the batch and the recovered one assigned to it.

    Attributes:
        psnr: in dB; 100 for an exact picture, 0 where nothing was recovered, likewise `mse` 1 and `ssim` 0; None, as
            all figures, where the truth isn't known.
        mse: mean squared error of values 0 to 1.
        ssim: structural similarity, at most 1.
        lpips: perceptual distance, None where its weights aren't at hand (`textleak.scoring.perceptual`).
        label: the true class.
        recovered_label: the class that the attack found.
        recovered: which of the recovered pictures it is.
    """

    psnr: float | None
    mse: float | None
    ssim: float | None
    lpips: float | None = None
    label: int | None
    recovered_label: int | None
    recovered: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PictureScores:
    """The figures of a batch: those of each picture, in the order of the references, and their means."""

    images: tuple[PictureScore, ...]
    psnr: float | None
    mse: float | None
    ssim: float | None
    lpips: float | None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, under the names that `image --json` uses."""
        return dataclasses.asdict(self)


def score_pictures(
    references_BCHW: Tensor,
    labels: Sequence[int],
    recovered_BCHW: Tensor,
    recovered_labels: Sequence[int],
) -> PictureScores:
    """The figures of an answer.

    Args:
        references_BCHW: what was in the batch, values 0 to 1.
        labels: the class of each.
        recovered_BCHW: the answer, in any order; it may have fewer or no pictures.
        recovered_labels: the class of each of these.
    """
    scores = []
    chosen = assign_pictures(list(references_BCHW), list(recovered_BCHW))
    for reference_CHW, label, index in zip(references_BCHW, labels, chosen, strict=True):
        if index is None:
            scores.append(
                PictureScore(psnr=0.0, mse=1.0, ssim=0.0, label=label, recovered_label=None, recovered=None)
            )
            continue
        picture_CHW = recovered_BCHW[index]
        scores.append(
            PictureScore(
                psnr=psnr(reference_CHW, picture_CHW),
                mse=mse(reference_CHW, picture_CHW),
                ssim=ssim(reference_CHW, picture_CHW),
                lpips=lpips(reference_CHW, picture_CHW),
                label=label,
                recovered_label=recovered_labels[index],
                recovered=index,
            )
        )
    return PictureScores(images=tuple(scores), **{name: _mean(scores, name) for name in _FIGURES})


def unscored(recovered_labels: Sequence[int], count: int) -> PictureScores:
    """An answer of so many pictures where the truth isn't known: no figures."""
    labels = recovered_labels or (None,) * count
    images = tuple(
        PictureScore(**dict.fromkeys(_FIGURES), label=None, recovered_label=label, recovered=index)
        for index, label in zip(range(count), labels, strict=True)
    )
    return PictureScores(images=images, **dict.fromkeys(_FIGURES))


def _mean(scores: Sequence[PictureScore], name: str) -> float | None:
    """Of the pictures that have the figure; None where none has."""
    known = [value for score in scores if (value := getattr(score, name)) is not None]
    return sum(known) / len(known) if known else None
