"""Dummy pictures and soft labels: what stands in for a batch of pictures while its gradient is matched.

Shapes: K candidates, B pictures, C color channels, H and W height and width, L classes.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor

from textleak.attacks.dummies.waves import Waves
from textleak.clients.view import View
from textleak.errors import InputError
from textleak.events import Tokens
from textleak.matching import (
    Damage,
    Leaves,
    Matcher,
    ModelFunction,
    Objective,
    Project,
    SquaredL2,
    Target,
    Turns,
)
from textleak.models.batches import Targets
from textleak.models.vision import ImageModel, Statistics
from textleak.shared.effects import hides_entries, lost_scale
from textleak.shared.gradient import SharedGradient

# A gradient this near to the shared one, relative to its norm, is the same to float32's rounding and then some, and its
# picture to the eye's (our choice; on LeNet a distance of 7e-5 is a PSNR of about 50 dB).
_EQUAL = 8e-5
# Differences of colors far below this count by their square, those far above by their length (our choice).
_FAINT = 0.02
# Evaluations without progress after which a candidate begins anew (our choice).
_PATIENCE = 200
# Decimals of a picture's values in progress events: their rounding is at 71 dB.
_DECIMALS = 3
# Progress shows the picture at every so many steps, and half as often each time that the steps double beyond 40 times
# as many (our choice: every 10 as in DLG's released code, and no more than some hundred pictures in a long run).
_FRAMES = 10


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PictureSettings:
    """What a recipe says of pictures beside what it says of any dummies.

    Attributes:
        spread: standard deviation of the start around mid-gray, on a scale of 0 to 1; None for N(0, 1) in the
            network's own scale.
        total_variation: weight of the mean difference between neighboring pixels in the loss, in the network's scale.
        roughness: the loss is multiplied by e to the power of this times the pictures' `roughness`, so that of pictures
            with gradients about equally near the smoother ones count as nearer, the less the nearer they are: where
            gradients are equal the loss is 0 whatever the pictures are.
        boxed: whether values are kept between 0 and 1.
        smooth: pictures are optimized as waves, each in units of 1 / (1 + its number / `smooth`), as coarse structure
            is larger than fine in any picture; None for pixels.
        batch_norm: weight of how far the batch norms' statistics are from the client's, where these are known: the
            mean squared difference in units of the client's variances (Yin et al. 2021, GradInversion, eq. 10), as a
            part of the shared gradient's squared norm where that is what the distance is measured in.
        kinks: width that the kinks of ReLUs count as having (see `Matcher`); 0 for the distance's own derivative.
        start_KBCHW: pixels that the first candidates' pictures start from, as the network reads them; None to draw
            all.
        precise: whether pictures are kept and gradients are compared in float64, whatever the network computes in: a
            distance formed in float32 is its own rounding at about 3e-4 of the gradient's norm, and a line search ends.
        one_at_a_time: steps spent on one picture of the batch before the next one's turn; 0 for all at once.
    """

    spread: float | None = None
    total_variation: float = 0.0
    roughness: float = 0.0
    boxed: bool = False
    one_at_a_time: int = 0
    precise: bool = False
    smooth: float | None = None
    batch_norm: float = 0.1  # Yin et al. 2021, sec. 4
    kinks: float = 0.0
    start_KBCHW: Tensor | None = None


def batch_size(shared: SharedGradient) -> int:
    """How many sentences or pictures were in the batch, as the server was told.

    Raises:
        InputError: it wasn't.
    """
    size = shared.known.size
    if size is None:
        raise InputError(
            "The batch size is not known.",
            why="This attack optimizes as many dummies as there are samples, and can't find out how many.",
            fix="Tell the attacker with --know batch-size.",
        )
    return size


ANY_PICTURES = PictureSettings()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DummyPictures:
    """Stand-ins for a batch of which only the size is known; each picture and its label are leaves of their own.

    Attributes:
        model: the public model.
        shared: what the server sees.
        objective: the distance of a candidate's gradient from the shared one.
        settings: what a recipe says of pictures.
        labels_KB: classes that are held fixed; None where soft labels are optimized.
    """

    view: View
    objective: Objective
    settings: PictureSettings
    labels_KB: Tensor | None = None

    @property
    def model(self) -> ImageModel:
        """The public model."""
        model: ImageModel = self.view.image_model
        return model

    @property
    def shared(self) -> SharedGradient:
        """The shared gradient."""
        return self.view.shared

    @cached_property
    def batch_size(self) -> int:
        """B.

        Raises:
            InputError: it isn't known.
        """
        return batch_size(self.shared)

    @cached_property
    def matcher(self) -> Matcher:
        """Matches every shared parameter."""
        effects = self.shared.effects
        damage = Damage(masked=hides_entries(effects), masked_rows=None, rescaled=lost_scale(effects))
        target = Target.from_gradients(
            self.shared.gradients, damage, dtype=self._dtype, device=self.model.device
        )
        return self.view.matcher(target, self.objective, kinks=self.settings.kinks)

    @property
    def tolerance(self) -> float | None:
        """A loss at which the gradients are equal; None where a defense or another objective leaves no such value.

        Pruning leaves one: what is left is as it was.
        """
        if not all(
            defense.effects is not None and all(effect.hides_entries for effect in defense.effects)
            for defense in self.shared.defenses
        ) or not isinstance(self.objective, SquaredL2):
            return None
        return _EQUAL**2 * self.matcher.target.squared_norm

    @property
    def patience(self) -> int | None:
        """Evaluations without progress after which a candidate begins anew; None where there is no telling."""
        return None if self.tolerance is None or self.turns is not None else _PATIENCE

    @property
    def turns(self) -> Turns | None:
        """Each picture's leaves for a turn; None for all at once."""
        if not self.settings.one_at_a_time or self.batch_size == 1:
            return None
        groups = tuple(self._leaves_of(b) for b in range(self.batch_size))
        return Turns(groups=groups, each=self.settings.one_at_a_time)

    def _leaves_of(self, b: int) -> tuple[str, ...]:
        return (f"pixels {b}",) if self.labels_KB is not None else (f"pixels {b}", f"labels {b}")

    @property
    def free(self) -> tuple[str, ...]:
        """The leaves that are optimized."""
        return tuple(name for b in range(self.batch_size) for name in self._leaves_of(b))

    @property
    def _dtype(self) -> torch.dtype:
        """Type of the leaves, and of what their gradients are compared in."""
        return torch.float64 if self.settings.precise else self.model.dtype

    def draw(self, candidates: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """Where candidates start, drawn on the CPU so that every device starts alike."""
        drawn = {}
        for name in self.free:
            pixels = name.startswith("pixels")
            shape = self.model.shape if pixels else (self.model.num_labels,)
            noise = torch.randn(candidates, *shape, generator=generator, dtype=torch.float64)
            if pixels and self.settings.smooth is not None:
                noise = (self.settings.spread or 1.0) * noise
            elif pixels and self.settings.spread is not None:
                noise = self.model.normalized(0.5 + self.settings.spread * noise)
            drawn[name] = noise.to(device=self.model.device, dtype=self._dtype)
        return drawn

    def start(self, candidates: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        """All leaves: those that are optimized, and what the model function reads beside them."""
        leaves = self.draw(candidates, generator)
        if self.settings.start_KBCHW is not None:
            for b, pixels_KCHW in enumerate(self.settings.start_KBCHW.unbind(1)):
                leaf = leaves[f"pixels {b}"]
                leaf[: len(pixels_KCHW)] = self.as_leaf(pixels_KCHW.to(leaf))
        if self.labels_KB is not None:
            leaves["classes"] = self.labels_KB.to(self.model.device)
        return leaves

    def losses(self, leaves: Leaves) -> Tensor:
        """The model function."""
        pixels_KBCHW = self.pixels(leaves)
        if self.labels_KB is not None:
            labels = leaves["classes"][..., None]
        else:
            labels = self._label_logits(leaves).softmax(-1)[:, :, None]
        shape = (*pixels_KBCHW.shape[:2], 1)
        weights_KB1 = torch.full(
            shape, 1 / self.batch_size, device=labels.device, dtype=self.model.loss_dtype
        )
        return self.model.loss(pixels_KBCHW, Targets(labels=labels, weights=weights_KB1))

    def pixels(self, leaves: Leaves) -> Tensor:
        """Each candidate's pictures (K, B, C, H, W), as the network reads them."""
        return torch.stack([self.as_pixels(leaves[f"pixels {b}"]) for b in range(self.batch_size)], 1)

    def as_pixels(self, leaf_KCHW: Tensor) -> Tensor:
        """What a leaf of a picture stands for, as the network reads it."""
        if self._waves is None:
            return leaf_KCHW
        return self.model.normalized(0.5 + self._waves.pixels(leaf_KCHW))

    def as_leaf(self, pixels: Tensor) -> Tensor:
        """The leaf that stands for a picture's pixels: the reverse of `as_pixels`."""
        if self._waves is None:
            return pixels
        return self._waves.waves(self.model.pictures(pixels) - 0.5)

    @cached_property
    def _waves(self) -> Waves | None:
        """What pictures are optimized as; None for pixels."""
        smooth = self.settings.smooth
        return None if smooth is None else Waves.of(*self.model.shape[1:], smooth)

    @property
    def parts(self) -> tuple[slice, ...]:
        """Each picture's numbers, where all are optimized at once and stand for the same label in all candidates."""
        if (
            self.turns is not None
            or self.labels_KB is None
            or not bool((self.labels_KB == self.labels_KB[0]).all())
        ):
            return ()
        numbers = self.model.numbers
        return tuple(slice(b * numbers, (b + 1) * numbers) for b in range(self.batch_size))

    def _label_logits(self, leaves: Leaves) -> Tensor:
        return torch.stack([leaves[f"labels {b}"] for b in range(self.batch_size)], 1)

    def value_and_gradient(self, matcher: Matcher, leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized: the distance, and the priors on pictures if there are any."""
        return self.roughened(self._distant(matcher, leaves), leaves, self.pixels)

    def roughened(
        self,
        found: tuple[Tensor, dict[str, Tensor]],
        leaves: Leaves,
        pixels: Callable[[Leaves], Tensor],
        beside: float = 0.0,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Values (K,) and gradients with the factor that roughness has in them.

        Args:
            found: without it.
            leaves: where.
            pixels: the pictures (K, B, C, H, W) that leaves stand for, all of the batch or some.
            beside: roughness of the batch's other pictures, all together.
        """
        values_K, gradients = found
        if not self.settings.roughness:
            return found
        own = {name: leaf.detach().requires_grad_(name in gradients) for name, leaf in leaves.items()}
        pictures_KBCHW = self.model.pictures(pixels(own))
        all_K = roughness(pictures_KBCHW.flatten(0, 1)).view(len(values_K), -1).sum(1) + beside
        rough_K = self.settings.roughness / self.batch_size * all_K
        slopes = torch.autograd.grad(rough_K.sum(), [own[name] for name in gradients], materialize_grads=True)
        rough_K = rough_K.detach()
        factor_K = rough_K.exp()

        def along(leaf: Tensor, value_K: Tensor) -> Tensor:
            return leaf * value_K.view(-1, *[1] * (leaf.dim() - 1))

        return factor_K * values_K, {
            name: along(gradients[name], factor_K) + along(slope, factor_K * values_K)
            for name, slope in zip(gradients, slopes, strict=True)
        }

    def _distant(self, matcher: Matcher, leaves: Leaves) -> tuple[Tensor, dict[str, Tensor]]:
        """The distance, what is added to it, and the gradients of both."""
        free = [name for name in self.free if name in leaves]
        if not self.settings.total_variation and not self._known_statistics:
            return matcher.value_and_gradient(self.losses, leaves, free)
        losses, prior = self._losses_and_prior
        return matcher.value_and_gradient(losses, leaves, free, beside=prior)

    @cached_property
    def _losses_and_prior(self) -> tuple[ModelFunction, ModelFunction]:
        """The model function, and the prior on the same leaves, which is told what the network has seen on the way.

        The same two for good, as a matcher knows by them what comes again; so they mustn't keep these dummies alive.
        """
        dummies = weakref.proxy(self)

        def losses(some: Leaves) -> Tensor:
            return cast(Tensor, dummies.losses(some))

        def prior(some: Leaves, own: Statistics | None = None) -> Tensor:
            return cast(Tensor, dummies.prior(dummies.pixels(some), own))

        return with_statistics(self.model, losses, prior) if self._known_statistics else (losses, prior)

    @property
    def _known_statistics(self) -> Mapping[str, tuple[Sequence[float], Sequence[float]]]:
        """The client's batch norms' statistics, where they are known and asked for."""
        return (self.shared.known.batch_norm or {}) if self.settings.batch_norm else {}

    def prior(self, pixels_KBCHW: Tensor, own: Statistics | None) -> Tensor:
        """What is asked of pictures beside their gradient, (K,).

        Args:
            pixels_KBCHW: the pictures, as the network reads them.
            own: their `batch_statistics`; None to compute them where they are needed.
        """
        settings, known = self.settings, self._known_statistics
        prior_K = pixels_KBCHW.new_zeros(len(pixels_KBCHW))
        if settings.total_variation:
            variation_KB = total_variation(pixels_KBCHW.flatten(0, 1)).view(pixels_KBCHW.shape[:2])
            prior_K = prior_K + settings.total_variation * variation_KB.mean(1)
        if known:
            unit = self.matcher.target.squared_norm if isinstance(self.objective, SquaredL2) else 1.0
            own = self.model.batch_statistics(pixels_KBCHW) if own is None else own
            apart_K = torch.stack([_apart(own[name], there) for name, there in known.items()]).mean(0)
            prior_K = prior_K + settings.batch_norm * unit * apart_K
        return prior_K

    @property
    def project(self) -> Project | None:
        """To values between 0 and 1, where a recipe asks for that."""
        return self._clamped if self.settings.boxed else None

    def _clamped(self, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        """Pictures with every value between 0 and 1."""
        return {
            name: self.as_leaf(self.model.normalized(self.model.pictures(self.as_pixels(leaf)).clamp(0, 1)))
            if name.startswith("pixels")
            else leaf
            for name, leaf in leaves.items()
        }

    def shows(self, step: int) -> bool:
        """Only some do: pictures are large."""
        return step == 1 or step % frame_distance(step) == 0

    def shown(self, leaves: Leaves, k: int, *, coarse: bool) -> dict[str, Any]:
        """Candidate k's pictures and labels, as fields of a progress (rounded) or recovery."""
        pictures_BCHW = self.model.pictures(self.pixels(leaves)[k]).clamp(0, 1).cpu()
        labels_B = self._label_logits(leaves)[k].argmax(-1) if self.labels_KB is None else self.labels_KB[k]
        if coarse:
            pictures_BCHW = pictures_BCHW.double().round(decimals=_DECIMALS)
        return {
            "image": tuple(pictures_BCHW.permute(0, 2, 3, 1).tolist()),
            "labels": tuple(labels_B.tolist()),
        }

    def others(self, leaves: Leaves) -> tuple[Tokens, ...]:
        """None: candidates' pictures aren't kept."""
        del leaves
        return ()


def with_statistics(
    model: ImageModel, losses: ModelFunction, prior: Callable[[Leaves, Statistics | None], Tensor]
) -> tuple[ModelFunction, ModelFunction]:
    """A model function, and a prior on the same leaves that is told what batch norms have read on the way.

    Args:
        model: that the losses run.
        losses: of candidates, (K,).
        prior: (K,) of leaves, and the statistics that a run on the same ones has seen; None where none was.
    """
    noted: list[tuple[Leaves, Statistics]] = []

    def noting(some: Leaves) -> Tensor:
        with model.noting_statistics() as statistics:
            noted.append((some, statistics))
            return losses(some)

    def told(some: Leaves) -> Tensor:
        own = next((statistics for leaves, statistics in noted if leaves is some), None)
        noted.clear()
        return prior(some, own)

    return noting, told


def numbers_determined(model: ImageModel, names: Iterable[str], batch_size: int) -> int:
    """How many numbers of a batch the shared gradients can determine, at most.

    A weight (O, I) that is used N times has a gradient of rank N at most, so of at most N (O + I − N) numbers, and
    never of more than O I. Of the head's, only the N inputs count: its outputs' gradients follow from these.
    """
    wanted, found = set(names), 0
    uses: dict[str, int] = {}
    for call in model.layer_calls():
        used = batch_size * call.given.numel() // len(call.layer.weight)
        uses[call.name] = uses.get(call.name, 0) + used
    head = next(reversed(uses), "")
    for name, parameter in model.parameters.items():
        layer = name.rpartition(".")[0]
        if name not in wanted or (layer == head and parameter.dim() == 1):
            continue
        numbers = parameter.numel()
        if parameter.dim() >= 2 and layer in uses:
            rows, columns = len(parameter), numbers // len(parameter)
            rank = min(uses[layer], rows, columns)
            numbers = min(numbers, rank * (columns if layer == head else rows + columns - rank))
        found += numbers
    return found


def _apart(own_KC: tuple[Tensor, Tensor], known_C: tuple[Sequence[float], Sequence[float]]) -> Tensor:
    """Mean squared difference of means and of variances from the known ones, in units of these variances: (K,)."""
    mean_C, variance_C = (own_KC[0].new_tensor(values) for values in known_C)
    scale_C = variance_C.clamp_min(1e-6 * float(variance_C.max()) + torch.finfo(variance_C.dtype).tiny)
    means_K = ((own_KC[0] - mean_C).square() / scale_C).mean(1)
    variances_K = ((own_KC[1] - variance_C) / scale_C).square().mean(1)
    return means_K + variances_K


def frame_distance(step: int) -> int:
    """Steps from one picture of a run to the next, around this step."""
    distance: int = _FRAMES << (step // (40 * _FRAMES)).bit_length()
    return distance


def total_variation(x_KCHW: Tensor) -> Tensor:
    """Mean absolute difference of neighbors to the right plus that of neighbors below: (K,)."""
    across_K = x_KCHW.diff(dim=3).abs().mean((1, 2, 3))
    down_K = x_KCHW.diff(dim=2).abs().mean((1, 2, 3))
    return across_K + down_K


def roughness(pictures_KCHW: Tensor) -> Tensor:
    """Mean length of the color's difference to the right plus that of the one below, nearly: smooth at 0; (K,)."""
    lengths = [
        ((pictures_KCHW.diff(dim=dim).square().sum(1) + _FAINT**2).sqrt() - _FAINT).mean((1, 2))
        for dim in (3, 2)
    ]
    return lengths[0] + lengths[1]
