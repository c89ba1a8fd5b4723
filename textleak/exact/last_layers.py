"""What lies between a causal model's last linear layer that was shared and its output head, run once.

Where all of the batch's inputs are known, so is what every layer reads, X (N, I). From that layer's gradient G = ΔᵀX
the loss gradient at its output follows at every position, Δ = (G X⁺)ᵀ; and what a label adds to Δ is Jᵀ Wᵀ S (p −
onehot(label)), with W the head, p the prediction, J the Jacobian of the norm in between, and S what the network scales
each of the head's outputs by before it takes them for logits (1 in most; a constant, or the slope of a cap). Where the
client smoothed its labels, p is less by what is spread over the vocabulary, and S by the part that was taken for it.

Shapes: N beginnings, I and O the layer's input and output size, D the head's input size, C classes (the vocabulary,
for language models), R rows of T positions that hold all beginnings.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from textleak.matching.discrete import Row
from textleak.matching.hooks import hooked
from textleak.models import TextModel
from textleak.models.padding import OnlyThere
from textleak.models.probes.layers import matrix_calls
from textleak.models.running import run
from textleak.numerics import exact
from textleak.shared.gradient import SharedGradient

# Layers that may come after the one that labels are read off: more than a block is slow, and less sure (our choice).
_MOST_AFTER = 6
# Rows of the head that are squared at once, and entries of a gradient that are solved for at once: both bound the
# memory.
_ROWS, _ENTRIES = 8192, 2**22
# The part of a layer's gradient, in eps, that may be left when all its inputs are known (our choice; measured on gpt2
# and smollm2).
_WHOLE = 1000.0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LastLayers:
    """What lies between the last linear layer that was shared and the head, at each of N beginnings.

    Attributes:
        places: row and position of each beginning.
        nodes_RT: the beginning that stands at each row and position, N behind its end.
        local: whether a label's gradient reaches its own position alone.
        shape: rows, and positions in each.
        output: the layer's output, where the graph begins.
        hidden: the head's input, where it ends.
        delta_NO: loss gradient at the layer's output, float64.
        noise_N: squared norm that it may be off by.
        whole: whether the beginnings' inputs make all of the layer's gradient.
        expected_ND: the head's rows, weighted by the prediction and by S.
        head_CD: the head's rows.
        scale_NC: S, by which each row counts at each beginning; (1, 1) where it is the same for all.
        squared_C: the rows' squared norms.
    """

    places: tuple[Tensor, Tensor]
    nodes_RT: Tensor
    local: bool
    shape: tuple[int, int]
    output: Tensor
    hidden: Tensor
    delta_NO: Tensor
    noise_N: Tensor
    whole: bool
    expected_ND: Tensor
    head_CD: Tensor
    scale_NC: Tensor
    squared_C: Tensor

    @classmethod
    def of(cls, model: TextModel, shared: SharedGradient, beginnings: Sequence[Row]) -> LastLayers | None:
        """A forward pass of the beginnings; None where no such layer's gradient was shared."""
        head, last = model.head, _last_linear(model, shared)
        if head is None or last is None:
            return None
        weight_name, layer = last
        layout = _Layout.of(model, beginnings)
        input_RTI, output, hidden, logits_NC, scale_NC = _run(model, layer, head, layout)
        shape = (layout.ids_RT.shape[0], layout.ids_RT.shape[1])
        hidden_RTD = hidden.view(*shape, -1)
        gradient_OI = shared.gradients[weight_name]
        if not hasattr(layer, "in_features"):  # GPT-2 keeps its weights as (inputs, outputs)
            gradient_OI = gradient_OI.T
        delta_NO, noise_N, whole = _at_the_output(
            exact(input_RTI.view(*shape, -1)[layout.places]), gradient_OI
        )
        with torch.no_grad():
            weight_CD = _weight(head).detach()
            chances_NC = logits_NC.to(model.loss_dtype).softmax(-1).to(weight_CD.dtype)
            spread = model.language.smoothing
            expected_ND = ((chances_NC - spread / len(weight_CD)) * scale_NC) @ weight_CD
            scale_NC = scale_NC * (1 - spread)
        return cls(
            places=layout.places,
            nodes_RT=layout.nodes_RT,
            local=_is_local(output, hidden_RTD),
            shape=shape,
            output=output,
            hidden=hidden,
            delta_NO=delta_NO,
            noise_N=noise_N,
            whole=whole,
            expected_ND=expected_ND,
            head_CD=weight_CD,
            scale_NC=scale_NC,
            squared_C=torch.cat([part.square().sum(1) for part in torch.split(weight_CD, _ROWS)]),
        )

    @property
    def eps(self) -> float:
        """Relative rounding error of an entry that the layers in between compute."""
        return torch.finfo(self.hidden.dtype).eps

    def atoms(self, nodes: Sequence[int], labels: Sequence[int]) -> Tensor:
        """What a share of 1 for a label at each of `nodes` adds to Δ there: (N, O)."""
        rows_ND = self.expected_ND[list(nodes)] - self._heads(nodes, labels)
        (slope,) = torch.autograd.grad(
            self.hidden, self.output, self._spread(nodes, rows_ND), retain_graph=True
        )
        return exact(self._gathered(nodes, slope))

    def reach(self, node: int, label: int) -> Tensor:
        """What a share of 1 for a label at a beginning adds to Δ at all of them: (N, O)."""
        row_1D = self.expected_ND[node : node + 1] - self._heads([node], [label])
        (slope,) = torch.autograd.grad(
            self.hidden, self.output, self._spread([node], row_1D), retain_graph=True
        )
        slope_PO = exact(self._by_place(slope)).flatten(0, 1)
        found_NO = slope_PO.new_zeros(len(self.delta_NO) + 1, slope_PO.shape[1])
        return found_NO.index_add(0, self.nodes_RT.flatten(), slope_PO)[:-1]

    def push(self, nodes: Sequence[int], changes_NO: Tensor) -> Tensor:
        """How the head's input at each of `nodes` changes with the layer's output: (N, D)."""
        direction = torch.zeros_like(self.hidden, requires_grad=True)
        (slope,) = torch.autograd.grad(
            self.hidden, self.output, direction, create_graph=True, retain_graph=True
        )
        if self.local:
            spread = self._spread(nodes, changes_NO.to(slope), like=self.output)
        else:
            padded = torch.cat([changes_NO, torch.zeros_like(changes_NO[:1])]).to(slope)
            spread = padded[self.nodes_RT].view_as(self.output)
        (change,) = torch.autograd.grad(slope, direction, spread, retain_graph=True)
        return self._gathered(nodes, change).detach()

    def slopes(self, nodes: Sequence[int], missing_NO: Tensor) -> Tensor:
        """About how well each label at each of `nodes` points the missing part's way, (N, C)."""
        expected_ND = self.expected_ND[list(nodes)]
        # The inner product with a label's part, over the norm that it would have if J were a multiple of the identity.
        slopes_ND = self.push(nodes, missing_NO)
        scale_NC = self.scale_NC if len(self.scale_NC) == 1 else self.scale_NC[list(nodes)]
        along_NC = (slopes_ND * expected_ND).sum(1, keepdim=True) - (slopes_ND @ self.head_CD.T) * scale_NC
        squared_NC = (
            expected_ND.square().sum(1, keepdim=True)
            - 2 * (expected_ND @ self.head_CD.T) * scale_NC
            + self.squared_C * scale_NC.square()
        )
        return along_NC * squared_NC.clamp_min(1e-12).rsqrt()

    def _heads(self, nodes: Sequence[int], labels: Sequence[int]) -> Tensor:
        """The head's row of a label at each of `nodes`, as it counts there: (N, D)."""
        rows_ND = self.head_CD[list(labels)]
        if self.scale_NC.numel() == 1:
            return rows_ND * self.scale_NC
        return rows_ND * self.scale_NC[list(nodes), list(labels)][:, None]

    def _spread(self, nodes: Sequence[int], values_ND: Tensor, *, like: Tensor | None = None) -> Tensor:
        like = self.hidden if like is None else like
        rows, columns = (place[list(nodes)] for place in self.places)
        spread = torch.zeros_like(self._by_place(like))
        spread[rows, columns] = values_ND.to(spread)
        return spread.view_as(like)

    def _gathered(self, nodes: Sequence[int], values: Tensor) -> Tensor:
        rows, columns = (place[list(nodes)] for place in self.places)
        return self._by_place(values)[rows, columns]

    def _by_place(self, values: Tensor) -> Tensor:
        """Some networks run all sentences' tokens through a layer as one long list."""
        return values.reshape(*self.shape, -1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Layout:
    """Padded rows that hold all beginnings, on the model's device.

    Attributes:
        ids_RT, mask_RT: tokens, and which of them are there.
        places: row and position of each beginning, (N,) each.
        nodes_RT: the beginning that stands at each row and position, N behind its end.
    """

    ids_RT: Tensor
    mask_RT: Tensor
    places: tuple[Tensor, Tensor]
    nodes_RT: Tensor

    @classmethod
    def of(cls, model: TextModel, beginnings: Sequence[Row]) -> _Layout:
        inner = {row[:t] for row in beginnings for t in range(1, len(row))}
        rows = [row for row in beginnings if row not in inner]
        ids = torch.full((len(rows), max(map(len, rows))), model.pad_id)
        mask = torch.zeros_like(ids)
        where: dict[Row, tuple[int, int]] = {}
        nodes_RT = torch.full_like(ids, len(beginnings))
        index = {row: n for n, row in enumerate(beginnings)}
        for r, row in enumerate(rows):
            ids[r, : len(row)] = torch.tensor(row)
            mask[r, : len(row)] = 1
            for t in range(len(row)):
                where[row[: t + 1]] = (r, t)
                # Repetitions of a first token stand for the same beginning.
                nodes_RT[r, t] = index.get(row[: t + 1], index.get(row[:1], len(beginnings)))
        rows_N, columns_N = torch.tensor([where[row] for row in beginnings], device=model.device).T
        return cls(
            ids_RT=ids.to(model.device),
            mask_RT=mask.to(model.device),
            places=(rows_N, columns_N),
            nodes_RT=nodes_RT.to(model.device),
        )


def _at_the_output(inputs_NI: Tensor, gradient_OI: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Δ with ΔᵀX = G, (N, O); the squared norm that each row may be off by; whether these inputs make all of G."""
    outputs, inputs = gradient_OI.shape
    inverse_IN = torch.linalg.pinv(inputs_NI)
    delta, squared_rest, squared_norm = [], 0.0, 0.0
    for part in torch.split(gradient_OI, max(1, _ENTRIES // inputs)):
        part_OI = exact(part).to(inputs_NI.device)
        part_ON = part_OI @ inverse_IN
        squared_norm += float(part_OI.square().sum())
        squared_rest += float(torch.addmm(part_OI, part_ON, inputs_NI, alpha=-1).square().sum())
        delta.append(part_ON)
    variance = squared_rest / (outputs * max(1, inputs - len(inputs_NI)))
    least = _WHOLE * torch.finfo(gradient_OI.dtype).eps
    noise_N = outputs * variance * inverse_IN.square().sum(0)
    return torch.cat(delta).T, noise_N, squared_rest**0.5 <= least * squared_norm**0.5


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _last_linear(model: TextModel, shared: SharedGradient) -> tuple[str, nn.Module] | None:
    """The last layer before the head whose gradient was shared, if its weight is used once; with its name."""
    order = [model.network.get_submodule(name) for name in matrix_calls(model)]
    names = {id(parameter): name for name, parameter in model.parameters.items()}
    uses = Counter(names[id(module.weight)] for module in order)
    last = [
        module for module in order[: -_MOST_AFTER - 2 : -1] if names[id(module.weight)] in shared.gradients
    ]
    # A gate of one output shows one number a beginning, which tells no label.
    module = next((module for module in last if min(_weight(module).shape) > 1), None)
    if module is None or uses[names[id(module.weight)]] > 1:
        return None
    return names[id(module.weight)], module


def _run(
    model: TextModel, layer: nn.Module, head: nn.Module, layout: _Layout
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A layer's input and output, and the head's input, with the graph between the last two and nothing else.

    And the network's own logits at each beginning, and what it scales the head's outputs by: `LastLayers.scale_NC`.
    """
    seen: dict[str, Tensor] = {}

    def cut(_module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        seen["input"], seen["output"] = arguments[0].detach(), output.detach().requires_grad_(True)
        return seen["output"].clone()  # some networks add to it in place

    def read(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        seen["hidden"] = hidden = arguments[0]
        chosen_ND = hidden.detach().view(*layout.ids_RT.shape, -1)[layout.places]
        return (chosen_ND.view(*(1,) * (hidden.dim() - 2), *chosen_ND.shape),)

    def scaled(_module: nn.Module, _arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        seen["logits"] = output.detach()
        if model.num_labels is not None:
            # A class is read off the last token; here every beginning ends a sentence.
            raise _Enough
        seen["logits"].requires_grad_(True)
        return seen["logits"].clone()  # some networks scale it in place

    handles = [
        layer.register_forward_hook(cut),
        head.register_forward_pre_hook(read),
        head.register_forward_hook(scaled),
    ]
    count = len(layout.places[0])
    spared = OnlyThere(layout.mask_RT) if model.wide else nullcontext()
    with hooked(handles), torch.enable_grad(), spared:
        try:
            logits = run(model, layout.ids_RT, mask=layout.mask_RT).logits
        except _Enough:
            logits_NC = seen["logits"].view(count, -1)
            return (
                seen["input"],
                seen["output"],
                seen["hidden"],
                logits_NC,
                torch.ones_like(logits_NC[:1, :1]),
            )
        (slope,) = torch.autograd.grad(logits.sum(), seen["logits"])
    scale_NC = slope.view(count, -1)
    same = bool((scale_NC == scale_NC[0, 0]).all())
    logits_NC = logits.detach().view(count, -1)
    return seen["input"], seen["output"], seen["hidden"], logits_NC, scale_NC[:1, :1] if same else scale_NC


class _Enough(Exception):  # noqa: N818
    """Everything wanted was seen; not an error."""


def _is_local(output: Tensor, hidden_RTD: Tensor) -> bool:
    """Whether what the head reads at the last position depends on the layer's output there alone."""
    direction_D = torch.arange(1, hidden_RTD.shape[-1] + 1).cos().to(hidden_RTD)
    (slope,) = torch.autograd.grad((hidden_RTD[:, -1] @ direction_D).sum(), output, retain_graph=True)
    return not bool(slope.reshape(*hidden_RTD.shape[:2], -1)[:, :-1].any())
