"""How much arithmetic a candidate takes, counted, and how fast this machine multiplies at those very shapes.

Two FLOPs are a multiplication and its addition. Counted is what the factored method asks for: a layer's product
forward, its input's gradient, and both once more for the second derivatives; the moments; and what lies outside the
matched layers, which the caller counts. Not counted are norms, activations and all else that works entry by entry.

Shapes: K candidates, N uses of a weight (a candidate's tokens), O and I its sides, R a target's rank.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import flop_registry

from textleak.matching.linear import fewer, product
from textleak.matching.replaced import WatchedOperations
from textleak.matching.rules import Contribution, Outer, Rows
from textleak.matching.target import Target

Found = Mapping[str, list[Contribution]]
Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of a candidate.

    Attributes:
        step: of its distance and the dummies' gradient.
        evaluation: of its distance alone.
    """

    step: float = 0.0
    evaluation: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(step=self.step + other.step, evaluation=self.evaluation + other.evaluation)

    def __rmul__(self, times: float) -> Work:
        return Work(step=times * self.step, evaluation=times * self.evaluation)


def layer_work(rows: float, live: float, weights: int) -> Work:
    """A linear layer's.

    Args:
        rows: N that it multiplies.
        live: of these, the ones to which a gradient comes back.
        weights: O·I.
    """
    return 2 * weights * Work(step=rows + 3 * live, evaluation=rows + live)


def product_work(multiplications: float) -> Work:
    """That of a product of two matrices that both depend on the dummies (attention's): 9 of its size, or 3."""
    return 2 * multiplications * Work(step=9, evaluation=3)


def matched_work(found: Found, target: Target, *, absolute: bool) -> Work:
    """What a candidate's matched layers and their moments take.

    Args:
        found: what the gradients are made of.
        target: the shared gradient.
        absolute: whether ‖g' − g‖₁ is asked for, which forms each gradient.
    """
    total = Work()
    factors: dict[int, Tensor] = {}
    ranks: dict[int, int] = {}
    for name, parts in found.items():
        tensor = target.tensors[name]
        for part in parts:
            if isinstance(part, Outer):
                uses = part.left_KNO.shape[1]
                weights = part.left_KNO.shape[2] * part.right_KNI.shape[2]
                total += layer_work(uses, _live(part), weights)
                if absolute:
                    total += 2 * uses * weights * Work(step=4, evaluation=1)
                if tensor.left_OR is None:  # compared as a whole
                    total += 2 * uses * weights * Work(step=2, evaluation=1)
            for factor in _factors(part):
                if tensor.left_OR is None:
                    total += 2 * factor.shape[1] ** 2 * factor.shape[2] * Work(step=3, evaluation=1)
                    continue
                factors[id(factor)] = factor
                ranks[id(factor)] = ranks.get(id(factor), 0) + tensor.left_OR.shape[1]
    for key, factor in factors.items():  # a factor that several weights share counts once
        uses, size = factor.shape[1:]
        total += 2 * uses * size * (uses + ranks[key]) * Work(step=2, evaluation=1)
    return total


def counted(work: Callable[[], Answer]) -> tuple[int, Answer]:
    """FLOPs of some work by torch's own formulas, each product counted as it runs, and what the work gives."""
    counter = _Counter()
    with counter:
        answer = work()
    return counter.flops, answer


class _Counter(WatchedOperations):  # type: ignore[no-untyped-call]
    """Adds up; torch's `FlopCounterMode` watches modules too, and can't where a dummy goes straight into one."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        self.formulas: dict[Any, Callable[..., int]] = {**flop_registry}
        self.formulas[torch.ops.aten.baddbmm_] = flop_registry[torch.ops.aten.baddbmm]
        if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            self.formulas[torch.ops.mkldnn._linear_pointwise] = _linear_flops

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:  # noqa: ANN401
        """Count it, if it is a product."""
        formula = self.formulas.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=result)


def _linear_flops(input: Tensor, weight_OI: Tensor, *_args: object, out_val: object) -> int:
    """Of oneDNN's product, which torch has no formula of."""
    del out_val
    return 2 * input.numel() * len(weight_OI)


@dataclass(frozen=True, kw_only=True, eq=False)
class Products:
    """The matched layers' products alone: each input by as many random weights, once.

    Attributes:
        ways: torch has two in float32, of which now the one and now the other is faster.
        flops: of either.
    """

    ways: tuple[Callable[[], object], ...]
    flops: int

    @classmethod
    def of(cls, found: Found) -> Products:
        """Those of the layers that made these gradients."""
        pairs: list[tuple[Tensor, Tensor]] = []
        for _, outer in _outer(found):
            input_NI = outer.right_KNI.detach().flatten(0, 1).contiguous()
            # The gradient's own shape, so no weight is asked for; zeros are faster on some processors.
            pairs.append((input_NI, torch.randn(outer.left_KNO.shape[2], input_NI.shape[1]).to(input_NI)))
        return cls(
            ways=tuple(functools.partial(_multiply, way, pairs) for way in (product, functional.linear)),
            flops=sum(2 * input_NI.numel() * len(weight_OI) for input_NI, weight_OI in pairs),
        )


@torch.no_grad()
def _multiply(multiply: Callable[[Tensor, Tensor], Tensor], pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    for input_NI, weight_OI in pairs:
        multiply(input_NI, weight_OI)


def _factors(part: Contribution) -> tuple[Tensor, ...]:
    """What Gram matrices are taken of."""
    if isinstance(part, Outer):
        return part.left_KNO, part.right_KNI
    return (part.right_KNI,) if isinstance(part, Rows) else ()


def _outer(found: Found) -> list[tuple[str, Outer]]:
    return [(name, part) for name, parts in found.items() for part in parts if isinstance(part, Outer)]


def _live(part: Outer) -> float:
    """Rows of a candidate to which a gradient comes back; all of them where leaving some out isn't tried."""
    candidates, uses = part.left_KNO.shape[:2]
    # Which of the two is the gradient depends on how the layer keeps its weight.
    live = min(int(factor.detach().any(-1).sum()) for factor in (part.left_KNO, part.right_KNI))
    return live / candidates if fewer(live, candidates * uses) else uses
