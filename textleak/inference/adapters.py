"""LoRA: rank and modules, by the adapters' names and shapes."""

from __future__ import annotations

import dataclasses
import re

import torch

from textleak.inference.base import Seen, Told, measured
from textleak.inference.shrinking import Decay, decay_of, off_the_grid
from textleak.numerics import exact, grid_step

WHAT = "LoRA"
_ADAPTER = re.compile(r"(?P<module>.+)\.lora_(?P<side>A|B|embedding_A|embedding_B)\b")

# A second step's part of A's move, in what the grid and decay leave open, from which its absence shows (our choice: a
# second batch's gradient may be ten times less like the first's).
_SHOWS = 10.0
# Part of a move that isn't along the weight itself when it is more than decay and rounding (our choice).
_TURNED = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapters:
    """Low-rank adapters among what was sent.

    Attributes:
        ranks: by module.
        others: parameters that are no adapters.
    """

    ranks: dict[str, int]
    others: tuple[str, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """Last names of the modules that have one."""
        return tuple(sorted({module.rpartition(".")[2] for module in self.ranks}))

    @property
    def rank(self) -> int | None:
        """The rank, where all have the same."""
        ranks = set(self.ranks.values())
        return ranks.pop() if len(ranks) == 1 else None


def is_adapter(name: str) -> bool:
    """Whether a parameter is an adapter's matrix."""
    return _ADAPTER.match(name) is not None


@measured
def moved_downs(seen: Seen) -> bool | None:
    """Whether any A moved by more than decay although B was 0, as only a second step can; None where that isn't known.

    B starts as 0, and A's gradient is a multiple of it.
    """
    if seen.before is None:
        return None
    downs = [name for name in seen.sent if ".lora_A." in name]
    ups = [value for name, value in seen.before.items() if ".lora_B." in name]
    if not downs or not ups or any(bool(value.any()) for value in ups):
        return None
    decay = decay_of(seen)
    if decay is None:
        moved = any(_turned(seen, name) for name in downs)
    else:
        moved = any(_moved_by_more(seen, name, decay) for name in downs)
    return moved or (None if all(_second_step(seen, name, decay) < _SHOWS for name in downs) else False)


def _second_step(seen: Seen, name: str, decay: Decay | None) -> float:
    """How far a second step of SGD would have moved an A that starts with a B of 0, in what hides a move.

    Two equal steps whose gradient of B is G Aᵀ move A by (ΔB/2)ᵀ (ΔB/2) within its own rows, whatever the rate and
    LoRA's alpha; what they add outside of these only moves it further.
    """
    weights, up = seen.weights(name), seen.sent.get(name.replace(".lora_A.", ".lora_B."))
    if weights is None or up is None:
        return 0.0
    down_RI, step_OR = exact(weights).cpu(), exact(up).cpu() / 2
    move_RI = step_OR.T @ step_OR @ torch.linalg.pinv(down_RI).T
    open_RI = grid_step(down_RI, weights.dtype) * max(1.0, decay.off if decay else 1.0)
    return float((move_RI.abs() / open_RI).max())


def _moved_by_more(seen: Seen, name: str, decay: Decay) -> bool:
    weights = seen.weights(name)
    if weights is None:
        return False
    before, moved = exact(weights).cpu(), exact(seen.sent[name]).cpu()
    return bool((off_the_grid(moved, before, decay.product, weights.dtype).abs() > max(1.0, decay.off)).any())


def _turned(seen: Seen, name: str) -> bool:
    """Whether a weight did anything but shrink or grow."""
    weights = seen.weights(name)
    if weights is None:
        return False
    before, moved = exact(weights).cpu().flatten(), exact(seen.sent[name]).cpu().flatten()
    left = moved - (moved @ before) / (before @ before) * before
    return float(left.norm()) > _TURNED * float(moved.norm())


@measured
def adapters_of(seen: Seen) -> Adapters:
    """The adapters among what was sent; an A has a row, a B a column for each of its rank."""
    ranks: dict[str, int] = {}
    others: list[str] = []
    for name, value in seen.sent.items():
        found = _ADAPTER.match(name)
        if found is None or value.dim() != 2:
            others.append(name)
        else:
            first = found["side"] in ("A", "embedding_A")
            ranks[found["module"]] = value.shape[0] if first else value.shape[1]
    return Adapters(ranks=ranks, others=tuple(others))


def ask(seen: Seen) -> Told:
    """Rank and modules."""
    found = adapters_of(seen)
    if not found.ranks:
        return Told(what=WHAT, value=False, evidence="No parameter is named as PEFT names adapters.")
    targets, rank = found.targets, found.rank
    many = f"{len(found.ranks)} adapters on {', '.join(targets)}"
    if rank is None:
        ranks = sorted(set(found.ranks.values()))
        return Told(
            what=WHAT, value={"ranks": ranks, "targets": list(targets)}, evidence=f"{many}, of several ranks."
        )
    return Told(
        what=WHAT,
        value={"rank": rank, "targets": list(targets)},
        evidence=f"{many}, all of {rank} rows and columns.",
    )
