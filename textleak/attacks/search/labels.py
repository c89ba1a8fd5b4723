"""Which tokens a language model's predictions were taken against, read off the last norm's gradient (our choice).

The labels of a language model are tokens, and most of them are inputs too; but the last token of a causal model's
sentence, and a token behind a mask, are labels only. The gradient of the norm right before the output head is
linear in them: once the inputs are guessed, each open label's part in it is known up to which row of the head it is.

Shapes: B sentences, T tokens, V vocabulary, D hidden size, P entries of the norm's gradients, S what the network scales
each of the head's outputs by before it takes them for logits (1 in most; a constant, or the slope of a cap).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from textleak.attacks.search.problem import TextProblem
from textleak.matching import Call, find_rule
from textleak.matching.discrete import Guess
from textleak.matching.hooks import hooked
from textleak.matching.single import form
from textleak.models.losses.language import turned

Prediction = tuple[int, int]
"""Row of the batch, and index of the prediction in it."""

# Rows of the head tried at once: bounds the memory at this many times the hidden size.
_CHUNK = 8192


def rank_labels(
    problem: TextProblem, guess: Guess, places: Sequence[Prediction], keep: int
) -> dict[Prediction, list[int]]:
    """The likeliest labels of some predictions, best first, given the guess's inputs and other labels.

    The places are first filled greedily, the clearest first; then each is ranked given the others.

    Returns:
        `keep` token ids for each place; empty where the last norm's gradient wasn't shared.
    """
    norm = _LastNorm.of(problem, guess)
    if norm is None:
        return {}
    open_ = list(places)
    chosen: dict[Prediction, int] = {}
    missing_P = norm.unexplained(open_)
    while open_:
        best = {place: norm.distances(place, missing_P).min(0) for place in open_}
        place = min(open_, key=lambda p: float(best[p].values))
        chosen[place] = int(best[place].indices)
        missing_P = missing_P - norm.part(place, chosen[place])
        open_.remove(place)
    ranked = {}
    for place in places:
        distances_V = norm.distances(place, missing_P + norm.part(place, chosen[place]))
        ranked[place] = distances_V.topk(min(keep, len(distances_V)), largest=False).indices.tolist()
    return ranked


class _LastNorm:
    """The module whose output the head reads, and what its gradient says about labels."""

    def __init__(
        self,
        module: nn.Module,
        names: dict[str, str],
        input_BTD: Tensor,
        head_VD: Tensor,
        problem: TextProblem,
    ) -> None:
        self.module = module
        self.names = names
        self.input_BTD = input_BTD
        self.head_VD = head_VD
        self.problem = problem

    @classmethod
    def of(cls, problem: TextProblem, guess: Guess) -> _LastNorm | None:
        """The norm before the head, with a forward pass of the guess; None where it isn't there or not shared."""
        network = problem.model.network
        head = network.get_output_embeddings()
        if head is None:
            return None
        made: list[tuple[nn.Module, Tensor, Tensor]] = []
        read: list[Tensor] = []
        scored: list[Tensor] = []

        def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Tensor | None:  # noqa: ANN401
            if module is head:
                read.append(arguments[0].detach())
                scored.append(output.detach().requires_grad_(True))
                return scored[-1].clone()  # some networks scale it in place
            if isinstance(output, Tensor) and arguments and isinstance(arguments[0], Tensor):
                made.append((module, arguments[0].detach(), output.detach()))
            return None

        handles = [module.register_forward_hook(keep) for module in network.modules()]
        leaves = problem.leaves([guess])
        with hooked(handles), torch.enable_grad():
            logits_BTV = problem.model.logits(leaves["inputs"][0], leaves["mask"][0])
        if not read:
            return None
        slopes: tuple[Tensor | None, ...] = torch.autograd.grad(
            logits_BTV.sum(), scored[-1], allow_unused=True
        )
        if (slope := slopes[0]) is None:
            return None
        owner_names = {id(p): name for name, p in problem.model.parameters.items()}
        for module, input_BTD, output in made:
            if output.data_ptr() != read[-1].data_ptr() or find_rule(module) is None:
                continue
            names = {
                local: owner_names[id(p)]
                for local, p in module.named_parameters(recurse=False)
                if owner_names.get(id(p)) in problem.shared.gradients
            }
            if names:
                mask_BT = leaves["mask"][0]
                if problem.model.language.padding == "left":
                    # The network read it so; labels stand as in the guess.
                    input_BTD, slope = (turned(x, mask_BT, back=True) for x in (input_BTD, slope))
                found = cls(module, names, input_BTD, head.weight, problem)
                found._read(leaves, logits_BTV.detach(), slope)
                return found
        return None

    def _read(self, leaves: dict[str, Tensor], logits_BTV: Tensor, slope_BTV: Tensor) -> None:
        smoothing = self.problem.model.language.smoothing
        chances_BTV = logits_BTV.float().softmax(-1).to(self.head_VD.dtype) - smoothing / len(self.head_VD)
        self.expected_BTD = (chances_BTV * slope_BTV) @ self.head_VD
        same = bool((slope_BTV == slope_BTV[0, 0, 0]).all())
        self.scale_BTV = (1 - smoothing) * (slope_BTV[:1, :1, :1] if same else slope_BTV)
        self.labels_BT = leaves["labels"][0]
        self.weights_BT = leaves["weights"][0].to(self.head_VD.dtype)

    def _pulls(self, place: Prediction, labels: slice) -> Tensor:
        """The head's rows of some labels, as they count at a place: (K, D)."""
        b, t = place if self.scale_BTV.numel() > 1 else (0, 0)
        scale = self.scale_BTV[b, t]
        return self.head_VD[labels] * (scale if len(scale) == 1 else scale[labels])[:, None]

    def _gradient(self, input_KD: Tensor, delta_KD: Tensor) -> Tensor:
        """What outputs' gradients, one a candidate, add to the norm's gradients: (K, P)."""
        rule = find_rule(self.module)
        assert rule is not None
        call = Call(
            module=self.module,
            wanted=frozenset(self.names),
            input_R=input_KD[:, None],
            delta_R=delta_KD[:, None],
            candidates=len(input_KD),
        )
        found = rule(call)
        shapes = {local: self.problem.model.parameters[name].shape for local, name in self.names.items()}
        return torch.cat(
            [form([found[local]], tuple(shape)).flatten(1) for local, shape in shapes.items()], 1
        )

    def unexplained(self, open_: Sequence[Prediction]) -> Tensor:
        """The shared gradient less what all predictions and all labels but the open ones make of it: (P,)."""
        shared_P = torch.cat(
            [self.problem.shared.gradients[name].flatten() for name in self.names.values()]
        ).to(self.head_VD)
        scale_BTV = self.scale_BTV.expand(*self.labels_BT.shape, -1)
        if scale_BTV.shape[-1] > 1:
            scale_BTV = scale_BTV.gather(-1, self.labels_BT[..., None])
        pulls_BTD = scale_BTV * self.head_VD[self.labels_BT]
        for place in open_:
            pulls_BTD[place] = 0
        delta_BTD = self.expected_BTD - pulls_BTD
        delta_BTD = delta_BTD * self.weights_BT[..., None]
        own_KP = self._gradient(self.input_BTD.flatten(0, 1), delta_BTD.flatten(0, 1))
        return shared_P - own_KP.sum(0)

    def part(self, place: Prediction, label: int) -> Tensor:
        """What one label adds to the norm's gradients, (P,)."""
        delta_1D = -self.weights_BT[place] * self._pulls(place, slice(label, label + 1))
        return self._gradient(self.input_BTD[place][None], delta_1D)[0]

    def distances(self, place: Prediction, missing_P: Tensor) -> Tensor:
        """How much of `missing_P` stays unexplained with each label at a place: (V,)."""
        found = []
        for start in range(0, len(self.head_VD), _CHUNK):
            rows_KD = self._pulls(place, slice(start, start + _CHUNK))
            input_KD = self.input_BTD[place].expand(len(rows_KD), -1)
            parts_KP = self._gradient(input_KD, -self.weights_BT[place] * rows_KD)
            found.append((missing_P - parts_KP).norm(dim=1))
        return torch.cat(found)
