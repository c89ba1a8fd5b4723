"""Torch's own functions, replaced for a while, and its operations, watched for a while."""

from __future__ import annotations

import abc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


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


_HERE = threading.local()


@contextmanager
def unwatched() -> Iterator[None]:
    """While it is active, no operation of this thread is seen: for what nothing that is computed goes by."""
    before = getattr(_HERE, "unwatched", False)
    _HERE.unwatched = True
    try:
        yield
    finally:
        _HERE.unwatched = before


class WatchedOperations(TorchDispatchMode, abc.ABC):  # type: ignore[no-untyped-call]
    """While it is active, a subclass sees each operation that reaches a kernel, those of derivatives among them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @abc.abstractmethod
    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:  # noqa: ANN401
        """An operation has run."""

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Called by torch for each operation."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not getattr(_HERE, "unwatched", False):
            self.see(func, args, kwargs, result)
        return result
