"""How a loop trains, in the words of `--client`: read off its optimizer, its forward passes and its gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from textleak.clients.base import CLIENTS, Client
from textleak.clients.fedavg import MOST_STEPS
from textleak.clients.train_mode import drops
from textleak.defenses.base import DEFENSES, Defense
from textleak.integrations.peft import lora_options
from textleak.integrations.watching import Pass, Row
from textleak.words import count_of

Sends = Literal["update", "gradient"]
"""What leaves the client: the weights' difference, or the gradient that the optimizer was given."""

# A norm this near a number of two digits is what `clip_grad_norm_` leaves: it scales by max / (norm + 1e-6), and a norm
# in float32 is right to 1e-6. One that nobody clipped is so near to such a number by chance, in 1 of 2,000 steps.
_CLIPPED = 1e-5
_REACHED = 1e-3  # a norm so near a known limit, and no nearer in bfloat16, was clipped to it
_NO_CLIP = 1e-3  # norms below it are rounded as well as clipped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the optimizer.

    Attributes:
        passes: since the step before, each one micro-batch.
        rate: learning rate.
        norm: L2 norm of the gradient that the optimizer was given.
    """

    passes: tuple[Pass, ...]
    rate: float | None = None
    norm: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Procedure:
    """How a client trained.

    Attributes:
        kinds: of client, to be composed in order.
        defenses: what was done to the gradient.
        notes: what these don't say, a sentence each.
    """

    kinds: tuple[Client, ...]
    defenses: tuple[Defense, ...] = ()
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Loop:
    """What is known of a loop beside its steps.

    Attributes:
        network: in training.
        task: of the model.
        adapters: PEFT's configuration; None without.
        optimizer: torch's own; None where nobody said.
        fresh: whether the optimizer remembered no step before the first one here.
        clip: norm that larger gradients are clipped to, as far as somebody said.
        defenses: as far as somebody said.
    """

    network: nn.Module
    task: str
    adapters: Any
    optimizer: torch.optim.Optimizer | None
    fresh: bool = True
    clip: float | None = None
    defenses: tuple[Defense, ...] = ()


def procedure_of(loop: Loop, steps: Sequence[Step], sends: Sends) -> Procedure:
    """How a loop came to what it sends.

    Args:
        loop: the loop.
        steps: what was sent is made of.
        sends: what leaves.
    """
    passes = [one for step in steps for one in step.passes]
    kinds, notes = _running(loop, passes)
    clip = _clip(steps, loop.clip)
    defenses = list(loop.defenses)
    if sends == "gradient":
        parts = [one for one in passes if one.size]
        if len(parts) > 1:
            if len({one.size for one in parts}) > 1:
                notes.append(
                    "The micro-batches are of several sizes; the client is told as if they were of one."
                )
            elif loop.task == "classification":
                kinds.append(CLIENTS.build("accumulate", {"steps": len(parts)}))
            else:
                notes.append(
                    "Micro-batches of a language model are told as one batch, its mean over all tokens."
                )
        if clip is not None and not defenses:
            defenses.append(DEFENSES.build("clip", {"max_norm": clip}))
    else:
        fedavg = _fedavg(loop, steps, clip, notes)
        kinds += () if fedavg is None else (fedavg,)
    return Procedure(kinds=tuple(kinds), defenses=tuple(defenses), notes=tuple(notes))


def _running(loop: Loop, passes: Sequence[Pass]) -> tuple[list[Client], list[str]]:
    """How the network was run, whatever was made of it."""
    kinds: list[Client] = []
    notes: list[str] = []
    if loop.adapters is not None:
        options, left = lora_options(loop.adapters, loop.network)
        notes += left
        if options is not None:
            kinds.append(CLIENTS.build("lora", options))
    training = any(one.training for one in passes) if passes else loop.network.training
    if training and drops(loop.network):
        kinds.append(CLIENTS.build("train-mode", {}))
    types = {one.autocast for one in passes} - {None}
    if torch.bfloat16 in types:
        kinds.append(CLIENTS.build("autocast", {"dtype": "bf16"}))
    elif torch.float16 in types:
        notes.append(
            "It ran under autocast in float16; by what the loss was scaled doesn't show, so that isn't told "
            "(--client autocast:dtype=fp16,scale=N)."
        )
    elif types:
        notes.append(f"It ran under autocast in {', '.join(map(str, types))}, which no client here does.")
    if not passes:
        notes.append("No forward pass was seen: batch size, dropout and autocast are guessed.")
    if any(one.partial for one in passes):
        notes.append(
            "Labels of some tokens are left out of the loss (-100); the client is told as if all counted."
        )
    return kinds, notes


def _clip(steps: Sequence[Step], said: float | None) -> float | None:
    """The norm that a gradient was clipped to; None where none was, as far as their norms show.

    Where nobody said it, it is the number of two digits that the largest norm is.
    """
    largest = max((step.norm for step in steps if step.norm is not None), default=0.0)
    if said is not None:
        return said if largest > said * (1 - _REACHED) else None
    near = float(f"{largest:.2g}")
    return near if largest > _NO_CLIP and abs(largest - near) <= _CLIPPED * near else None


def _fedavg(loop: Loop, steps: Sequence[Step], clip: float | None, notes: list[str]) -> Client | None:
    """The steps as the client `fedavg` takes them; None where it can't."""
    options = _optimizer_options(loop.optimizer, notes)
    if options is None or not steps:
        return None
    if len(steps) > MOST_STEPS:
        notes.append(
            f"{count_of(len(steps), 'step')}: a client here takes {MOST_STEPS:,} at most, so none is told."
        )
        return None
    rates = [step.rate for step in steps if step.rate is not None]
    if min(rates) != max(rates):
        notes.append(
            f"The learning rate went from {rates[0]:g} to {rates[-1]:g}; the client is told their mean."
        )
    options |= {"lr": sum(rates) / len(rates), "steps": len(steps)}
    if options["lr"] <= 0:
        notes.append("The learning rate is 0: nothing is learnt, and no client is told.")
        return None
    if clip is not None:
        options["max_grad_norm"] = clip
    sizes = [sum(one.size for one in step.passes) for step in steps]
    if len(steps) > 1 and all(sizes):
        options["batch_size"] = max(set(sizes), key=sizes.count)
        if len(set(sizes)) > 1:
            notes.append(
                f"Batches have {min(sizes)} to {max(sizes)} sentences; the client is told {options['batch_size']}."
            )
    if any(len(step.passes) > 1 for step in steps) and loop.task != "classification":
        notes.append("Micro-batches of a language model are told as one batch, its mean over all tokens.")
    if not loop.fresh:
        notes.append(
            "The optimizer remembered steps before these; the client is told as if it began with them."
        )
    return CLIENTS.build("fedavg", options)


def main_group(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The group that most of an optimizer's parameters are in, with its settings."""
    return max(optimizer.param_groups, key=lambda group: sum(p.numel() for p in group["params"]))


def _optimizer_options(optimizer: torch.optim.Optimizer | None, notes: list[str]) -> dict[str, Any] | None:
    """Which of the client's optimizers it is, and its settings; None where it is none of them."""
    if optimizer is None:
        return None
    groups = [group for group in optimizer.param_groups if group["params"]]
    group = main_group(optimizer)
    for key in ("lr", "weight_decay"):
        if len({float(other.get(key, 0.0)) for other in groups}) > 1:
            notes.append(f"Groups of parameters have a {key} each; the client is told {float(group[key]):g}.")
    decay = float(group.get("weight_decay", 0.0))
    adam = isinstance(optimizer, torch.optim.AdamW) or (isinstance(optimizer, torch.optim.Adam) and not decay)
    known = adam or (isinstance(optimizer, torch.optim.SGD))
    odd = [key for key in ("amsgrad", "maximize", "nesterov", "dampening") if group.get(key)]
    if not known or odd:
        notes.append(
            f"No client here takes {type(optimizer).__name__}'s steps{f' with {odd[0]}' if odd else ''}: none is told."
        )
        return None
    if not adam:
        return {"optimizer": "sgd", "momentum": float(group["momentum"]), "weight_decay": decay}
    beta1, beta2 = map(float, group["betas"])
    return {
        "optimizer": "adamw",
        "beta1": beta1,
        "beta2": beta2,
        "eps": float(group["eps"]),
        "weight_decay": decay,
    }


def rows_of(steps: Sequence[Step], notes: list[str]) -> tuple[Row, ...] | None:
    """The sentences that some steps were taken on, each pass over them once; None where some weren't seen.

    Args:
        steps: in order.
        notes: are told where they came in another order each time.
    """
    by_step = [[row for one in step.passes for row in one.rows or ()] for step in steps]
    if not all(by_step) or any(one.rows is None for step in steps for one in step.passes):
        return None
    for period in range(1, len(by_step) + 1):
        if all(before == after for before, after in zip(by_step, by_step[period:], strict=False)):
            break
    first = [row for rows in by_step[:period] for row in rows]
    unique = tuple(dict.fromkeys(first))
    shuffled = any({*a} & {*b} for a, b in pairwise(by_step[:period])) or (
        len(unique) < len(first) and period > 1
    )
    if not shuffled:
        return tuple(first)
    notes.append(
        "Sentences came again in another order; the client is told as if each came in the order it first did."
    )
    return unique
