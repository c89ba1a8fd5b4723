"""Batch norms in train mode: each batch is normalized by its own mean and variance."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from textleak.clients.base import CLIENTS, EVERY_TRAIT, Client
from textleak.errors import InputError
from textleak.models.base import M, Modality, Model
from textleak.models.copies import copy_of
from textleak.models.networks import has_batch_norm, with_batch_statistics
from textleak.shared.traits import Trait


@CLIENTS.register("batch-norm-train")
@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchNormTrain(Client):
    """Batch norms use the batch's own statistics, as in training; the samples of a batch are then coupled."""

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.PICTURES})

    def prepare(self, model: M) -> M:
        """The model with batch norms that read the batch.

        Raises:
            InputError: the model has none.
        """
        if not has_batch_norm(model.network):
            raise InputError(
                f"{model.name} has no batch norm.",
                why="There is nothing that batch-norm-train would change.",
                fix="Leave it out, or choose a network with batch norms, such as resnet20.",
            )
        kept = {id(parameter): parameter for parameter in model.network.parameters()}
        network = copy_of(model.network, kept)
        with_batch_statistics(network)
        return model.with_network(network)

    def traits(self, model: Model) -> frozenset[Trait]:
        """A sample's part depends on the others of its batch."""
        del model
        return EVERY_TRAIT - {Trait.ADDITIVE}
