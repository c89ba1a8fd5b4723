"""The precision that gradients were computed or stored in: whether entries lie on a shorter type's grid.

Under autocast products of matrices end in the short type and are widened afterwards, so their last bits are 0.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor

from textleak.inference.base import Seen, Told, lies_on, measured, per_cent, some_of
from textleak.inference.kind import sent_as

WHAT = "precision"
_SHORT = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Part of a tensor's entries that lie on a grid when all were rounded to it; of others one in 2¹⁶ does by chance. And
# how many entries that aren't 0 tell (our choice).
_ALL, _LEAST = 0.999, 64
# From this size on float16 tells more than bfloat16, below it no more, as it has no smaller step than 2⁻²⁴.
_FP16_FINER = 2.0**-16
# Part of the median tensor's largest entry that a tensor's has to exceed: below it they are rounding of sums that
# cancel, as a key's bias has, which leaves few bits (our choice: float32's own eps).
_ROUNDING = torch.finfo(torch.float32).eps


@dataclasses.dataclass(frozen=True, kw_only=True)
class Precision:
    """By tensor, the short type whose grid it lies on; "float32" where on none."""

    grids: dict[str, str]


@measured
def grids_of(seen: Seen) -> Precision:
    """Which tensors lie on which grid; those that are rounding alone tell of none.

    How large rounding is differs by layer, so a vector that is on a grid alone tells nothing: where products of
    matrices are rounded some matrix is too, or, where none was sent, most of what was.
    """
    sizes = {name: float(value.abs().max()) for name, value in seen.moved() if value.numel() >= _LEAST}
    least = _ROUNDING * statistics.median(sizes.values()) if sizes else 0.0
    grids = {name: _grid(seen.sent[name]) for name, size in sizes.items() if size > least}
    on = {name for name, grid in grids.items() if grid != _type(seen.sent[name])}
    matrices = {name for name in grids if seen.sent[name].dim() > 1}
    if not (on & matrices if matrices else 2 * len(on) > len(grids)):
        grids = {name: _type(seen.sent[name]) for name in grids}
    return Precision(grids=grids)


def _type(value: Tensor) -> str:
    own = next((short for short, dtype in _SHORT.items() if value.dtype == dtype), None)
    return own or str(value.dtype).removeprefix("torch.")


def _grid(value: Tensor) -> str:
    if value.dtype in _SHORT.values():
        return _type(value)
    (values_N,) = some_of(value)
    values_N = values_N[values_N != 0]
    if len(values_N) < _LEAST:
        return _type(value)
    on = [short for short, dtype in _SHORT.items() if lies_on(values_N, dtype).double().mean() >= _ALL]
    if len(on) == len(_SHORT):
        return "bf16" if int((values_N.abs() >= _FP16_FINER).sum()) >= _LEAST else "fp16"
    return on[0] if on else _type(value)


def computed_eps(seen: Seen, names: Sequence[str]) -> float:
    """Rounding of the entries of some gradients: that of the coarsest type that any of them was computed in."""
    grids = grids_of(seen).grids
    found = [torch.finfo(_SHORT[grids[name]]).eps for name in names if grids.get(name) in _SHORT]
    return max([torch.finfo(torch.float32).eps, *found])


def coarse(seen: Seen, names: Sequence[str]) -> bool:
    """Whether some gradients were computed in a short type, whose rounding may be as large as another sentence's part.

    Of an update nobody knows what its gradients were computed in.
    """
    return sent_as(seen).kind == "gradient" and computed_eps(seen, names) > torch.finfo(torch.float32).eps


def ask(seen: Seen) -> Told:
    """The precision of the gradients."""
    grids = grids_of(seen).grids
    short = {name: grid for name, grid in grids.items() if grid in _SHORT}
    stored = sorted({str(value.dtype).removeprefix("torch.") for value in seen.sent.values()})
    if sent_as(seen).kind != "gradient":
        return Told(
            what=WHAT,
            value=None,
            evidence=f"Stored as {', '.join(stored)}; the step hides what gradients were computed in.",
        )
    if not short:
        return Told(
            what=WHAT,
            value=stored[0],
            evidence=f"Stored as {', '.join(stored)}, and no tensor lies on a shorter grid.",
        )
    name = max(set(short.values()), key=list(short.values()).count)
    share = len(short) / len(grids)
    where = "all tensors" if share == 1 else f"{len(short)} of {len(grids)} tensors ({per_cent(share)})"
    return Told(
        what=WHAT,
        value=name if share == 1 else f"{name} autocast",
        evidence=f"Every entry of {where} lies on the grid of {name}"
        + ("." if share == 1 else ", as products of matrices do under autocast; the others are float32."),
    )
