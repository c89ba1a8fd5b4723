"""The engine's factors, multiplied out, are autograd's gradients: every parameter, family and task."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import EVERY_TASK, ToyModel
from textleak.matching.factored import Capture
from textleak.matching.rules import Call, find_rule
from textleak.matching.single import form
from textleak.models import Targets
from textleak.models.rules import text as rules
from textleak.models.text import TextModel

SENTENCES = ["the cat sat on the mat.", "nobody told john", "hello world"]


def candidates(model: TextModel) -> tuple[Tensor, Tensor, Targets]:
    """The batch, and another one of other words and the same lengths: K = 2."""
    generator = torch.Generator().manual_seed(3)
    batch, targets = model.targets(model.encode(SENTENCES), None, generator)
    other_BT = batch.ids_BT.flip(-1).where(batch.mask_BT == 1, batch.ids_BT)
    return torch.stack([batch.ids_BT, other_BT]), batch.mask_BT.expand(2, -1, -1), targets.expand(2)


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_factored_gradients_are_formed_gradients(toy_model: ToyModel, family: str, task: str) -> None:
    model = toy_model(family, task=task, dtype="float64")
    ids_KBT, mask_KBT, targets = candidates(model)

    def losses(leaves: dict[str, Tensor]) -> Tensor:
        kept = leaves["index"]
        chosen = Targets(labels=targets.labels[kept], weights=targets.weights[kept])
        return model.loss(ids_KBT[kept], mask_KBT[kept], chosen)

    leaves = {"index": torch.arange(2)}
    capture = Capture(model.network, model.parameters)
    reached = capture.formed(losses, leaves, model.parameters, create_graph=False)[1]
    capture = Capture(model.network, reached)
    assert capture.formed_names == ()
    capture.check(losses, leaves)
    if family != "opt":  # it runs its feed-forward layers on all rows' tokens as one long list
        assert capture.formed_names == ()

    losses_K, found = capture.contributions(losses, leaves, create_graph=False)
    torch.testing.assert_close(losses_K, losses(leaves))
    largest = max(float(gradient.norm()) for gradient in reached.values())
    for name, formed_K in reached.items():
        zero_K = torch.zeros_like(formed_K)
        own_K = form(found[name], tuple(formed_K.shape[1:])) if name in found else zero_K
        torch.testing.assert_close(own_K, formed_K, rtol=1e-6, atol=1e-7 * largest, msg=name)


class _OnePlusNorm(nn.Module):
    """As Gemma scales: by one plus the weight."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * inputs.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * (1 + self.weight)


class _ScaledEmbedding(nn.Embedding):
    """As Gemma looks up, shifted as in OPT."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids + 2) * 3


class _Gate(nn.Module):
    """A vector that scales nothing: it's added."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.weight


def test_a_norm_that_scales_by_one_plus_its_weight_has_a_rule() -> None:
    assert find_rule(_OnePlusNorm(4)) is rules.scale_rule


def test_an_embedding_that_shifts_and_scales_gives_its_rows() -> None:
    table = _ScaledEmbedding(9, 4)
    ids_KT = torch.tensor([[0, 3, 3], [6, 1, 0]])
    output = table(ids_KT)
    delta = torch.randn_like(output)
    truth = torch.stack(
        [torch.autograd.grad(output[k], table.weight, delta[k], retain_graph=True)[0] for k in range(2)]
    )
    rule = find_rule(table)
    assert rule is rules.lookup_rule
    call = Call(module=table, wanted=frozenset({"weight"}), input_R=ids_KT, delta_R=delta, candidates=2)
    torch.testing.assert_close(form([rule(call)["weight"]], (9, 4)), truth)


def test_a_vector_that_is_added_has_none() -> None:
    assert find_rule(_Gate(4)) is None
