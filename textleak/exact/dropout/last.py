"""The last tokens of a language model's sentences: no layer reads them, but they are labels (our choice).

What the loss gradient at the head's input adds up to is the gradient of the last norm's bias: Σ (prediction − label),
in the head's rows. All labels but the last ones are tokens that are known, and predictions follow from them, up to what
dropout does to these. What is left are the last tokens' rows. Which of them ends which sentence is told by the gradient
of the norm's weight, where each stands times what the norm made of its place.

This is the likeliest reading, not a proof: the predictions are those without dropout.

Shapes: B sentences, T tokens of the longest one, D the head's input size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from textleak.assignment import assignment
from textleak.clients.view import View
from textleak.exact.found import OPEN
from textleak.matching.discrete import Row
from textleak.models import TextModel
from textleak.models.decoding import unreachable_tokens
from textleak.models.probes.layers import layer_inputs
from textleak.numerics import exact


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ending:
    """The last token of a sentence.

    Attributes:
        token: which.
        confidence: how much nearer it is than the next best one, 0 to 1.
    """

    token: int
    confidence: float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Places:
    """What the head reads at every place of the sentences that predicts a token.

    Attributes:
        normed_ND: what the last norm makes, before weight and bias.
        expected_ND: the head's row that is predicted there, on average.
        labels_N: the token that follows; `OPEN` for the last.
        head_VD: the head.
    """

    normed_ND: Tensor
    expected_ND: Tensor
    labels_N: Tensor
    head_VD: Tensor


def endings(view: View, rows: Sequence[Row]) -> list[Ending] | None:
    """What ends each sentence; None where the last norm's bias was not shared, or there is none.

    Args:
        view: what the server sees.
        rows: all tokens of the batch's sentences but the last ones.
    """
    model, shared = view.text_model, view.shared
    norm = _last_norm(model)
    if norm is None or any(OPEN in row for row in rows):
        return None
    name, module = norm
    bias, weight = f"{name}.bias", f"{name}.weight"
    if bias not in shared.gradients:
        return None
    places = _places(model, name, module, rows)
    count = len(places.labels_N)
    known_N = places.labels_N != OPEN
    labels_ND = places.head_VD[places.labels_N.clamp_min(0)] * known_N[:, None]
    settled_ND = places.expected_ND - labels_ND
    left_D = settled_ND.sum(0) - count * exact(shared.gradients[bias]).cpu()
    barred_V = torch.zeros(len(places.head_VD), dtype=torch.bool)
    barred_V[[token for token in unreachable_tokens(model) if token not in model.suffix_ids]] = True
    chosen, confidence = _made_of(left_D, places.head_VD, barred_V, len(rows))
    ends_BD = places.normed_ND[~known_N]
    if weight in shared.gradients and len(rows) > 1:
        seen_D = (settled_ND * places.normed_ND).sum(0) - count * exact(shared.gradients[weight]).cpu()
        gain_BB = (ends_BD * seen_D) @ places.head_VD[chosen].T
        order = [column for _, column in assignment(gain_BB.numpy(), maximize=True)]
        chosen, confidence = [chosen[i] for i in order], [confidence[i] for i in order]
    return [Ending(token=t, confidence=c) for t, c in zip(chosen, confidence, strict=True)]


def _made_of(left_D: Tensor, head_VD: Tensor, barred_V: Tensor, count: int) -> tuple[list[int], list[float]]:
    """The rows of the head that add up to a vector: greedily, then each again with all others taken off."""
    squares_V = head_VD.square().sum(1)

    def nearest(wanted_D: Tensor) -> tuple[int, float]:
        gain_V = (2 * head_VD @ wanted_D - squares_V).masked_fill(barred_V, -torch.inf)
        two = gain_V.topk(2)
        best, next_best = two.values.tolist()
        return int(two.indices[0]), max(0.0, min(1.0, (best - next_best) / float(squares_V[two.indices[0]])))

    chosen: list[int] = []
    for _ in range(count):
        chosen.append(nearest(left_D - head_VD[chosen].sum(0))[0])
    confidence = [0.0] * count
    for _ in range(count):
        before = list(chosen)
        for i in range(count):
            others_D = head_VD[chosen].sum(0) - head_VD[chosen[i]]
            chosen[i], confidence[i] = nearest(left_D - others_D)
        if chosen == before:
            break
    return chosen, confidence


def _places(model: TextModel, name: str, norm: nn.Module, rows: Sequence[Row]) -> _Places:
    head = model.head
    assert head is not None
    head_VD = exact(head.weight.detach()).cpu()  # type: ignore[operator]
    head_name = next(path for path, module in model.network.named_modules() if module is head)
    gain_D, bias_D = exact(norm.weight.detach()).cpu(), exact(norm.bias.detach()).cpu()  # type: ignore[operator]
    normed, expected, labels = [], [], []
    for row in rows:
        ids_1T = torch.tensor([row], device=model.device)
        read_TD = exact(layer_inputs(model, ids_1T, [head_name])[head_name][0]).cpu()
        normed.append((read_TD - bias_D) / gain_D)
        expected.append((read_TD @ head_VD.T).softmax(-1) @ head_VD)
        labels += [*row[1:], OPEN]
    return _Places(
        normed_ND=torch.cat(normed),
        expected_ND=torch.cat(expected),
        labels_N=torch.tensor(labels),
        head_VD=head_VD,
    )


def _last_norm(model: TextModel) -> tuple[str, nn.Module] | None:
    """The norm with weight and bias whose output the head reads."""
    if model.head is None:
        return None
    head_name = next(path for path, module in model.network.named_modules() if module is model.head)
    ids_1T = model.content_ids[None, :3]
    outputs: list[tuple[str, nn.Module, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda m, _, output, n=name: outputs.append((n, m, output)))
        for name, module in model.network.named_modules()
        if all(isinstance(getattr(module, part, None), nn.Parameter) for part in ("weight", "bias"))
        and module.weight.dim() == 1
    ]
    try:
        read_1TD = layer_inputs(model, ids_1T, [head_name])[head_name]
    finally:
        for handle in handles:
            handle.remove()
    same = [
        (name, module)
        for name, module, output in outputs
        if output.shape == read_1TD.shape and torch.equal(output, read_1TD)
    ]
    return same[-1] if same else None
