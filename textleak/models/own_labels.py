"""Which labels left a gradient, where the head has a loss of its own: in closed form, once the tokens are known.

Whatever the loss is, a batch's gradient G is linear in the loss's gradient δ at the logits: G = Jᵀδ, with J the logits'
Jacobian. So δ follows by least squares from a few tensors near the head, and the labels from δ and the logits. What is
left over is what no labels at all explain, a lower bound of how far these tokens' gradient is from G.

Shapes: B sentences, T tokens, L predictions a sentence, C outputs of each, U logits in all, S entries looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from textleak.events import Label
from textleak.models.gradient import last_used, opened
from textleak.models.guesses import padded
from textleak.models.text import TextModel
from textleak.numerics import exact

# Tensors looked at, those that are used last; and numbers held at once for them (our choice: 128 MB).
_LAST, _HELD = 6, 2**24
_LENGTH = 4  # of the text that tells which these are
# Logits that are solved for at most (our choice: each takes a backward pass, of the last layers).
_MOST = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Solved:
    """The labels of some sentences.

    Attributes:
        labels: one for each; None where they don't show.
        off: norm of what no labels explain, of the entries that were looked at.
        deltas_BLC: the loss's gradient at the logits, and
        logits_BLC: these, in float64; None where they don't show.
    """

    labels: tuple[Label, ...] | None
    off: float
    deltas_BLC: Tensor | None = None
    logits_BLC: Tensor | None = None


def nearest_head(model: TextModel, names: Iterable[str]) -> list[str]:
    """Those of some parameters that are used last, the last one first."""
    ids_1T, mask_1T = padded(model, [model.content_ids[:_LENGTH].tolist()])
    return last_used(model, list(names), lambda: model.logits(ids_1T, mask_1T))[:_LAST]


def solved_labels(
    model: TextModel,
    gradients: Mapping[str, Tensor],
    rows: Sequence[Sequence[int]],
    names: Sequence[str] | None = None,
) -> Solved:
    """The labels that a batch of sentences must have had.

    Args:
        model: in float64, with a head of a loss of its own.
        gradients: of the batch's loss, by parameter.
        rows: the tokens of all its sentences.
        names: of the tensors that are looked at; None for those of `nearest_head`.
    """
    loss = model.own_loss
    assert loss is not None
    ids_BT, mask_BT = padded(model, rows)
    names = nearest_head(model, gradients) if names is None else names
    with opened(model, names) as parameters, torch.enable_grad():
        logits_BLC = model.logits(ids_BT, mask_BT)
        wanted_U = loss.reached(mask_BT, logits_BLC).flatten()
        logits_U = logits_BLC.flatten()[wanted_U]
        if not names or len(logits_U) > _MOST:
            return Solved(labels=None, off=0.0)
        columns_SU, seen_S = linear_system(logits_U, parameters, [gradients[name] for name in names])
    # The solver that tells the rank; on the CPU, as no other device has it.
    solution = torch.linalg.lstsq(columns_SU.cpu(), seen_S.cpu()[:, None], driver="gelsy")
    delta_U = solution.solution[:, 0].to(logits_U.device)
    off = float((columns_SU @ delta_U - seen_S).norm())
    if int(solution.rank) < len(logits_U):
        return Solved(labels=None, off=off)
    deltas_BLC = (
        exact(torch.zeros_like(logits_BLC)).flatten().masked_scatter(wanted_U, delta_U).view_as(logits_BLC)
    )
    logits_BLC = exact(logits_BLC.detach())
    labels = loss.told(deltas_BLC, logits_BLC, mask_BT)
    return Solved(labels=labels, off=off, deltas_BLC=deltas_BLC, logits_BLC=logits_BLC)


def linear_system(
    logits_U: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """What each of some outputs adds to some entries of tensors, (S, U), and what these are, (S,)."""
    most = max(1, _HELD // (len(logits_U) * len(parameters)))
    steps = [-(-parameter.numel() // most) for parameter in parameters]

    rows = [
        torch.cat([exact(g_NP.flatten(1)[:, ::step]) for g_NP, step in zip(some, steps, strict=True)], 1)
        for some in by_output(logits_U, parameters)
    ]
    seen = [exact(g.to(logits_U.device)).flatten()[::step] for g, step in zip(gradients, steps, strict=True)]
    return torch.cat(rows).T, torch.cat(seen)


def by_output(outputs_U: Tensor, parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The gradients of a few outputs at a time, for each parameter (N, ...); 0 where they don't depend on it."""
    directions_UU = torch.eye(len(outputs_U), dtype=outputs_U.dtype, device=outputs_U.device)
    at_once = max(1, _HELD // sum(parameter.numel() for parameter in parameters))
    for some_NU in torch.split(directions_UU, at_once):
        found = torch.autograd.grad(
            outputs_U, list(parameters), some_NU, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        yield [
            torch.zeros(len(some_NU), *parameter.shape).to(outputs_U) if gradient is None else gradient
            for gradient, parameter in zip(found, parameters, strict=True)
        ]
