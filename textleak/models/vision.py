"""An image classifier as client and attacker both see it: pixels in, losses out.

Pixels are what the network reads: a picture's values, 0 to 1, less the model's mean and over its deviation.

Shapes: K candidates, B pictures in the client's batch, C color channels, H and W height and width, L classes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from textleak.matching.hooks import hooked
from textleak.models.base import Modality, Model, Weights
from textleak.models.batches import Targets
from textleak.models.copies import copy_of
from textleak.models.identity import attends, fingerprint_of, public_model
from textleak.models.networks import BatchStatisticsNorm, made_by
from textleak.models.targets import check_labels
from textleak.shared.public import PublicModel

ImageTask = Literal["image-classification"]

Statistics = dict[str, tuple[Tensor, Tensor]]
"""Mean and variance, (K, C) each, of what a batch norm reads, by its path in the network."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LayerCall:
    """One call of a convolution or linear layer.

    Attributes:
        name: the layer's path in the network.
        layer: the layer.
        read: shape of its input.
        given: shape of its output.
    """

    name: str
    layer: nn.Conv2d | nn.Linear
    read: torch.Size
    given: torch.Size


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PictureExamples:
    """Pictures as the network reads them, and what their loss is taken against.

    Attributes:
        pixels_BCHW: as `ImageModel.normalized` gives them.
        targets: labels and weights, (B, 1).
    """

    pixels_BCHW: Tensor
    targets: Targets

    def __len__(self) -> int:
        """B."""
        return len(self.pixels_BCHW)

    def only(self, rows: slice) -> PictureExamples:
        """Some of the pictures; the loss is the mean over these."""
        weights = self.targets.weights[rows]
        return PictureExamples(
            pixels_BCHW=self.pixels_BCHW[rows],
            targets=Targets(labels=self.targets.labels[rows], weights=weights / weights.sum()),
        )

    def loss(self, model: Model) -> Tensor:
        """The batch's loss on an image model, a scalar."""
        assert isinstance(model, ImageModel)
        return model.loss(self.pixels_BCHW[None], self.targets.expand(1)).sum()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageModel:
    """A public image classifier; frozen, and nothing here changes it.

    Attributes:
        name: alias with its options, hub id or folder as it was asked for.
        network: takes pixels (N, C, H, W) and gives logits (N, L), or an output that has them.
        weights: "pretrained" or "random".
        source: where the weights came from, in words.
        weights_seed: seed of the weights that were drawn.
        num_labels: L.
        shape: C, H and W.
        mean: taken off each channel of a picture before the network reads it.
        deviation: what each channel is divided by after that.
    """

    modality: ClassVar[Modality] = Modality.PICTURES

    name: str
    network: nn.Module
    weights: Weights
    source: str
    weights_seed: int = 0
    num_labels: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    task: ImageTask = "image-classification"

    def __post_init__(self) -> None:
        """Freeze the network."""
        self.network.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(iter(self.parameters.values())).dtype

    @property
    def loss_dtype(self) -> torch.dtype:
        """Type that losses are computed in: the weights', but at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def numbers(self) -> int:
        """How many numbers one picture is."""
        channels, height, width = self.shape
        return channels * height * width

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name."""
        return dict(self.network.named_parameters())

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that training moves: all."""
        return tuple(self.parameters)

    @property
    def embedding_names(self) -> frozenset[str]:
        """None: pixels are looked up nowhere."""
        return frozenset()

    @cached_property
    def attention_names(self) -> frozenset[str]:
        """Query, key and value weights and biases."""
        modules: dict[str, nn.Module] = dict(self.network.named_modules())
        return frozenset(
            f"{path}.{name}"
            for path, module in modules.items()
            if attends(path.rpartition(".")[2])
            for name, _ in module.named_parameters(recurse=False)
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every parameter's name, shape and a sample of its values."""
        return fingerprint_of(self.parameters)

    def public(self) -> PublicModel:
        """What both sides need to know to load the same model."""
        return public_model(self, picture=self.shape)

    # Pictures and pixels

    def normalized(self, pictures: Tensor) -> Tensor:
        """Pictures (..., C, H, W) of values 0 to 1 as the network reads them."""
        mean_C11, deviation_C11 = self._scales(pictures)
        return (pictures - mean_C11) / deviation_C11

    def pictures(self, pixels: Tensor) -> Tensor:
        """The reverse of `normalized`; values beyond 0 and 1 stay."""
        mean_C11, deviation_C11 = self._scales(pixels)
        return pixels * deviation_C11 + mean_C11

    def _scales(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.mean)[:, None, None], like.new_tensor(self.deviation)[:, None, None]

    def targets(self, labels: Sequence[int]) -> Targets:
        """What training takes the loss of a batch against: the mean of the cross entropies.

        Raises:
            InputError: a label that isn't one of the classes.
        """
        check_labels(labels, self.num_labels, self.name)
        labels_B1 = torch.tensor(list(labels), device=self.device)[:, None]
        weights_B1 = torch.full(labels_B1.shape, 1 / len(labels), device=self.device, dtype=self.loss_dtype)
        return Targets(labels=labels_B1, weights=weights_B1)

    # Losses

    def logits(self, pixels_NCHW: Tensor) -> Tensor:
        """(N, L), in the type that losses are computed in; pixels of any type."""
        output: Any = self.network(pixels_NCHW.to(self.dtype))
        logits_NL: Tensor = output if isinstance(output, Tensor) else output.logits
        return logits_NL.to(self.loss_dtype)

    def loss(self, pixels_KBCHW: Tensor, targets: Targets) -> Tensor:
        """The loss of K candidates, each what a client with its B pictures would have: (K,).

        Args:
            pixels_KBCHW: as `normalized` gives them.
            targets: labels (K, B, 1) or probabilities (K, B, 1, L), weights (K, B, 1).
        """
        K, B = pixels_KBCHW.shape[:2]
        for module in self._batch_norms.values():
            module.samples = B
        pixels_NCHW = pixels_KBCHW.flatten(0, 1)
        if K == 1 < B and self.device.type == "cpu" and self.dtype == torch.float32:
            # The order in memory that oneDNN is fastest in, and that every layer keeps to. Candidates side by side are
            # faster in torch's own, and a single picture isn't oneDNN's.
            pixels_NCHW = pixels_NCHW.contiguous(memory_format=torch.channels_last)
        logits_KBL = self.logits(pixels_NCHW).view(K, B, -1)
        log_KBL = logits_KBL.log_softmax(-1)
        if targets.soft:
            losses_KB = -(targets.labels[:, :, 0] * log_KBL).sum(-1)
        else:
            losses_KB = -log_KBL.gather(2, targets.labels).squeeze(2)
        total_K: Tensor = (losses_KB * targets.weights[:, :, 0]).sum(1)
        return total_K

    def layer_calls(self) -> list[LayerCall]:
        """What each convolution and linear layer reads and gives for one picture, in the order of the calls."""
        calls: list[LayerCall] = []

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                assert isinstance(module, nn.Conv2d | nn.Linear)
                calls.append(LayerCall(name=name, layer=module, read=inputs[0].shape, given=output.shape))

            return hook

        handles = [
            module.register_forward_hook(keep(name))
            for name, module in self.network.named_modules()
            if isinstance(module, nn.Conv2d | nn.Linear)
        ]
        for batch_norm in self._batch_norms.values():
            batch_norm.samples = 1  # whatever the batch was that the network read last
        with hooked(handles), torch.no_grad():
            self.logits(torch.zeros(1, *self.shape, device=self.device, dtype=self.dtype))
        return calls

    @cached_property
    def multiplications(self) -> int:
        """Of one picture's forward pass, in convolutions and linear layers."""
        return sum(call.given.numel() * call.layer.weight[0].numel() for call in self.layer_calls())

    @cached_property
    def _batch_norms(self) -> dict[str, BatchStatisticsNorm]:
        return {
            name: module
            for name, module in self.network.named_modules()
            if isinstance(module, BatchStatisticsNorm)
        }

    def batch_statistics(self, pixels_KBCHW: Tensor) -> Statistics:
        """Mean and variance (K, C) of what each batch norm reads of K batches, differentiable in their pixels.

        Empty for a network whose batch norms don't use the batch's own.
        """
        with self.noting_statistics() as noted:
            if self._batch_norms:
                for module in self._batch_norms.values():
                    module.samples = pixels_KBCHW.shape[1]
                self.logits(pixels_KBCHW.flatten(0, 1))
        return noted

    @contextmanager
    def noting_statistics(self) -> Iterator[Statistics]:
        """Note the `batch_statistics` of whatever the network reads meanwhile, the latest of each batch norm."""
        noted: Statistics = {}

        def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
                made = made_by(output)
                noted[name] = made.mean_KC, made.variance_KC

            return hook

        handles = [module.register_forward_hook(keep(name)) for name, module in self._batch_norms.items()]
        with hooked(handles):
            yield noted

    def double(self) -> Self:
        """A copy in float64; on the CPU where the device has no float64. Itself if it is that."""
        return self.in_dtype(torch.float64)

    def in_dtype(self, dtype: torch.dtype) -> Self:
        """A copy in another precision, float64 on the CPU where the device has none. Itself if it is in that."""
        if self.dtype == dtype:
            return self
        capable = self.device.type != "mps" or dtype != torch.float64
        device = self.device if capable else torch.device("cpu")
        return self.with_network(copy_of(self.network).to(device=device, dtype=dtype))

    def with_network(self, network: nn.Module) -> Self:
        """The same model around another network of the same kind."""
        return dataclasses.replace(self, network=network)
