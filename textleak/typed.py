"""Reading and writing values by their types: how, is worked out once a type, which takes pydantic milliseconds."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter

T = TypeVar("T")


def adapter(kind: type[T]) -> TypeAdapter[T]:
    """What checks, reads and writes values of a type."""
    return _adapter(cast("Hashable", kind))


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:  # noqa: ANN401
    return TypeAdapter(kind)
