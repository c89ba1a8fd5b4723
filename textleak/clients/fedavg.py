"""Federated averaging: some optimizer steps on the client's own data; what moved is sent (McMahan et al. 2017)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from textleak.clients.base import CLIENTS, EVERY_TRAIT, Client, GradientOf
from textleak.errors import InputError
from textleak.models.base import Examples, Model, Tensors
from textleak.models.copies import copy_of
from textleak.numerics import exact, grid_step
from textleak.shared.effects import Bounds
from textleak.shared.traits import Trait

# Of a client, and of one that a file tells of: replaying it takes as long as training (our choice; clients of federated
# learning take tens to hundreds).
MOST_STEPS = 1000
# Rounding in float32 of the step itself, relative: a few operations (our choice; 4 units).
_STEP_ROUNDING = 5e-7
_Count = Annotated[int, Field(ge=1, le=MOST_STEPS)]
_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Part = Annotated[float, Field(ge=0, lt=1)]


@CLIENTS.register("fedavg")
@dataclasses.dataclass(frozen=True, kw_only=True)
class FedAvg(Client):
    """Steps of SGD or AdamW, as torch has them, on the batch in its order; the weights or their difference leave.

    Attributes:
        optimizer: "sgd" or "adamw".
        lr: learning rate; None for 1e-2 with sgd and 5e-5 with adamw.
        steps: of the optimizer; None for one pass over the data, or as many as `epochs`.
        epochs: passes over the data; not together with steps.
        batch_size: samples of a step, taken in order and begun again at the end; None for all of them.
        max_grad_norm: each step's gradient is clipped to this norm first; None for no clipping.
        momentum: of sgd.
        beta1, beta2, eps: of adamw.
        weight_decay: of either.
        share: "update" for the weights' difference, "weights" for the weights after the last step.
    """

    name: ClassVar[str]

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: _Rate | None = None
    steps: _Count | None = None
    epochs: _Count | None = None
    batch_size: Annotated[int, Field(ge=1)] | None = None
    max_grad_norm: _Rate | None = None
    momentum: _Part = 0.0
    beta1: _Part = 0.9
    beta2: _Part = 0.999
    eps: _Rate = 1e-8
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    share: Literal["update", "weights"] = "update"

    def __post_init__(self) -> None:
        """Check what contradicts itself."""
        if self.steps is not None and self.epochs is not None:
            raise InputError(
                f"fedavg was given steps={self.steps} and epochs={self.epochs}.",
                why="Either says how long the client trains.",
                fix="Keep one of them.",
            )

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.lr or (1e-2 if self.optimizer == "sgd" else 5e-5)  # AdamW: Hugging Face TrainingArguments

    @property
    def _single(self) -> bool:
        """Whether it is one step, whatever the batch."""
        whole = self.batch_size is None and self.epochs in (None, 1)
        return self.steps == 1 or (self.steps is None and whole)

    def step_batches(self, batch: Examples) -> Iterator[Examples]:
        """What each step is taken on."""
        for rows in self._step_rows(len(batch)):
            yield batch.only(slice(rows.start, rows.stop))

    def _step_rows(self, samples: int) -> Iterator[range]:
        """Which of so many samples each step is taken on."""
        size = min(self.batch_size or samples, samples)
        starts = range(0, samples, size)
        count = self.steps or (self.epochs or 1) * len(starts)
        if count > MOST_STEPS:
            raise InputError(
                f"fedavg would take {count:,} steps on a batch of {samples:,}.",
                why=f"No more than {MOST_STEPS:,} are taken, as an attack takes them again for each guess.",
                fix="Give fewer epochs, or a larger fedavg:batch_size.",
            )
        for step in range(count):
            start = starts[step % len(starts)]
            yield range(start, min(start + size, samples))

    def taken(self, samples: int) -> int:
        """Those of all steps."""
        return sum(map(len, self._step_rows(samples)))

    def update(
        self, model: Model, batch: Examples, gradient_of: GradientOf, draws: torch.Generator
    ) -> Tensors:
        """The weights' difference after the local steps, or the weights."""
        del draws
        parts = list(self.step_batches(batch))
        first = gradient_of(model, parts[0])
        local = model.with_network(copy_of(model.network)) if len(parts) > 1 else model
        moved = {name: local.parameters[name] for name in first}
        if local is model:  # one step needs no network of its own
            moved = {name: nn.Parameter(p.detach().clone(), requires_grad=False) for name, p in moved.items()}
        before = {name: parameter.detach().clone() for name, parameter in moved.items()}
        optimizer = self._optimizer(list(moved.values()))
        for number, part in enumerate(parts):
            gradient = first if number == 0 else gradient_of(local, part)
            for name, parameter in moved.items():
                parameter.grad = gradient[name]
            if self.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(list(moved.values()), self.max_grad_norm)
            optimizer.step()
        after = {name: parameter.detach() for name, parameter in moved.items()}
        if self.share == "weights":
            return after
        return {name: after[name] - before[name] for name in after}

    def _optimizer(self, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, lr=self.rate, momentum=self.momentum, weight_decay=self.weight_decay
            )
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(
            parameters, lr=self.rate, betas=betas, eps=self.eps, weight_decay=self.weight_decay
        )

    def proxy(self) -> FedAvg:
        """Its first step on all of the data, unclipped: later ones go nearly the same way."""
        return dataclasses.replace(
            self, steps=1, epochs=None, batch_size=None, max_grad_norm=None, momentum=0.0
        )

    def trained(self, model: Model, shared: Sequence[str]) -> Sequence[str]:
        """All that is trained: later steps and clipping depend on it."""
        return shared if self._single and self.max_grad_norm is None else model.trainable

    def in_turn(self, samples: int) -> bool:
        """Where a step takes fewer."""
        return self.batch_size is not None and self.batch_size < samples

    def as_gradient(self, sent: Tensors, model: Model) -> Tensors:
        """The mean gradient of the steps, as far as the update shows it: SGD's without its decay, which fills spans."""
        moved = {
            name: value - model.parameters[name].detach() if self.share == "weights" else value
            for name, value in sent.items()
        }
        shrunk = self._shrunk()
        if shrunk:
            moved = {name: _grown(value, model.parameters[name], shrunk) for name, value in moved.items()}
        return {name: -value / self.rate for name, value in moved.items()}

    def _shrunk(self) -> float:
        """By which part SGD's steps shrink weights, whatever the batch; 0 where that depends on it."""
        steps = 1 if self._single else self.steps
        if self.optimizer != "sgd" or steps is None or (self.momentum and steps > 1):
            return 0.0
        return 1.0 - (1.0 - self.rate * self.weight_decay) ** steps

    def bounds(self, gradient: Tensors, model: Model) -> Bounds | None:
        """From fresh moments AdamW's step is lr · g / (|g| + eps), which tells |g| where the weight's rounding allows.

        SGD's is lr · g, up to that rounding. A gradient that was clipped, or only part of it shared, is so up to the
        factor of clipping.
        """
        if not self._single:
            return None
        return {name: self._before_step(value, model.parameters[name]) for name, value in gradient.items()}

    def _before_step(self, step: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds of a tensor's gradient, given the weights' difference over −lr."""
        decayed = exact(weight.detach() * (1 - self.rate * self.weight_decay))
        began = decayed if self.optimizer == "sgd" else exact(weight.detach())  # as `as_gradient` has it
        after = began - self.rate * exact(step).to(decayed.device)
        part = (decayed - after) / self.rate
        unit = grid_step(torch.maximum(decayed.abs(), after.abs()), weight.dtype)
        # The weight is rounded to the nearest value after the step; where it decays, a fused kernel's may be one off.
        off, size = (1.0 if self.weight_decay else 0.5) * unit / self.rate, part.abs()
        if self.optimizer == "sgd":
            off = off + _STEP_ROUNDING * size
            return part - off, part + off
        off = off + _STEP_ROUNDING
        least = self.eps * (size - off).clamp_min(0) / (1 - size + off).clamp_min(off)
        most = torch.where(size + off < 1, self.eps * (size + off) / (1 - size - off), math.inf)
        least = torch.where(size > off, least, -most)  # of which sign it is doesn't show
        return torch.where(part >= 0, least, -most), torch.where(part >= 0, most, -least)

    def traits(self, model: Model) -> frozenset[Trait]:
        """One step of plain SGD is a gradient; clipping hides its scale, more steps move the weights."""
        del model
        lost: set[Trait] = set()
        if self.max_grad_norm is not None:
            lost |= {Trait.SCALED}
        if not self._single:
            lost |= {Trait.ONE_POINT, Trait.ADDITIVE, Trait.IN_SPAN, Trait.SCALED}
        if self.optimizer == "adamw" or self.momentum:
            lost |= {Trait.SCALED}
        if self.optimizer == "adamw":
            lost |= {Trait.ADDITIVE, Trait.IN_SPAN}
        return EVERY_TRAIT - lost


def _grown(moved: Tensor, weight: Tensor, shrunk: float) -> Tensor:
    """What a weight's decay has not moved of it; nothing where rounding alone may have."""
    if not bool(moved.any()):
        return moved
    before, whole = exact(weight.detach()).to(moved.device), exact(moved)
    left = whole + shrunk * before
    unit = grid_step(torch.maximum(before.abs(), (before + whole).abs()), weight.dtype)
    return torch.where(left.abs() > unit, left, torch.zeros_like(left)).to(moved)
