"""The span of a layer's inputs is the row space of its weight's gradient: on random layers and on models."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import ToyModel
from textleak.defenses import DEFENSES
from textleak.exact import subspace
from textleak.exact.proposals import span_proposals
from textleak.exact.subspace import (
    InputSpan,
    input_span,
    layer_span,
    rank_vocabulary,
    shared_spans,
    why_no_span,
)
from textleak.models import TextModel
from textleak.models.probes.layers import LocalLayer, layer_inputs
from textleak.private.share import share


def random_layer(tokens: int, inputs: int, outputs: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A layer's inputs (N, I), and its weight's gradient (O, I) for a loss of all its outputs."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(inputs, outputs)
    inputs_NI = torch.randn(tokens, inputs, generator=generator)
    goal_NO = torch.randn(tokens, outputs, generator=generator)
    loss = (layer(inputs_NI).tanh() - goal_NO).square().mean()
    (gradient_OI,) = torch.autograd.grad(loss, layer.weight)
    return inputs_NI, gradient_OI


def spanned(
    toy_model: ToyModel, family: str, sentence: str
) -> tuple[TextModel, LocalLayer, InputSpan, tuple[int, ...]]:
    """A model, the first layer that shows a sentence's span, the span, and the sentence's tokens."""
    model = toy_model(family, task="classification")
    shared, secret = share(model, [sentence], share="no-embeddings")
    layers, span = shared_spans(model, shared)[0]
    (ids,) = secret.ids
    return model, layers[0], span, tuple(ids)


@pytest.mark.parametrize("tokens", [1, 2, 7, 20])
@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (32, 96), (48, 24)])
def test_the_gradient_spans_the_inputs(tokens: int, inputs: int, outputs: int) -> None:
    inputs_NI, gradient_OI = random_layer(tokens, inputs, outputs)
    span = input_span([gradient_OI], ["layer"])
    assert span is not None
    assert span.clear
    assert (span.rank, span.size) == (tokens, inputs)
    torch.testing.assert_close(span.explained(inputs_NI), torch.ones(tokens), atol=1e-4, rtol=0)
    others_NI = torch.randn(500, inputs, generator=torch.Generator().manual_seed(9))
    explained_N = span.explained(others_NI)
    assert (explained_N < 0.99).all()
    # A random vector lies in a subspace by rank / size on average.
    assert float(explained_N.mean()) == pytest.approx(tokens / inputs, abs=0.03)


def test_the_basis_is_orthonormal() -> None:
    _, gradient_OI = random_layer(6, 32, 40)
    span = input_span([gradient_OI], ["layer"])
    torch.testing.assert_close(span.basis_RI @ span.basis_RI.T, torch.eye(6, dtype=torch.float64))


def test_equal_inputs_count_once() -> None:
    inputs_NI, _ = random_layer(5, 32, 32)
    twice_NI = torch.cat([inputs_NI, inputs_NI[:3]])
    deltas_NO = torch.randn(8, 32, generator=torch.Generator().manual_seed(2))
    assert input_span([deltas_NO.T @ twice_NI], ["layer"]).rank == 5


def test_layers_with_one_input_show_it_together() -> None:
    """A token that one of them gets no gradient for, another one shows."""
    inputs_NI, _ = random_layer(4, 32, 32)
    deltas_NO = torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    blind_NO = deltas_NO * torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    blind = input_span([blind_NO.T @ inputs_NI], ["query"])
    assert blind.rank == 3
    assert blind.explained(inputs_NI)[0] < 0.9
    both = input_span([blind_NO.T @ inputs_NI, deltas_NO.T @ inputs_NI], ["query", "value"])
    assert (both.rank, both.layers) == (4, ("query", "value"))
    assert both.explained(inputs_NI)[0] > 0.999


def test_as_many_tokens_as_inputs_leave_nothing_to_see() -> None:
    _, gradient_OI = random_layer(40, 32, 64)
    span = input_span([gradient_OI], ["layer"])
    assert not span.clear
    others_NI = torch.randn(50, 32, generator=torch.Generator().manual_seed(9))
    assert (span.explained(others_NI) > 0.99).all()


def test_a_gradient_of_zeros_spans_nothing() -> None:
    assert input_span([torch.zeros(8, 8)], ["layer"]) is None


def test_weak_directions_count_little_under_noise() -> None:
    """Soft weights: what stands far above the noise counts fully, what drowns in it not at all."""
    inputs_NI, gradient_OI = random_layer(4, 64, 64)
    gradient_OI = gradient_OI / gradient_OI.norm()
    noise_OI = torch.randn(64, 64, generator=torch.Generator().manual_seed(3))
    little, much = (
        input_span([gradient_OI + sigma * noise_OI], ["layer"], sigma=sigma) for sigma in (1e-5, 1e-2)
    )
    assert little is not None
    assert much is not None
    assert not little.clear
    assert little.rank == 4
    assert (little.weights_R > 0.99).all()
    assert much.rank <= 4
    assert ((much.weights_R > 0) & (much.weights_R <= 1)).all()
    assert float(much.weights_R.min()) < 0.99
    assert (little.explained(inputs_NI) > much.explained(inputs_NI)).all()


@pytest.mark.parametrize("shape", [(64, 64), (192, 64), (32, 96)])
def test_noise_alone_spans_nothing(shape: tuple[int, int]) -> None:
    """Every singular value is under the floor: then there is no ranking rather than a meaningless one."""
    noise_OI = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert input_span([noise_OI], ["layer"], sigma=0.12) is None


def test_under_noise_the_layer_that_stands_out_is_read() -> None:
    _, gradient_OI = random_layer(3, 32, 32)
    gradient_OI = gradient_OI / gradient_OI.norm()
    generator = torch.Generator().manual_seed(5)
    noises = [0.003 * torch.randn(32, 32, generator=generator) for _ in range(2)]
    span = input_span(
        [0.01 * gradient_OI + noises[0], gradient_OI + noises[1]], ["query", "value"], sigma=0.003
    )
    assert span.layers == ("value",)


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "opt", "llama"])
def test_the_tokens_of_a_batch_lie_in_the_span_at_their_positions(family: str, toy_model: ToyModel) -> None:
    model = toy_model(family, task="classification")
    sentence = "a dog"
    shared, secret = share(model, [sentence], share="no-embeddings")
    spans = shared_spans(model, shared)
    assert spans
    ids_NT = torch.tensor(secret.ids)
    for layers, span in spans:
        inputs_NTI = layer_inputs(model, ids_NT, [layers[0].name])[layers[0].name]
        assert (span.explained(inputs_NTI[0]) > 1 - 1e-3).all()
        assert span.rank <= len(secret.ids[0])


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_vocabulary_is_ranked_with_the_true_token_first(family: str, toy_model: ToyModel) -> None:
    model, layer, span, ids = spanned(toy_model, family, "a dog")
    ranked = dict(rank_vocabulary(model, layer, span, positions=len(ids), keep=3))
    assert [ranked[t][0][0] for t in range(len(ids))] == list(ids)
    for pairs in ranked.values():
        explained = [value for _, value in pairs]
        assert explained == sorted(explained, reverse=True)
        assert 0 <= min(explained) <= max(explained) <= 1 + 1e-4


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_vocabulary_is_ranked_in_parts_as_in_one(
    family: str, toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layer, span, ids = spanned(toy_model, family, "the cat sat on the mat")

    def ranked() -> list[list[int]]:
        # As many as the span has: those beyond are less in it, clearly.
        found = rank_vocabulary(model, layer, span, positions=len(ids), keep=len(set(ids)))
        return [sorted(token for token, _ in pairs) for _, pairs in found]

    monkeypatch.setattr(subspace, "_HELD", 0)
    at_once = ranked()
    monkeypatch.setattr(subspace, "_NUMBERS_A_PASS", 1)
    monkeypatch.setattr(subspace, "_TOKENS_A_PASS", 24)
    assert ranked() == at_once


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "opt", "electra"])
def test_the_vocabulary_is_ranked_by_what_tokens_and_positions_add_as_by_their_inputs(
    family: str, toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, layer, span, ids = spanned(toy_model, family, "the cat sat on the mat")
    count = len(ids)

    def ranked() -> Tensor:
        """How much is explained of each token at each position, (T, V)."""
        found = dict(rank_vocabulary(model, layer, span, positions=count, keep=model.vocab_size))
        return torch.tensor([[dict(found[t])[id_] for id_ in range(model.vocab_size)] for t in range(count)])

    apart = ranked()
    monkeypatch.setattr(subspace, "_HELD", 0)
    torch.testing.assert_close(apart, ranked(), rtol=1e-4, atol=1e-5)


def test_rotary_positions_rank_one_set_for_all_positions(toy_model: ToyModel) -> None:
    model, layer, span, ids = spanned(toy_model, "llama", "a dog")
    ((position, pairs),) = rank_vocabulary(model, layer, span, positions=5, keep=len(ids))
    assert position == 0
    assert {token for token, _ in pairs} == set(ids)


def test_layers_that_were_not_shared_show_nothing(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, ["a dog"], share="classifier")
    assert shared_spans(model, shared) == []


def test_the_noise_of_a_defense_softens_the_span(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    clean, _ = share(model, ["a dog"], share="no-embeddings")
    noisy, _ = share(
        model, ["a dog"], share="no-embeddings", defenses=[DEFENSES.build("gaussian", {"sigma": 10.0})]
    )
    layers = shared_spans(model, clean)[0][0]
    assert layer_span(clean, layers).clear
    drowned = layer_span(noisy, layers)
    assert drowned is None or not drowned.clear


@pytest.mark.parametrize(
    ("parts", "defense", "said"),
    [
        ("classifier", None, "No gradient was shared of a layer"),
        ("no-embeddings", ("gaussian", {"sigma": 10.0}), "Noise covers"),
        ("no-embeddings", None, "are zero"),
    ],
)
def test_why_there_is_no_span_is_told_apart(
    parts: str, defense: tuple[str, dict[str, float]] | None, said: str, toy_model: ToyModel
) -> None:
    model = toy_model("bert", task="classification")
    defenses = [DEFENSES.build(*defense)] if defense else []
    shared, _ = share(model, ["a dog"], share=parts, defenses=defenses)
    if said == "are zero":
        shared = dataclasses.replace(
            shared, gradients={name: torch.zeros_like(g) for name, g in shared.gradients.items()}
        )
    assert shared_spans(model, shared) == []
    assert said in why_no_span(model, shared)


@pytest.mark.parametrize("noise", [1e-4, 1e-6])
def test_a_spectrum_ends_clearly_where_what_follows_is_level_as_noise_is(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs, inputs = (torch.randn(96, 5, generator=generator), torch.randn(5, 64, generator=generator))
    gradient_OI = (outputs @ inputs).double() / 40
    errors_OI = noise * torch.randn(96, 64, generator=generator, dtype=torch.float64)
    span = input_span([gradient_OI + errors_OI], ["layer"])
    assert span is not None
    assert span.clear
    assert span.rank == 5


def test_a_spectrum_that_falls_slowly_has_no_clear_end() -> None:
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(96, 64, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(64, 64, generator=generator, dtype=torch.float64))
    falling_R = torch.logspace(0, -6, 64, dtype=torch.float64)
    span = input_span([(left * falling_R @ right.T).float()], ["layer"])
    assert span is not None
    assert not span.clear


def test_inputs_of_zeros_are_proposed_nowhere(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    shared, _ = share(model, ["the cat sat"], share="no-embeddings")
    network = copy.deepcopy(model.network)
    network.get_submodule("bert.embeddings.LayerNorm").weight.data.zero_()
    found = span_proposals(model.with_network(network), shared, longest=5, keep=8)
    assert found is not None
    assert set(found[1].inside) == {0}
