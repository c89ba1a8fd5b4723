"""Values that nobody means, and how they get into JSON and bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

# Sets the title, clears the screen, turns red, rings, moves left, turns the direction of writing, C1's own CSI.
EVIL = "a\x1b]0;owned\x07b\x1b[2J\x1b[31m\x08\u202ec\x9b2Jd\x00"
LONG = "x" * 100_000


def deep(levels: int) -> Any:
    """Lists in lists."""
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 3, 7, 1_000_000, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**30, 10**400),
    *(1e30, 1e308, -0.5, 0.5, 1e-30, 5e-324, float("nan"), float("inf"), float("-inf")),
    *("", " ", "a", EVIL, LONG, "\ud800", "../../etc", "=1+1", "[" * 3000, "1e9", "nan"),
    *([], {}, [[]], [None], [EVIL], [-1], [1e30], [float("nan")], {"": None}, {EVIL: EVIL}),
    *({"a": {"a": {"a": []}}}, deep(60), list(range(2000))),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value there is something."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for at in range(min(len(value), 6)):
            yield from places(value[at], (*path, at))


def changed(value: Any, rng: random.Random) -> tuple[Any, str]:
    """The value with something in it replaced, taken away, doubled or renamed, and what was done in words."""
    found = copy.deepcopy(value)
    path = rng.choice([path for path in places(found) if path])
    inside = found
    for part in path[:-1]:
        inside = inside[part]
    last, kind = path[-1], rng.choice(("replaced",) * 6 + ("gone", "renamed", "doubled"))
    if kind == "gone":
        del inside[last]
    elif kind == "renamed" and isinstance(inside, dict):
        inside[rng.choice(("", EVIL, "x", LONG))] = inside.pop(last)
    elif kind == "doubled" and isinstance(inside, list):
        inside.extend(inside * rng.choice((1, 10)))
    else:
        kind, inside[last] = "replaced", rng.choice(VALUES)
        return found, f"{kind} {path} by {str(inside[last])[:60]!r}"
    return found, f"{kind} {path}"


def written(value: Any) -> bytes:
    """As JSON, NaN and half letters too."""
    return json.dumps(value).encode("utf-8", "surrogatepass")


def torn(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes cut, turned, filled or repeated, and what was done in words."""
    kind = rng.choice(("cut", "turned", "zeros", "doubled", "more", "empty", "noise"))
    at = rng.randrange(max(1, len(content)))
    if kind == "cut":
        content = content[:at]
    elif kind == "turned":
        turned = bytearray(content)
        for _ in range(rng.choice((1, 8, 200))):
            if turned:
                turned[rng.randrange(min(len(turned), rng.choice((16, 400, 10**9))))] ^= 1 << rng.randrange(8)
        content = bytes(turned)
    elif kind == "zeros":
        content = content[:at] + bytes(min(200, len(content) - at)) + content[at + 200 :]
    elif kind == "doubled":
        content = content + content
    elif kind == "more":
        content = content + rng.randbytes(rng.choice((1, 8, 5000)))
    elif kind == "empty":
        content = b""
    else:
        content = content[:at] + rng.randbytes(100) + content[at:]
    return content, f"{kind} at {at}"
