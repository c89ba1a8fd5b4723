"""A batch of which one picture is changed and the others are held: their part in each batch norm is a few sums.

In train mode a batch norm ties the pictures of a batch by its statistics, and by two sums of gradients on the way back.
Held, the others keep what they read and what is passed back to them: their part of the statistics is constant, and
what their loss gains as the statistics move counts to first order. A run of the network on the one picture is then
all that it takes; it is exact where this is the batch's own, and nearly so where the batch's statistics hardly move.

Shapes: K candidates for the one picture, B pictures in the batch, C color channels, H and W height and width.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textleak.matching.factored import requiring_grad
from textleak.matching.hooks import hooked
from textleak.models.batches import Targets
from textleak.models.copies import copy_of
from textleak.models.networks import BatchStatisticsNorm, MadeBy, told
from textleak.models.vision import ImageModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What pictures have in a batch norm: of what it reads (x) and of the loss's gradient at what it gives (g).

    Attributes:
        count: of places in all these pictures.
        mean_C: of x; what follows is taken about it, as float32 would cancel.
        spread_C: Σ (x − mean)².
        passed_C: Σ g.
        along_C: Σ g (x − mean).
    """

    count: int
    mean_C: Tensor
    spread_C: Tensor
    passed_C: Tensor
    along_C: Tensor

    @classmethod
    def of(cls, x_CHW: Tensor, g_CHW: Tensor) -> Part:
        """That of one picture."""
        mean_C = x_CHW.mean((1, 2))
        apart_CHW = x_CHW - mean_C[:, None, None]
        return cls(
            count=x_CHW[0].numel(),
            mean_C=mean_C,
            spread_C=apart_CHW.square().sum((1, 2)),
            passed_C=g_CHW.sum((1, 2)),
            along_C=(g_CHW * apart_CHW).sum((1, 2)),
        )

    def with_(self, other: Part) -> Part:
        """That of all pictures of both (Chan, Golub & LeVeque 1979)."""
        count = self.count + other.count
        mean_C = (self.count * self.mean_C + other.count * other.mean_C) / count
        apart_C = (self.mean_C - other.mean_C).square() * (self.count * other.count / count)

        def one_along(part: Part) -> Tensor:
            return part.along_C + (part.mean_C - mean_C) * part.passed_C

        return Part(
            count=count,
            mean_C=mean_C,
            spread_C=self.spread_C + other.spread_C + apart_C,
            passed_C=self.passed_C + other.passed_C,
            along_C=one_along(self) + one_along(other),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Held:
    """A batch's gradient, and what each picture has in each batch norm.

    Attributes:
        gradient: of every parameter.
        parts: by a batch norm's path, that of each picture.
    """

    gradient: dict[str, Tensor]
    parts: dict[str, list[Part]]


class NormBesideHeld(BatchStatisticsNorm):
    """Batch norm in train mode of a picture beside others, of which only sums are left; each row is a candidate.

    Args:
        norm: where weight, bias and epsilon come from.
        others: the part of all other pictures of the batch.
    """

    def __init__(self, norm: BatchStatisticsNorm, others: Part) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias, self.eps, self.samples = norm.weight, norm.bias, norm.eps, 1
        self.others = others
        self.gained_K: Tensor | None = None
        self.made: MadeBy | None = None

    def _statistics(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of the batch's channels with each candidate in it, (K, C) each."""
        others, places = self.others, x_NCHW.shape[2] * x_NCHW.shape[3]
        count = others.count + places
        own_KC11 = x_NCHW.mean((2, 3), keepdim=True)
        spread_KC = (x_NCHW - own_KC11).square().sum((2, 3))
        apart_KC = own_KC11.flatten(1) - others.mean_C
        mean_KC = others.mean_C + apart_KC * (places / count)
        between_KC = apart_KC.square() * (others.count * places / count)
        return mean_KC, (others.spread_C + spread_KC + between_KC) / count

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """What the candidates become; `gained_K` is then what the others' loss gains, to first order."""
        mean_KC, variance_KC = self._statistics(x_NCHW)
        scale_KC = (variance_KC + self.eps).rsqrt()
        moved_KC = mean_KC - self.others.mean_C
        along_KC = scale_KC * (self.others.along_C - moved_KC * self.others.passed_C)
        self.gained_K = along_KC @ self.weight.detach()
        factor_KC = scale_KC * self.weight
        shift_KC = self.bias - mean_KC * factor_KC
        output = torch.addcmul(shift_KC[:, :, None, None], x_NCHW, factor_KC[:, :, None, None])
        self.made = MadeBy(self.weight, self.bias, mean_KC, variance_KC)
        return told(output, self.made)


def held_at(model: ImageModel, pixels_BCHW: Tensor, targets: Targets) -> Held:
    """A batch's gradient and parts.

    Args:
        model: with batch norms in train mode.
        pixels_BCHW: as the network reads them.
        targets: labels and weights (B, 1).
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, read: Tensor, given: Tensor) -> Tensor:
        seen[name] = read, given
        return given.clone()  # some networks change it in place

    handles = [
        norm.register_forward_hook(lambda _, read, given, name=name: keep(name, read[0], given))
        for name, norm in _norms(model).items()
    ]
    own = model.parameters
    with hooked(handles), torch.enable_grad(), requiring_grad(own.values()):
        loss = model.loss(pixels_BCHW[None].detach(), targets.expand(1)).sum()
        wanted = [*own.values(), *(given for _, given in seen.values())]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return Held(
        gradient=dict(zip(own, found[: len(own)], strict=True)),
        parts={
            name: [Part.of(*one) for one in zip(read.detach(), passed, strict=True)]
            for (name, (read, _)), passed in zip(seen.items(), found[len(own) :], strict=True)
        },
    )


def beside(model: ImageModel, held: Held, b: int) -> ImageModel:
    """The model for candidates in the place of picture b: rows of a batch each of which is beside the others.

    Their loss is `loss_beside`.
    """
    network = copy_of(model.network, {id(parameter): parameter for parameter in model.network.parameters()})
    for name, norm in _norms(model.with_network(network)).items():
        others = [part for c, part in enumerate(held.parts[name]) if c != b]
        around, _, local = name.rpartition(".")
        setattr(
            network.get_submodule(around), local, NormBesideHeld(norm, functools.reduce(Part.with_, others))
        )
    return model.with_network(network)


def loss_beside(model: ImageModel, pixels_KCHW: Tensor, label: int, weight: float) -> Tensor:
    """The candidates' own part of the batch's loss, and what the others' gains of them to first order: (K,).

    Its gradient by a weight is the candidate's part of the batch's, by a candidate that of the batch's loss.

    Args:
        model: made by `beside`.
        pixels_KCHW: the candidates, as the network reads them.
        label: the picture's class.
        weight: of its cross entropy.
    """
    labels_K11 = torch.full((len(pixels_KCHW), 1, 1), label, device=pixels_KCHW.device)
    weights_K11 = torch.full_like(labels_K11, weight, dtype=model.loss_dtype)
    loss_K = model.loss(pixels_KCHW[:, None], Targets(labels=labels_K11, weights=weights_K11))
    for norm in _norms(model).values():
        assert isinstance(norm, NormBesideHeld)
        assert norm.gained_K is not None
        loss_K = loss_K + norm.gained_K
    return loss_K


def _norms(model: ImageModel) -> dict[str, BatchStatisticsNorm]:
    return {
        name: module
        for name, module in model.network.named_modules()
        if isinstance(module, BatchStatisticsNorm)
    }
