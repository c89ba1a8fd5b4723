"""Padding that isn't multiplied: linear layers are run on the tokens that are there, and give 0 elsewhere.

For causal networks, where nothing that is there looks at what comes behind it.

Shapes: N tokens, padding counted, O a layer's output size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from textleak.matching.replaced import ReplacedFunctions


class OnlyThere(ReplacedFunctions):
    """While it is active, linear layers are run on some of the tokens.

    Args:
        there: which, of as many dimensions as the batch has.
        besides: weights that are multiplied with all tokens nevertheless.
    """

    def __init__(self, there: Tensor, besides: Collection[Tensor] = ()) -> None:
        super().__init__()
        self._there_N = there.flatten().bool()
        self._besides = {*map(id, besides)}

    def instead(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """A product of these alone."""
        if func is functional.linear and len(args) > 1 and id(args[1]) not in self._besides:
            input, *others = args
            return self._product(input, lambda rows: func(rows, *others, **kwargs))
        if func is torch.addmm and len(args) == 3 and id(args[2]) not in self._besides:
            bias, input, weight = args
            return self._product(input, lambda rows: func(bias, rows, weight, **kwargs))
        return None

    def _product(self, input: Tensor, product: Callable[[Tensor], Tensor]) -> Tensor | None:
        rows_NI = input.flatten(0, -2)
        if len(rows_NI) != len(self._there_N):
            return None
        return filled(product(rows_NI[self._there_N]), self._there_N).view(*input.shape[:-1], -1)


def filled(some_NO: Tensor, there_N: Tensor | None) -> Tensor:
    """Rows with zeros between them; None where they are all."""
    if there_N is None:
        return some_NO
    return some_NO.new_zeros(len(there_N), some_NO.shape[1]).index_put((there_N,), some_NO)
