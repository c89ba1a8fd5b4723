"""The networks of the papers on pictures: LeNet as DLG has it, and the residual networks for CIFAR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from textleak.matching.batch_norm import batch_norm
from textleak.matching.convolution import one_after_the_other, side_by_side

# Zhu et al. 2019, released code: weights and biases of every layer are drawn from U(-0.5, 0.5).
_UNIFORM = 0.5

Activation = Callable[[], nn.Module]
ACTIVATIONS: dict[str, Activation] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}


class LeNet(nn.Module):
    """Three convolutions of 12 channels with sigmoids, and a linear head (Zhu et al. 2019, released code).

    Args:
        shape: channels, height and width of a picture.
        classes: of the head.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = shape
        self.body = nn.Sequential(
            nn.Conv2d(channels, 12, 5, padding=2, stride=2),
            nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, padding=2, stride=2),
            nn.Sigmoid(),
            nn.Conv2d(12, 12, 5, padding=2),
            nn.Sigmoid(),
        )
        self.fc = nn.Linear(12 * -(-height // 4) * -(-width // 4), classes)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Logits (N, classes)."""
        logits: Tensor = self.fc(self.body(pixels_NCHW).flatten(1))
        return logits


class _Block(nn.Module):
    """Two 3 × 3 convolutions around a short cut (He et al. 2016, fig. 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.activation = activation()
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.activation(self.norm1(self.conv1(x)))
        out: Tensor = self.activation(self.norm2(self.conv2(inner)) + self.shortcut(x))
        return out


class CifarResNet(nn.Module):
    """6n + 2 layers of 16, 32 and 64 channels (He et al. 2016, sec. 4.2), short cuts by 1 × 1 convolutions.

    Args:
        channels: of a picture.
        classes: of the head.
        blocks: n, blocks a stage: 3 for ResNet-20.
        activation: "relu", or "sigmoid" as DLG changes it.
        strides: whether the second and third stage halve height and width; DLG takes the strides out.
    """

    def __init__(self, channels: int, classes: int, *, blocks: int, activation: str, strides: bool) -> None:
        super().__init__()
        make = ACTIVATIONS[activation]
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.activation = make()
        stages: list[nn.Module] = []
        inputs = 16
        for stage, outputs in enumerate((16, 32, 64)):
            for block in range(blocks):
                stride = 2 if strides and stage > 0 and block == 0 else 1
                stages.append(_Block(inputs, outputs, stride, make))
                inputs = outputs
        self.blocks = nn.Sequential(*stages)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, pixels_NCHW: Tensor) -> Tensor:
        """Logits (N, classes)."""
        features_NCHW = self.blocks(self.activation(self.norm(self.conv(pixels_NCHW))))
        logits: Tensor = self.fc(features_NCHW.mean((2, 3)))
        return logits


def draw_uniformly(network: nn.Module, generator: torch.Generator) -> None:
    """Draw convolutions and linear layers as DLG does for its sigmoid networks."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                for parameter in module.parameters(recurse=False):
                    parameter.uniform_(-_UNIFORM, _UNIFORM, generator=generator)


@dataclass(frozen=True, eq=False)
class MadeBy:
    """What a batch norm in train mode made its output of.

    Attributes:
        weight, bias: of all candidates' channels, (K C,), all differentiable in these.
        mean_KC, variance_KC: of each batch's channels, differentiable in what was read.
    """

    weight: Tensor
    bias: Tensor
    mean_KC: Tensor
    variance_KC: Tensor


class BatchStatisticsNorm(nn.Module):
    """Batch norm in train mode for several candidates at once: each batch of `samples` rows has its own statistics.

    Args:
        norm: where weight, bias and epsilon come from.

    Attributes:
        samples: rows of one client's batch, B.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.samples = 1

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """As `nn.BatchNorm2d` in train mode, without running statistics; the output is known to `made_by`.

        Raises:
            ValueError: one number a channel, of which nothing would be left; as torch does.
        """
        candidates = len(x_NCHW) // self.samples
        wide = side_by_side(x_NCHW, candidates)
        if len(wide) * wide.shape[2:].numel() == 1:
            raise ValueError(f"more than 1 value a channel is expected in training, got {tuple(wide.shape)}")
        weight, bias = self.weight.repeat(candidates), self.bias.repeat(candidates)
        if torch.is_grad_enabled():  # what a rule asks gradients by, whether or not the network is trained
            weight, bias = (x if x.requires_grad else x.requires_grad_() for x in (weight, bias))
        y, mean, variance = batch_norm(wide, weight, bias, self.eps)
        output = one_after_the_other(y, candidates)
        statistics = mean.view(candidates, -1), variance.view(candidates, -1)
        return told(output, MadeBy(weight, bias, *statistics))


_MADE_BY = "made_by"


def told(output: Tensor, made: MadeBy) -> Tensor:
    """A batch norm's output, of which `made_by` then knows."""
    setattr(output, _MADE_BY, made)  # on the tensor, so that it lives for as long, and is nobody else's
    return output


def made_by(output: Tensor) -> MadeBy:
    """What a `BatchStatisticsNorm` made its output of, asked of the very tensor that it gave."""
    made: MadeBy = getattr(output, _MADE_BY)
    return made


def with_batch_statistics(network: nn.Module) -> None:
    """Put a `BatchStatisticsNorm` in the place of every batch norm."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, BatchStatisticsNorm(child))


def has_batch_norm(network: nn.Module) -> bool:
    """Whether a network normalizes by statistics of batches that it has seen."""
    return any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
