"""Copies of networks."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

N = TypeVar("N", bound=nn.Module)


def copy_of(network: N, kept: Mapping[int, object] | None = None) -> N:
    """A deep copy of a network.

    Args:
        network: what is copied.
        kept: what stands in the copy for parts of it, by their `id`.
    """
    made: dict[int, object] = dict(kept or {})
    # A module has a dozen lists of hooks, nearly all of them empty; looked into one by one, they take `deepcopy` longer
    # than all the rest of a small network (measured).
    for module in network.modules():
        for value in vars(module).values():
            if type(value) in (OrderedDict, set) and not value:
                made.setdefault(id(value), type(value)())
    return copy.deepcopy(network, made)
