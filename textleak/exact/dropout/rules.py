"""Where a client drops entries of what the first layers read, and what each entry can be then.

- After the norm (BERT and its kin): the layer reads m∘x / (1 − p), with x public for a token and a position, and m the
  mask of one occurrence. So a vector of the span has entries of x / (1 − p), and zeros.
  Under autocast the layer reads these rounded to a short type.
- Before the norm (GPT-2): the layer reads g (m∘e − mean) / deviation + b, with e the sum of token and position. So m∘e
  is a combination of vectors of the span, of b, and of ones, each over g: two unknowns more, and as linear.

Shapes: N tokens, V vocabulary, I the layer's input size, R rank of the span, K columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from textleak.clients.view import View
from textleak.models import TextModel
from textleak.models.probes.additive import AdditiveInputs, additive_inputs
from textleak.models.probes.dropped import treated
from textleak.models.probes.layers import LocalLayer, layer_inputs
from textleak.numerics import exact


class Dropped(Protocol):
    """A way in which inputs are dropped.

    Attributes:
        rate: how often an entry is.
    """

    @property
    def rate(self) -> float:
        """How often an entry is dropped."""

    def parts(self, ids_N: Tensor, position: int) -> Tensor:
        """What entries are where they aren't dropped, for tokens (`TextModel.marked`) at a position: (N, I)."""

    def along(self, directions_KI: Tensor) -> Callable[[int], Tensor] | None:
        """For a position the products of all tokens' `parts`, up to a factor, with directions, (V, K)."""

    def columns(self, basis_IR: Tensor) -> Tensor:
        """What makes vectors that are compared with `parts`, (I, K): of each direction first, then of anything else."""

    def read(self, token: int, position: int, kept_I: Tensor) -> Tensor:
        """What the layer reads of a token with a mask, (I,) in float64."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AfterNorm:
    """Entries of the layer's input are dropped, or what they would be without dropout over 1 − rate.

    Attributes:
        model: the public model.
        layer: a local layer.
        made: how its input is made of token and position; None where that isn't known.
        dtype: the short type in which it is read; None for the model's own.
    """

    model: TextModel
    layer: LocalLayer
    made: AdditiveInputs | None
    rate: float
    dtype: torch.dtype | None = None

    def parts(self, ids_N: Tensor, position: int) -> Tensor:
        """See `Dropped`."""
        if self.made is not None:
            inputs_NI = self.made.at(ids_N, position)
        else:
            rows = self.model.read_marked(ids_N[:, None].expand(-1, position + 1))
            inputs_NI = layer_inputs(self.model, rows, [self.layer.name])[self.layer.name][:, -1]
        kept_NI = exact(inputs_NI).cpu() / (1 - self.rate)
        return kept_NI if self.dtype is None else exact(kept_NI.to(self.dtype))

    def along(self, directions_KI: Tensor) -> Callable[[int], Tensor] | None:
        """See `Dropped`."""
        return None if self.made is None else self.made.along(directions_KI)

    def columns(self, basis_IR: Tensor) -> Tensor:
        """See `Dropped`."""
        return basis_IR

    def read(self, token: int, position: int, kept_I: Tensor) -> Tensor:
        """See `Dropped`."""
        ids_1 = torch.tensor([token], device=self.model.device)
        return self.parts(ids_1, position)[0].where(kept_I, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BeforeNorm:
    """Entries of the norm's input are dropped, or what they would be without dropout over 1 − rate.

    Attributes:
        made: how the layer's input is made of token and position.
    """

    made: AdditiveInputs
    rate: float

    def parts(self, ids_N: Tensor, position: int) -> Tensor:
        """See `Dropped`; whatever factor they have is the norm's."""
        return exact(self.made.before_norm(ids_N, position).detach()).cpu()

    def along(self, directions_KI: Tensor) -> Callable[[int], Tensor] | None:
        """See `Dropped`."""
        tokens_VK, places = self.made.tokens_VI.detach() @ directions_KI.T, self.made.places
        return lambda position: tokens_VK + places.first(position + 1)[position].detach() @ directions_KI.T

    def columns(self, basis_IR: Tensor) -> Tensor:
        """See `Dropped`."""
        gain_I, bias_I = self._affine()
        more = [torch.ones_like(gain_I)] if self.made.centered else []
        if bool(bias_I.any()):
            more.append(bias_I / gain_I)
        return torch.stack([*(basis_IR / gain_I[:, None]).T, *more], 1)

    def read(self, token: int, position: int, kept_I: Tensor) -> Tensor:
        """See `Dropped`."""
        ids_1 = torch.tensor([token], device=self.made.tokens_VI.device)
        values_I = self.parts(ids_1, position)[0].where(kept_I, 0.0) / (1 - self.rate)
        values_I = values_I - values_I.mean() if self.made.centered else values_I
        gain_I, bias_I = self._affine()
        return values_I / (values_I.square().mean() + self.made.eps).sqrt() * gain_I + bias_I

    def _affine(self) -> tuple[Tensor, Tensor]:
        norm = self.made.norm
        gain, bias = norm.weight, getattr(norm, "bias", None)
        assert isinstance(gain, Tensor)
        gain_I = exact(gain.detach()).cpu()
        return gain_I, exact(bias.detach()).cpu() if isinstance(bias, Tensor) else torch.zeros_like(gain_I)


def dropped_by(view: View, layer: LocalLayer) -> Dropped | None:
    """How the client drops entries of what a local layer reads, told by running it; None where it's done otherwise.

    Args:
        view: what the server sees.
        layer: a local layer.
    """
    model, made = view.text_model, additive_inputs(view.text_model, layer)
    after = treated(model, layer.name, view.client.running)
    if after is not None:
        return AfterNorm(model=model, layer=layer, made=made, rate=after.rate, dtype=after.dtype)
    if made is None:
        return None
    name = next(name for name, module in model.network.named_modules() if module is made.norm)
    before = treated(model, name, view.client.running)
    # What a short type rounds after the norm is no combination of what was dropped before it.
    return None if before is None or before.dtype is not None else BeforeNorm(made=made, rate=before.rate)
