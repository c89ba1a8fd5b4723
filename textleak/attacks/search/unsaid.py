"""How a client makes its loss of its tokens', where nobody told: read off the gradient of sentences that were found.

Whatever the weights, a batch's gradient is a sum over its predictions: each one's against its label, and, where labels
are smoothed, against all tokens alike. At a few tensors near the head what each adds is known, so how much of it there
is follows by least squares; the loss is the one of those that clients can tell (`clients.loss`) which weighs them so.

Shapes: B sentences, T tokens, P predictions, D hidden size, S entries looked at.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from textleak.attacks.search.labels import rank_labels
from textleak.attacks.search.problem import TextProblem
from textleak.clients.accumulate import Accumulate
from textleak.clients.view import View
from textleak.exact.found import OPEN, Found
from textleak.matching import CosinePerTensor
from textleak.matching.discrete import Guess, Row
from textleak.matching.hooks import hooked
from textleak.models import TextModel
from textleak.models.gradient import opened
from textleak.models.guesses import padded
from textleak.models.losses.language import PLAIN, Language, Reduction, turned
from textleak.models.own_labels import linear_system, nearest_head
from textleak.numerics import exact

# Predictions whose parts are told apart at most (our choice: each takes two backward passes of the last layers).
_MOST = 512
# A prediction with less than this part of the largest one's weight has none; the parts may be off a loss by this part
# of the gradient, and a smoothing below the last one is none (our choices; measured: float32 makes 1e-5).
_NONE, _OFF, _SMOOTH = 0.02, 1e-2, 1e-3
# Sentences of which each may end where it seems to or a token before (our choice: 31 batches are tried at most).
_MOST_ENDINGS = 5


def told(view: View) -> bool:
    """Whether the client said how its loss is made."""
    return any(name == "loss" for name, _ in view.shared.client.kinds)


def spoken(view: View, found: Found) -> Iterator[tuple[View, Found]]:
    """The view with the loss that sentences ask for, and these with their last tokens; nothing where none fits.

    Args:
        view: what the server sees, with a causal language model.
        found: sentences whose last tokens may be open.
    """
    rows = tuple(dict.fromkeys(found.rows))
    if not rows or any(OPEN in row[:-1] or len(row) < 2 for row in rows):
        return
    if found.language is not None:
        view = dataclasses.replace(view, model=view.text_model.spoken_with(found.language))
    for some in _endings(rows, view.text_model.language):
        yield from _spoken(view, some, found)


def _endings(rows: tuple[Row, ...], language: Language) -> Iterator[tuple[Row, ...]]:
    """The rows as they are; where padding stands on the left, and shows nowhere, with some of them ended otherwise.

    The longest sentences alone have no padding, which would read their last tokens. Of those that seem so, any but one
    may be a token shorter, and stand behind padding; one that seems whole may be a token longer, where all that reads
    its last token reads padding alike.
    """
    yield rows
    if language.padding != "left":
        return
    longest = max(map(len, rows))
    others = {b: row[:-1] for b, row in enumerate(rows) if row[-1] == OPEN and len(row) == longest}
    others |= {b: (*row, OPEN) for b, row in enumerate(rows) if row[-1] != OPEN and len(row) < longest}
    seem = list(others)[:_MOST_ENDINGS]
    for count in range(1, len(seem) + 1):
        for ended in itertools.combinations(seem, count):
            tried = tuple(others[b] if b in ended else row for b, row in enumerate(rows))
            if any(row[-1] == OPEN and len(row) == longest for row in tried):
                yield tried


def _spoken(view: View, rows: tuple[Row, ...], found: Found) -> Iterator[tuple[View, Found]]:
    """The same for sentences that are known to be whole but for their last tokens."""
    if found.language is not None:
        rows = _ended(view, rows)
    if not rows or any(OPEN in row for row in rows):
        return
    size = view.shared.known.size
    if size and size % len(rows) == 0:
        rows *= size // len(rows)
    # A client that trains otherwise, one by one say, may weigh sentences otherwise by that alone.
    language = view.text_model.language if view.client.kinds else _language(view, rows)
    if language is None:
        return
    spoken_view = dataclasses.replace(view, model=view.text_model.spoken_with(language))
    if language.reduction == "mean-of-means" and not view.client.kinds:
        # Such a mean comes of sentences that were run one by one: rounding is that of so small batches.
        spoken_view = dataclasses.replace(spoken_view, client=Accumulate(steps=len(rows)))
    # What was said of these sentences took the loss for another one.
    yield spoken_view, Found(rows=rows, complete=True, channel=found.channel, language=language)


def _ended(view: View, rows: Sequence[Row]) -> tuple[Row, ...]:
    """Sentences with their open last tokens read off the last norm's gradient; none where it wasn't shared."""
    pad_id = view.text_model.pad_id
    places = [(b, len(row) - 2) for b, row in enumerate(rows) if row[-1] == OPEN]
    filled = tuple(tuple(pad_id if token == OPEN else token for token in row) for row in rows)
    problem = TextProblem(view=view, objective=CosinePerTensor())
    ranked = rank_labels(problem, Guess(filled), places, keep=1) if places else {}
    if len(ranked) < len(places):
        return ()
    ends = {b: ranked[b, t][0] for b, t in places}
    whole = [(*row[:-1], ends[b]) if b in ends else row for b, row in enumerate(filled)]
    counted = view.text_model.language.padding == "counted"
    return tuple(row[:-1] if counted and row[-1] == pad_id else row for row in whole)


def _language(view: View, rows: Sequence[Row]) -> Language | None:
    """The loss that weighs the predictions of some sentences as the gradient does."""
    model = view.text_model.double()
    plain = dataclasses.replace(PLAIN, padding=model.language.padding)
    ids_BT, mask_BT = padded(model, rows)
    targets = plain.causal_targets(ids_BT, mask_BT, pad_id=model.pad_id, dtype=model.loss_dtype)
    there_BT = targets.weights > 0
    if int(there_BT.sum()) > _MOST:
        return None
    system = _parts(view, model, ids_BT, mask_BT, targets.labels, there_BT)
    if system is None:
        return None
    hard_SP, even_SP, seen_S = system
    best: tuple[float, Language] | None = None
    for prompt, reduction in itertools.product(
        _prompts(hard_SP, even_SP, seen_S, there_BT), get_args(Reduction)
    ):
        language = dataclasses.replace(plain, prompt=prompt, reduction=reduction)
        weights_BT = language.causal_targets(
            ids_BT, mask_BT, pad_id=model.pad_id, dtype=model.loss_dtype
        ).weights
        weights_P = exact(weights_BT[there_BT]).to(hard_SP.device)
        made_S2 = torch.stack([hard_SP @ weights_P, even_SP @ weights_P], 1)
        hard, even = torch.linalg.lstsq(made_S2, seen_S[:, None]).solution[:, 0].tolist()
        off = float((made_S2 @ made_S2.new_tensor([hard, even]) - seen_S).norm() / seen_S.norm())
        if abs(hard + even - 1) > _OFF or off > _OFF or even < -_SMOOTH:
            continue
        if best is None or off < best[0] / 2:
            best = off, dataclasses.replace(language, smoothing=round(1 - hard, 4) if even > _SMOOTH else 0.0)
    return None if best is None else best[1]


def _prompts(hard_SP: Tensor, even_SP: Tensor, seen_S: Tensor, there_BT: Tensor) -> Iterator[tuple[int, ...]]:
    """How many tokens at the beginning have no loss: none, else as many as have no weight."""
    yield ()
    P = hard_SP.shape[1]
    weights_2P = torch.linalg.lstsq(
        torch.cat([hard_SP, even_SP], 1), seen_S[:, None], driver="gelsd"
    ).solution[:, 0]
    weights_P = weights_2P[:P] + weights_2P[P:]
    has_BT = torch.zeros_like(there_BT).masked_scatter(
        there_BT, (weights_P > _NONE * weights_P.max()).to(there_BT.device)
    )
    T = has_BT.shape[1]
    firsts = [min((t + 1 for t in range(T) if row[t]), default=T) for row in has_BT.tolist()]
    if max(firsts) > 1:
        yield (firsts[0],) if len(set(firsts)) == 1 else tuple(firsts)


def _parts(
    view: View, model: TextModel, ids_BT: Tensor, mask_BT: Tensor, labels_BT: Tensor, there_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor] | None:
    """What each prediction adds, against its label (S, P) and against all tokens (S, P), and what was shared (S,)."""
    gradients, head = view.shared.gradients, model.head
    names = nearest_head(model, [name for name in gradients if name not in model.embedding_names])
    if not names or head is None:
        return None
    read: list[Tensor] = []

    def keep(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        read.append(arguments[0])

    with opened(model, names) as parameters, torch.enable_grad():
        with hooked([head.register_forward_pre_hook(keep)]):
            chances_BTC = model.logits(ids_BT, mask_BT).log_softmax(-1)
        hidden_BTD = read[-1]
        if hidden_BTD.shape[:-1] != ids_BT.shape or not hidden_BTD.requires_grad:
            return None
        hard = -chances_BTC.gather(-1, labels_BT[..., None])[..., 0][there_BT].sum()
        even = -chances_BTC.mean(-1)[there_BT].sum()
        outputs = []
        for loss in (hard, even):
            (slope_BTD,) = torch.autograd.grad(loss, hidden_BTD, retain_graph=True)
            output_BT = (hidden_BTD * slope_BTD).sum(-1)
            if model.language.padding == "left":
                output_BT = turned(output_BT, mask_BT, back=True)
            outputs.append(output_BT[there_BT])
        columns_SU, seen_S = linear_system(
            torch.cat(outputs), parameters, [gradients[name] for name in names]
        )
    if not bool(columns_SU.isfinite().all()):
        return None
    hard_SP, even_SP = columns_SU.cpu().chunk(2, 1)
    return hard_SP, even_SP, seen_S.cpu()
