"""A network's dropout call by call: what it drops, and the same network with masks that are given.

Shapes: K candidates, B sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from textleak.errors import InputError
from textleak.matching.replaced import ReplacedFunctions


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """One call of dropout while a network runs on a batch.

    Attributes:
        shape: of what it is given; B first, or a multiple of it.
        rate: chance of an entry to be dropped.
    """

    shape: tuple[int, ...]
    rate: float


def dropouts(run: Callable[[], object]) -> tuple[Dropout, ...]:
    """Every call that drops something while `run` runs a network, in order."""
    found: list[Dropout] = []

    def note(x: Tensor, rate: float) -> Tensor:
        found.append(Dropout(shape=tuple(x.shape), rate=rate))
        return x

    with ReplacedDropout(note):
        run()
    return tuple(found)


@contextmanager
def given_masks(masks: Sequence[Tensor]) -> Iterator[None]:
    """Have networks drop by these masks, one a call, in order: x ∘ mask / (1 − rate).

    Args:
        masks: of any real values, 0 for what is dropped and 1 for what is kept; (K, *shape) of a call's `shape`.

    Raises:
        InputError: a call whose mask isn't of the shape that is dropped.
    """
    left = iter(masks)

    def drop(x: Tensor, rate: float) -> Tensor:
        mask = next(left, None)
        if mask is None or mask.numel() != x.numel():
            raise InputError(
                f"The network drops a tensor of shape {tuple(x.shape)} that there is no mask for.",
                why="Each call of dropout is given a mask of its own, so calls have to be the same for every batch.",
                fix="Use --attack auto, which needs no masks, or --set attack.masks=false.",
            )
        return x * (mask.reshape(x.shape) / (1 - rate)).to(x.dtype)

    with ReplacedDropout(drop):
        yield


class ReplacedDropout(ReplacedFunctions):
    """While it is active, dropout is something else; where nothing would be dropped, nothing is."""

    def __init__(self, drop: Callable[[Tensor, float], Tensor]) -> None:
        super().__init__()
        self.drop = drop

    def instead(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """Another dropout."""
        if func is not functional.dropout:
            return None
        x, rate, training = _arguments(*args, **kwargs)
        return self.drop(x, rate) if training and rate > 0 else x


def _arguments(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Tensor, float, bool]:
    """As `torch.nn.functional.dropout` is called; what is dropped in place is returned all the same."""
    del inplace
    return input, p, training
