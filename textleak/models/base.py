"""What every public model and every batch have in common, whatever the batch is made of.

Client and server ask the same question of both: which gradient does this batch have on this model?
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from textleak.shared.public import PublicModel

Weights = Literal["pretrained", "random"]

Tensors = dict[str, Tensor]
"""Tensors by parameter name."""


class Modality(enum.Enum):
    """What a model reads."""

    TEXT = "text"
    PICTURES = "pictures"


class Model(Protocol):
    """A public model as both sides see it: frozen, in eval mode unless a client's procedure says otherwise."""

    modality: ClassVar[Modality]

    @property
    def name(self) -> str:
        """As it was asked for."""

    @property
    def task(self) -> str:
        """What the loss is."""

    @property
    def weights(self) -> str:
        """Whether the weights are "pretrained" or "random"."""

    @property
    def source(self) -> str:
        """Where the weights came from, in words."""

    @property
    def weights_seed(self) -> int:
        """Seed of the weights that were drawn."""

    @property
    def fingerprint(self) -> str:
        """Hash of the parameters."""

    @property
    def network(self) -> nn.Module:
        """The network itself."""

    @property
    def num_labels(self) -> int | None:
        """Classes of a classification head; None where labels are the tokens."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Every parameter by name."""

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that training moves."""

    @property
    def embedding_names(self) -> frozenset[str]:
        """Parameters of every embedding and output head over the vocabulary."""

    @property
    def attention_names(self) -> frozenset[str]:
        """Query, key and value parameters."""

    def public(self) -> PublicModel:
        """What both sides need to know to load the same model."""

    def with_network(self, network: nn.Module) -> Self:
        """The same model around another network of the same kind."""

    def double(self) -> Self:
        """A copy in float64; on the CPU where the device has no float64."""

    def in_dtype(self, dtype: torch.dtype) -> Self:
        """A copy in another precision."""


M = TypeVar("M", bound=Model)


class Examples(Protocol):
    """A batch that a loss can be taken of."""

    def __len__(self) -> int:
        """Samples in the batch, B."""

    def only(self, rows: slice) -> Self:
        """Some of the samples as a batch of their own: the loss is the mean over these."""

    def loss(self, model: Model) -> Tensor:
        """What training takes the gradient of, a scalar."""
