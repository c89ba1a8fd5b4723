"""A convolution's gradient as factors against formed at once: `python -m tests.speed.convolution`, a line a layer.

Times one distance and its gradient by the layer's input and output gradient, both ways, and says which one
`textleak.matching.rules.convolution_rule` takes.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from textleak.matching import Call, SquaredL2, Target
from textleak.matching.convolution import weight_gradient
from textleak.matching.moments import moments_of
from textleak.matching.rules import Contribution, Formed, Outer, convolution_rule

# Input channels, output channels, kernel, stride, side of the input: LeNet's, ResNet-20's, ResNet-18's at 64 x 64, a
# ViT's patches, and one that reads 3 x 3 places.
LAYERS = [
    (3, 12, 5, 2, 32),
    (12, 12, 5, 2, 16),
    (12, 12, 5, 1, 8),
    (16, 16, 3, 1, 32),
    (32, 32, 3, 1, 16),
    (64, 64, 3, 1, 8),
    (256, 256, 3, 1, 4),
    (512, 512, 3, 1, 2),
    (3, 96, 4, 4, 32),
]
REPEATS, CANDIDATES = 15, 4


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    sys.stdout.write(f"{CANDIDATES} candidates, {REPEATS} repeats, one thread, float32; median ms\n")
    for inputs, outputs, kernel, stride, side in LAYERS:
        padding = 0 if stride == kernel else kernel // 2
        layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=False)
        x = torch.randn(CANDIDATES, inputs, side, side)
        delta = torch.randn_like(layer(x).detach())
        target = Target.from_gradients({"weight": torch.randn_like(layer.weight)})
        call = Call(
            module=layer, wanted=frozenset({"weight"}), input_R=x, delta_R=delta, candidates=CANDIDATES
        )
        chosen = convolution_rule(call)["weight"]
        ways: dict[str, Callable[[Tensor, Tensor], Contribution]] = {
            "formed": partial(_formed, layer),
            "factors": partial(_factors, layer),
        }
        times = {name: _milliseconds(way, x, delta, target) for name, way in ways.items()}
        taken = "factors" if isinstance(chosen, Outer) else "formed"
        words = "  ".join(f"{name} {value:7.2f}" for name, value in times.items())
        sys.stdout.write(
            f"{inputs:4d} -> {outputs:4d}, {kernel} x {kernel}, stride {stride}, {side:2d} x {side:2d}: {words}  "
            f"taken: {taken}{'' if times[taken] <= 1.1 * min(times.values()) else '  (the slower)'}\n"
        )


def _factors(layer: nn.Conv2d, x: Tensor, delta: Tensor) -> Contribution:
    assert not isinstance(layer.padding, str)
    patches = nn.functional.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return Outer(left_KNO=delta.flatten(2).mT, right_KNI=patches.mT)


def _formed(layer: nn.Conv2d, x: Tensor, delta: Tensor) -> Contribution:
    return Formed(gradient_K=weight_gradient(delta, x, layer, len(x)))


def _milliseconds(
    way: Callable[[Tensor, Tensor], Contribution], x: Tensor, delta: Tensor, target: Target
) -> float:
    taken = []
    for _ in range(REPEATS):
        own = [tensor.clone().requires_grad_() for tensor in (x, delta)]
        began = time.process_time()
        moments = moments_of({"weight": [way(*own)]}, target, absolute=False)
        torch.autograd.grad(SquaredL2()(moments).sum(), own)
        taken.append(1000 * (time.process_time() - began))
    return statistics.median(taken)


if __name__ == "__main__":
    main()
