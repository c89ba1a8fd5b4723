"""The first layers of every family are found, and their inputs span the rows of their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conftest import DECODERS, EVERY_TASK, FAMILIES, ToyModel
from textleak.models.probes.layers import LocalLayer, layer_inputs, local_layers
from textleak.models.text import TextModel

SENTENCE = "the cat sat on the mat."
ROTARY = ("llama", "qwen2")


def roles(layers: tuple[LocalLayer, ...]) -> list[str]:
    return [layer.name.rpartition(".")[2] for layer in layers]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("bert", ["query", "key", "value"]),
        ("distilbert", ["q_lin", "k_lin", "v_lin"]),
        ("roberta", ["query", "key", "value"]),
        ("albert", ["embedding_hidden_mapping_in", "query", "key", "value"]),
        ("electra", ["embeddings_project", "query", "key", "value"]),
        ("gpt2", ["c_attn"]),
        ("opt", ["q_proj", "k_proj", "v_proj"]),
        ("llama", ["q_proj", "k_proj", "v_proj"]),
        ("qwen2", ["q_proj", "k_proj", "v_proj"]),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_before_the_first_attention_is_local_and_nothing_else(
    toy_model: ToyModel, family: str, expected: list[str], dtype: str
) -> None:
    layers = local_layers(toy_model(family, dtype=dtype))
    assert sorted(roles(layers)) == sorted(expected)
    attention = [layer for layer in layers if not layer.name.endswith(("mapping_in", "project"))]
    assert {layer.input_group for layer in attention} == {attention[0].name}


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_a_local_input_is_the_same_in_every_sentence(toy_model: ToyModel, family: str, task: str) -> None:
    model = toy_model(family, task=task)
    layers = local_layers(model)
    content = model.content_ids
    generator = torch.Generator().manual_seed(1)
    ids_NT = content[torch.randint(len(content), (6, 5), generator=generator)]
    ids_NT[:, 2] = content[7]
    for name, inputs_NTI in layer_inputs(model, ids_NT, [layer.name for layer in layers]).items():
        torch.testing.assert_close(inputs_NTI[:, 2], inputs_NTI[:1, 2].expand(6, -1), msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_rotary_positions_leave_the_first_input_alone(toy_model: ToyModel, family: str) -> None:
    for layer in local_layers(toy_model(family)):
        assert layer.depends_on_position == (family not in ROTARY)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_layers_share_are_used_more_than_once(toy_model: ToyModel, family: str) -> None:
    for layer in local_layers(toy_model(family)):
        shared = family == "albert" and not layer.name.endswith("mapping_in")
        assert layer.used_once == (not shared)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_side_of_the_weight_that_meets_the_input_is_known(toy_model: ToyModel, family: str) -> None:
    model = toy_model(family)
    for layer in local_layers(model):
        shape = tuple(model.parameters[layer.weight_name].shape)
        sides = (layer.output_size, layer.input_size)
        assert shape == (sides[::-1] if layer.transposed else sides)
        assert layer.transposed == (family == "gpt2")


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_inputs_span_the_rows_of_the_gradient(toy_model: ToyModel, family: str, task: str) -> None:
    """G = ΔᵀX: what the span attack stands on, from nothing but ids and the shared gradient."""
    model = toy_model(family, task=task, dtype="float64")
    batch, targets = model.targets(model.encode([SENTENCE]), None, torch.Generator().manual_seed(0))
    used_once = [layer for layer in local_layers(model) if layer.used_once]
    inputs = layer_inputs(model, batch.ids_BT, [layer.name for layer in used_once])
    for layer in used_once:
        weight = model.parameters[layer.weight_name].requires_grad_(True)
        try:
            loss = model.loss(batch.ids_BT[None], batch.mask_BT[None], targets.expand(1))
            (gradient,) = torch.autograd.grad(loss.sum(), weight)
        finally:
            weight.requires_grad_(False)
        rows_OI = gradient.T if layer.transposed else gradient
        inputs_TI = inputs[layer.name][0]
        fitted = torch.linalg.lstsq(inputs_TI.T, rows_OI.T, driver="gelsd").solution
        residual = (inputs_TI.T @ fitted - rows_OI.T).norm()
        assert float(residual) <= 1e-5 * max(float(rows_OI.norm()), 1e-9), layer.name


def deep_layer(model: TextModel) -> str:
    """The last linear layer within the network's body."""
    names = [
        name
        for name, module in model.network.base_model.named_modules()
        if isinstance(module, nn.Linear) and "pool" not in name
    ]
    prefix = next(n for n, m in model.network.named_modules() if m is model.network.base_model)
    return f"{prefix}.{names[-1]}"


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gpt2"])
def test_deeper_inputs_depend_on_the_context_and_can_be_asked_for(toy_model: ToyModel, family: str) -> None:
    model = toy_model(family)
    batch = model.encode([SENTENCE, "hello"])
    name = deep_layer(model)
    seen: list[torch.Tensor] = []
    hook = model.network.get_submodule(name).register_forward_pre_hook(
        lambda _module, arguments: seen.append(arguments[0])
    )
    with torch.no_grad():
        model.network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT)
    hook.remove()
    read = layer_inputs(model, batch.ids_BT, [name], mask=batch.mask_BT)[name]
    kept = batch.mask_BT == 1
    torch.testing.assert_close(read[kept], seen[0].view_as(read)[kept])


def test_the_network_runs_only_as_far_as_needed(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    name = local_layers(model)[0].name
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
        for module in model.network.modules()
    ]
    layer_inputs(model, model.encode([SENTENCE]).ids_BT, [name])
    for hook in hooks:
        hook.remove()
    assert ran
    assert not any(isinstance(module, nn.Linear) for module in ran)


def test_gradients_flow_into_embeddings_that_ask_for_them(toy_model: ToyModel) -> None:
    model = toy_model("electra")
    name = local_layers(model)[-1].name
    embeddings_NTE = model.embed(model.encode([SENTENCE]).ids_BT).requires_grad_(True)
    read = layer_inputs(model, embeddings_NTE, [name])[name]
    (slope,) = torch.autograd.grad(read.square().sum(), embeddings_NTE)
    assert slope.any()
    assert not layer_inputs(model, embeddings_NTE.detach(), [name])[name].requires_grad


def test_a_module_that_never_runs_is_an_error(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    model.network.add_module("idle", nn.Linear(2, 2))
    try:
        with pytest.raises(ValueError, match="idle"):
            layer_inputs(model, model.encode([SENTENCE]).ids_BT, ["idle"])
    finally:
        del model.network.idle


@pytest.mark.parametrize("family", ["bert", *DECODERS])
def test_probing_leaves_no_hook_behind(toy_model: ToyModel, family: str) -> None:
    model = toy_model(family)
    local_layers(model)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.network.modules())
