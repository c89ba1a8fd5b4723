"""Train mode: dropout as the model's configuration has it, which is how training runs unless told otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import Tensor, nn

from textleak.clients.base import CLIENTS, EVERY_TRAIT, Client
from textleak.models.base import Examples, Model
from textleak.shared.traits import Trait

_NORMS = (nn.modules.batchnorm._NormBase,)


@CLIENTS.register("train-mode")
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainMode(Client):
    """Dropout on, its masks drawn by the client; batch norms stay as they are (`batch-norm-train` changes them)."""

    name: ClassVar[str]

    def running(self, batch: Examples) -> Examples:
        """The batch, with dropout while the network runs on it."""
        return _InTrainMode(batch)

    def proxy(self) -> Client:
        """Nothing dropped, which is what it does on average."""
        return Client()

    def traits(self, model: Model) -> frozenset[Trait]:
        """Masks are drawn, and inputs of layers are dropped; a model without dropout is the same in train mode."""
        return EVERY_TRAIT - ({Trait.REPEATABLE, Trait.IN_SPAN} if drops(model.network) else set())


@dataclasses.dataclass(frozen=True)
class _InTrainMode:
    """A batch that the network is in train mode for."""

    batch: Examples

    def __len__(self) -> int:
        return len(self.batch)

    def only(self, rows: slice) -> _InTrainMode:
        return _InTrainMode(self.batch.only(rows))

    def loss(self, model: Model) -> Tensor:
        with training(model.network):
            return self.batch.loss(model)


@contextmanager
def training(network: nn.Module) -> Iterator[None]:
    """Have a network drop for a while; batch norms aside, and every module as it was afterwards."""
    before = {module: module.training for module in network.modules()}
    try:
        for module in before:
            module.training = not isinstance(module, _NORMS)
        yield
    finally:
        for module, was in before.items():
            module.training = was


def drops(network: nn.Module) -> bool:
    """Whether anything is dropped in train mode: by dropout modules, or by rates that modules apply themselves."""
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in network.modules()):
        return True
    config = getattr(network, "config", None)
    rates = [value for key, value in vars(config).items() if "drop" in key] if config is not None else []
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
