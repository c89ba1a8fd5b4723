"""How far a causal language model's gradient is where a sentence ends with another token: without running it again.

The last token of a sentence is asked for and never read. So another one there changes the loss by a difference of two
logits of the same pass, and the gradient by that difference's, a short way back to the last tensors.

Shapes: B sentences, T tokens, D the head's input size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from textleak.matching.discrete import Guess, Row
from textleak.models import TextModel
from textleak.models.gradient import last_used, opened
from textleak.models.losses.language import PLAIN
from textleak.models.padding import OnlyThere
from textleak.models.probes.reach import sees_ahead
from textleak.models.running import run
from textleak.numerics import exact
from textleak.proof.rivals import small_ones

# Tokens of one pass, at most (our choice).
_TOKENS_A_PASS = 256
# Logits are the head's own where they are no farther from them than so many roundings of the largest (our choice).
_SAME = 2**10


def other_endings(guess: Guess, rivals: Sequence[Guess]) -> dict[Guess, int]:
    """The rivals that differ from a guess in one sentence's last token alone, with which sentence it is."""
    found = {}
    for rival in rivals:
        pairs = zip(guess.rows, rival.rows, strict=True)
        changed = [row for row, (old, new) in enumerate(pairs) if old != new]
        if rival.classes == guess.classes and len(changed) == 1:
            old, new = guess.rows[changed[0]], rival.rows[changed[0]]
            if len(old) > 1 and old[:-1] == new[:-1]:
                found[rival] = changed[0]
    return found


def ending_distances(
    model: TextModel,
    guess: Guess,
    rivals: Sequence[Guess],
    own: Mapping[str, Tensor],
    distance: Callable[[Mapping[str, Tensor]], float],
) -> dict[Guess, float]:
    """How far each rival that ends otherwise is at one tensor, which the whole distance can't be below.

    Args:
        model: a causal language model, in the precision wanted; nothing is told of others.
        guess: the answer, whose sentences are parts of its loss by their numbers of tokens.
        rivals: others; nothing is told of those that differ elsewhere.
        own: the answer's gradient.
        distance: of a gradient of one tensor.
    """
    endings = other_endings(guess, rivals)
    head = model.head
    plain = model.task == "causal-lm" and model.language == PLAIN
    if not plain or not endings or head is None or sees_ahead(model):
        return {}
    name = _last(model, own, guess.rows[0])
    if name is None or not _plain(model, head, guess.rows[0]):
        return {}
    weight_VD = head.weight
    assert isinstance(weight_VD, Tensor)
    each = 1 / sum(len(row) - 1 for row in guess.rows)
    mine, found = exact(own[name]), {}
    by_row: dict[int, list[Guess]] = {}
    for rival, row in endings.items():
        by_row.setdefault(row, []).append(rival)
    for rows in _alike(guess.rows, sorted(by_row)):
        with opened(model, [name]) as parameters:
            hidden_BTD = _hidden(model, [guess.rows[row] for row in rows])
            for b, row in enumerate(rows):
                for rival in by_row[row]:
                    old, new = guess.rows[row][-1], rival.rows[row][-1]
                    along_BTD = torch.zeros_like(hidden_BTD)
                    along_BTD[b, len(guess.rows[row]) - 2] = each * (weight_VD[old] - weight_VD[new]).detach()
                    (change,) = torch.autograd.grad(hidden_BTD, parameters, along_BTD, retain_graph=True)
                    found[rival] = distance({name: mine + exact(change).to(mine.device)})
    return found


def _last(model: TextModel, own: Mapping[str, Tensor], row: Row) -> str | None:
    """The last of the shared tensors that isn't large, before the head."""
    outside = model.embedding_names
    small = small_ones(model, [name for name in own if name not in outside])
    return next(iter(last_used(model, small, lambda: _hidden(model, [row]))), None)


def _plain(model: TextModel, head: torch.nn.Module, row: Row) -> bool:
    """Whether the network's logits are what its head makes of its last states, neither scaled nor capped."""
    ids_1T = torch.tensor([row], device=model.device)
    with torch.no_grad():
        made = head(_hidden(model, [row]))
        logits = model.logits(ids_1T, torch.ones_like(ids_1T))[:, : made.shape[1]]
    return bool((made - logits).abs().max() <= _SAME * torch.finfo(model.dtype).eps * logits.abs().max())


def _hidden(model: TextModel, rows: Sequence[Row]) -> Tensor:
    """What the head reads of sentences, all but the last token: (B, T, D), padded on the right, where nothing looks."""
    ids_BT = torch.full((len(rows), max(map(len, rows)) - 1), model.pad_id)
    for b, row in enumerate(rows):
        ids_BT[b, : len(row) - 1] = torch.tensor(row[:-1])
    there_BT = torch.arange(ids_BT.shape[1]) < torch.tensor([[len(row) - 1] for row in rows])
    with OnlyThere(there_BT.to(model.device)) if model.wide else nullcontext():
        hidden_BTD: Tensor = run(model, ids_BT.to(model.device), whole=False).last_hidden_state
    return hidden_BTD


def _alike(rows: Sequence[Row], chosen: Sequence[int]) -> list[list[int]]:
    """Some rows, those of like length together, as many as a pass takes."""
    parts: list[list[int]] = []
    for row in sorted(chosen, key=lambda row: len(rows[row])):
        if not parts or len(rows[row]) * (len(parts[-1]) + 1) > _TOKENS_A_PASS:
            parts.append([])
        parts[-1].append(row)
    return parts
