"""Torch's own functions, replaced for a while."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode


class ReplacedFunctions(TorchFunctionMode, abc.ABC):
    """While it is active, some calls of torch's functions give what a subclass gives in their place."""

    @abc.abstractmethod
    def instead(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """What a call gives; None for what torch's own function does."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: tuple[type, ...],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Called by torch for each of its functions."""
        kwargs = kwargs or {}
        made = self.instead(func, args, kwargs)
        return func(*args, **kwargs) if made is None else made
