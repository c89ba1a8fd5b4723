"""Factored gradients equal the gradients that autograd forms, whatever the layers."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import textleak.matching
from textleak.errors import AttackError, InputError
from textleak.matching import (
    TAG,
    CosineGlobal,
    CosinePerTensor,
    Matcher,
    Outer,
    SquaredL2,
    Target,
    register_rule,
)
from textleak.matching.rules import Call, Formed

VOCABULARY, HIDDEN, CLASSES, TOKENS = 13, 6, 3, 5


class TransposedLinear(nn.Module):
    """GPT-2's Conv1D: the weight is stored (in, out)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * 0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


def transposed_rule(call: Call):
    delta = call.per_candidate(call.delta_R)
    return {
        "weight": Outer(left_KNO=call.per_candidate(call.input_R), right_KNI=delta),
        "bias": Formed(gradient_K=delta.sum(1)),
    }


class Scale(nn.Module):
    """A module that no rule knows."""

    def __init__(self, size):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(size))

    def forward(self, x):
        return x * self.scale.sigmoid()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))
        self.up, self.down = nn.Linear(HIDDEN, 2 * HIDDEN), TransposedLinear(2 * HIDDEN, HIDDEN)
        self.norm, self.rms = nn.LayerNorm(HIDDEN), nn.RMSNorm(HIDDEN)

    def forward(self, x):
        attention = functional.softmax(self.query(x) @ self.key(x).mT / HIDDEN**0.5, -1)
        x = self.norm(x + attention @ self.value(x))
        return self.rms(x + self.down(functional.gelu(self.up(x))))


class Network(nn.Module):
    """Embeddings (positions once for all rows), a block used `repeats` times, a head tied or free."""

    def __init__(self, *, repeats=1, tied=False, scale=False):
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, HIDDEN, padding_idx=0), nn.Embedding(8, HIDDEN)
        self.block, self.repeats = Block(), repeats
        self.scale = Scale(HIDDEN) if scale else nn.Identity()
        self.head = nn.Linear(HIDDEN, VOCABULARY if tied else CLASSES, bias=not tied)
        if tied:
            self.head.weight = self.words.weight
        for norm in (self.block.norm, self.block.rms):
            nn.init.normal_(norm.weight)

    def forward(self, ids=None, embeddings=None):
        x = self.words(ids) if embeddings is None else embeddings
        x = x + self.positions(torch.arange(x.shape[1]).unsqueeze(0))
        for _ in range(self.repeats):
            x = self.block(x)
        return self.head(self.scale(x))


register_rule(TransposedLinear, transposed_rule)


def build(**options):
    torch.manual_seed(0)
    network = Network(**options).double()
    return network.requires_grad_(False)


def model_function(network):
    """Mean cross entropy of each candidate's B sentences; soft labels, one a sentence."""

    def losses(leaves):
        inputs = leaves.get("embeddings", leaves.get("ids"))
        k, b = inputs.shape[:2]
        keyword = "embeddings" if "embeddings" in leaves else "ids"
        logits = network(**{keyword: inputs.flatten(0, 1)}).mean(1)
        labels = leaves["labels"].softmax(-1).flatten(0, 1)
        return -(logits.log_softmax(-1) * labels).sum(-1).view(k, b).mean(1)

    return losses


def make_leaves(network, k=3, b=2, *, ids=False, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = (
        torch.randint(0, VOCABULARY, (k, b, TOKENS), generator=generator)
        if ids
        else torch.randn(k, b, TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    )
    classes = network.head.out_features
    labels = torch.randn(k, b, classes, generator=generator, dtype=torch.float64)
    return {"ids" if ids else "embeddings": inputs, "labels": labels}


def formed_gradients(network, leaves, names, *, create_graph=False):
    """The plain way: one candidate, one backward pass with regard to the parameters."""
    chosen = {name: p for name, p in network.named_parameters() if name in names}
    for p in chosen.values():
        p.requires_grad_(True)
    loss = model_function(network)(leaves).sum()
    gradients = torch.autograd.grad(loss, list(chosen.values()), create_graph=create_graph)
    for p in chosen.values():
        p.requires_grad_(False)
    return dict(zip(chosen, gradients, strict=True))


def one(leaves, k):
    return {name: leaf[k : k + 1] for name, leaf in leaves.items()}


def make_target(network, names, **leaf_options):
    leaves = make_leaves(network, 1, seed=9, **leaf_options)
    return Target.from_gradients(formed_gradients(network, leaves, names))


def all_names(network, without=()):
    return [name for name, _ in network.named_parameters() if name not in without]


CASES = {
    "every layer, from embeddings": ({}, False),
    "every layer, from ids": ({}, True),
    "weights used three times": ({"repeats": 3}, False),
    "a head tied to the word embedding, from ids": ({"tied": True}, True),
    "tied and repeated": ({"tied": True, "repeats": 2}, True),
    "a module without a rule": ({"scale": True}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_moments_equal_those_of_formed_gradients(case):
    options, ids = CASES[case]
    network = build(**options)
    names = all_names(network, without=() if ids else ("words.weight",))
    target = make_target(network, names, ids=ids)
    matcher = Matcher.of(network, target, TAG())
    leaves = make_leaves(network, ids=ids)
    moments = matcher.moments(model_function(network), leaves)
    shared = {name: target.tensors[name].formed() for name in target.names}
    assert moments.names == target.names
    for k in range(3):
        own = formed_gradients(network, one(leaves, k), names)
        for p, name in enumerate(moments.names):
            torch.testing.assert_close(moments.own_KP[k, p], own[name].square().sum())
            torch.testing.assert_close(
                moments.cross_KP[k, p], (own[name] * shared[name]).sum(), atol=1e-9, rtol=1e-7
            )
            torch.testing.assert_close(moments.absolute_KP[k, p], (own[name] - shared[name]).abs().sum())
    assert set(matcher.formed_names) == ({"scale.scale"} if options.get("scale") else set())


@pytest.mark.parametrize(
    "objective", [SquaredL2(), CosinePerTensor(), CosineGlobal(), TAG(alpha=0.1)], ids=repr
)
@pytest.mark.parametrize("options", [{}, {"repeats": 2, "scale": True}], ids=["plain", "repeated, formed"])
def test_dummy_gradients_equal_those_of_the_formed_method(objective, options):
    network = build(**options)
    target = make_target(network, all_names(network, without=("words.weight",)))
    names = target.names  # the key's bias, 0 in theory, is left out
    leaves = make_leaves(network)
    matcher = Matcher.of(network, target, objective)
    distances, gradients = matcher.value_and_gradient(model_function(network), leaves, leaves)
    shared = {name: target.tensors[name].formed() for name in names}
    for k in range(3):
        alone = {name: leaf.clone().requires_grad_() for name, leaf in one(leaves, k).items()}
        own = formed_gradients(network, alone, names, create_graph=True)
        if isinstance(objective, SquaredL2 | TAG):
            alpha = getattr(objective, "alpha", 0.0)
            expected = sum(
                (own[n] - shared[n]).square().sum() + alpha * (own[n] - shared[n]).abs().sum() for n in names
            )
        elif isinstance(objective, CosinePerTensor):
            expected = sum(
                1 - functional.cosine_similarity(own[n].flatten(), shared[n].flatten(), 0) for n in names
            ) / len(names)
        else:
            expected = 1 - functional.cosine_similarity(
                torch.cat([own[n].flatten() for n in names]),
                torch.cat([shared[n].flatten() for n in names]),
                0,
            )
        torch.testing.assert_close(distances[k], expected.detach())
        for name, truth in zip(alone, torch.autograd.grad(expected, list(alone.values())), strict=True):
            torch.testing.assert_close(gradients[name][k : k + 1], truth, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "objective", [SquaredL2(), CosinePerTensor(), CosineGlobal(), TAG(alpha=0.1)], ids=repr
)
def test_dummy_gradients_equal_finite_differences(objective):
    network = build()
    matcher = Matcher.of(network, make_target(network, all_names(network, ("words.weight",))), objective)
    leaves = make_leaves(network, 1, 1)
    function = model_function(network)
    _, gradients = matcher.value_and_gradient(function, leaves, ["embeddings", "labels"])
    generator = torch.Generator().manual_seed(3)
    for name, leaf in leaves.items():
        direction = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        step = 1e-5
        ahead = matcher.evaluate(function, {**leaves, name: leaf + step * direction})
        behind = matcher.evaluate(function, {**leaves, name: leaf - step * direction})
        slope = (ahead - behind) / (2 * step)
        torch.testing.assert_close(slope[0], (gradients[name] * direction).sum(), rtol=1e-4, atol=1e-8)


def test_a_model_function_may_look_words_up_itself():
    network = build()
    matcher = Matcher.of(network, make_target(network, all_names(network), ids=True), SquaredL2())
    leaves = make_leaves(network, 4, ids=True)

    def looked_up(some):
        return model_function(network)(
            {
                "embeddings": network.words(some["ids"].flatten(0, 1)).unflatten(0, (-1, 2)),
                "labels": some["labels"],
            }
        )

    found = matcher.evaluate(looked_up, leaves)
    assert matcher.formed_names == ()
    torch.testing.assert_close(found, matcher.evaluate(model_function(network), leaves))


def test_candidates_do_not_mix():
    network = build()
    matcher = Matcher.of(network, make_target(network, all_names(network, ("words.weight",))), SquaredL2())
    function, leaves = model_function(network), make_leaves(network, 4)
    together, gradients = matcher.value_and_gradient(function, leaves, ["embeddings"])
    for k in range(4):
        alone, gradient = matcher.value_and_gradient(function, one(leaves, k), ["embeddings"])
        torch.testing.assert_close(together[k : k + 1], alone)
        torch.testing.assert_close(gradients["embeddings"][k : k + 1], gradient["embeddings"])


def test_evaluation_needs_no_second_derivative_and_equals_the_differentiable_distance():
    network = build(tied=True)
    matcher = Matcher.of(network, make_target(network, all_names(network), ids=True), CosinePerTensor())
    leaves = make_leaves(network, 5, ids=True)
    cheap = matcher.evaluate(model_function(network), leaves)
    assert not cheap.requires_grad
    torch.testing.assert_close(cheap, matcher.distances(model_function(network), leaves).detach())


def test_the_shared_sentence_has_distance_zero():
    network = build(tied=True, repeats=2)
    target = make_target(network, all_names(network), ids=True)
    matcher = Matcher.of(network, target, SquaredL2())
    distance = matcher.evaluate(model_function(network), make_leaves(network, 1, seed=9, ids=True))
    assert abs(distance.item()) <= 1e-12 * target.squared_norm


def test_tensors_of_weight_zero_are_never_computed():
    network = build(scale=True)
    target = make_target(network, all_names(network, ("words.weight",)))
    matcher = Matcher.of(network, target, SquaredL2(weights={"scale.scale": 0.0}))
    moments = matcher.moments(model_function(network), make_leaves(network))
    assert "scale.scale" not in moments.names
    assert matcher.formed_names == ()


def test_a_rule_that_is_wrong_for_this_network_gives_way_to_autograd():
    class Doubled(nn.Linear):
        pass

    network = build()
    network.block.up = Doubled(HIDDEN, 2 * HIDDEN).double().requires_grad_(False)
    network.block.up.register_forward_hook(
        lambda m, args, out: functional.linear(2 * args[0], m.weight, m.bias)
    )
    names = all_names(network, ("words.weight",))
    matcher = Matcher.of(network, make_target(network, names), SquaredL2())
    leaves = make_leaves(network)
    distances = matcher.evaluate(model_function(network), leaves)
    assert matcher.formed_names == ("block.up.weight",)
    own = formed_gradients(network, one(leaves, 1), names)
    expected = sum((own[n] - t.formed()).square().sum() for n, t in matcher.target.tensors.items())
    torch.testing.assert_close(distances[1], expected)


@pytest.mark.parametrize("tied", [False, True])
def test_a_word_embedding_that_is_not_looked_up_is_refused_not_matched_wrongly(tied):
    network = build(tied=tied)
    matcher = Matcher.of(network, make_target(network, all_names(network), ids=True), SquaredL2())
    with pytest.raises(InputError, match=r"words\.weight is not all reached"):
        matcher.evaluate(model_function(network), make_leaves(network))


def test_the_network_is_left_as_it_was():
    network = build(scale=True)
    matcher = Matcher.of(network, make_target(network, all_names(network, ("words.weight",))), SquaredL2())
    matcher.evaluate(model_function(network), make_leaves(network))
    assert not any(p.requires_grad for p in network.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")]
)
def test_running_out_of_memory_halves_the_chunk_and_the_work_goes_on(error):
    network = build()
    matcher = Matcher.of(
        network, make_target(network, all_names(network, ("words.weight",))), SquaredL2(), chunk=8
    )
    leaves, function = make_leaves(network, 9), model_function(network)
    expected = matcher.evaluate(function, leaves)
    sizes = []

    def greedy(some):
        sizes.append(len(some["labels"]))
        if len(some["labels"]) > 3:
            raise error
        return function(some)

    torch.testing.assert_close(matcher.evaluate(greedy, leaves), expected)
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert matcher.chunk == 2


def test_running_out_of_memory_on_one_candidate_says_so():
    network = build()
    matcher = Matcher.of(network, make_target(network, all_names(network, ("words.weight",))), SquaredL2())
    leaves = make_leaves(network, 2)
    matcher.evaluate(model_function(network), leaves)

    def hungry(some):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(AttackError, match="single candidate"):
        matcher.evaluate(hungry, leaves)


def test_evaluations_are_counted():
    network = build()
    matcher = Matcher.of(
        network, make_target(network, all_names(network, ("words.weight",))), SquaredL2(), chunk=2
    )
    matcher.evaluate(model_function(network), make_leaves(network, 5))
    matcher.value_and_gradient(model_function(network), make_leaves(network, 3), ["embeddings"])
    assert matcher.evaluations == 8


def test_an_unknown_parameter_is_an_input_error():
    network = build()
    target = Target.from_gradients({"block.quary.weight": torch.ones(2, 2)})
    with pytest.raises(InputError, match=r"block\.quary\.weight"):
        Matcher.of(network, target, SquaredL2())


def test_the_engine_imports_torch_and_nothing_above_it():
    allowed = {*sys.stdlib_module_names, "torch"}
    for file in Path(textleak.matching.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                assert (
                    module.split(".")[0] in allowed
                    or module in ("textleak.errors", "textleak.numerics")
                    or module.startswith("textleak.matching")
                ), f"{file.name} imports {module}"
