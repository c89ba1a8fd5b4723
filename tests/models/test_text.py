"""Losses are what Hugging Face training computes, candidate by candidate; ids and text survive the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import DECODERS, EVERY_TASK, FAMILIES, ToyModel
from textleak.errors import InputError
from textleak.models import Batch, Targets
from textleak.models.losses.language import Language
from textleak.models.quiet import quiet
from textleak.models.text import TextModel

SENTENCES = ["the cat sat on the mat.", "nobody told john", "hello world, the secret meeting was moved!"]
ABSENT = -100  # what Hugging Face calls a position without a label


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def task_batch(model: TextModel, sentences: list[str] = SENTENCES) -> tuple[Batch, Targets]:
    return model.targets(model.encode(sentences), None, generator())


def hugging_face_loss(model: TextModel, batch: Batch, targets: Targets) -> Tensor:
    """The library's own loss, from ids and labels as its data collators make them."""
    if model.task == "classification":
        labels = targets.labels[:, 0]
    elif model.task == "causal-lm":
        labels = batch.ids_BT.masked_fill(batch.mask_BT == 0, ABSENT)
    else:
        labels = targets.labels.masked_fill(targets.weights == 0, ABSENT)
    with quiet():
        output: Any = model.network(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, labels=labels)
    loss: Tensor = output.loss
    return loss


def one(model: TextModel, inputs_BT: Tensor, mask_BT: Tensor, targets: Targets) -> Tensor:
    return model.loss(inputs_BT[None], mask_BT[None], targets.expand(1))[0]


@pytest.fixture(params=EVERY_TASK, ids=["-".join(pair) for pair in EVERY_TASK])
def model(request: pytest.FixtureRequest, toy_model: ToyModel) -> TextModel:
    family, task = request.param
    return toy_model(family, task=task)


def test_the_loss_of_a_padded_batch_is_that_of_hugging_face(model: TextModel) -> None:
    batch, targets = task_batch(model)
    assert min(batch.lengths) < max(batch.lengths)
    own = one(model, batch.ids_BT, batch.mask_BT, targets)
    torch.testing.assert_close(own, hugging_face_loss(model, batch, targets), rtol=1e-6, atol=1e-6)


def test_the_loss_of_one_sentence_is_that_of_hugging_face(model: TextModel) -> None:
    batch, targets = task_batch(model, SENTENCES[:1])
    own = one(model, batch.ids_BT, batch.mask_BT, targets)
    torch.testing.assert_close(own, hugging_face_loss(model, batch, targets), rtol=1e-6, atol=1e-6)


def test_ids_and_their_embeddings_give_the_same_loss(model: TextModel) -> None:
    batch, targets = task_batch(model)
    from_ids = one(model, batch.ids_BT, batch.mask_BT, targets)
    from_embeddings = one(model, model.embed(batch.ids_BT), batch.mask_BT, targets)
    assert torch.equal(from_ids, from_embeddings)


@pytest.mark.parametrize("family", DECODERS)
def test_padding_on_the_left_gives_the_same_in_float64(family: str, toy_model: ToyModel) -> None:
    rough, exactly = (toy_model(family, task="causal-lm", dtype=dtype) for dtype in ("float32", "float64"))
    batch = rough.encode(["the cat sat", "hello"])
    left = {one.dtype: one.spoken_with(Language(padding="left")) for one in (rough, exactly)}
    seen, exact = (model.logits(batch.ids_BT, batch.mask_BT) for model in left.values())
    counted = batch.mask_BT == 1
    torch.testing.assert_close(seen[counted], exact[counted].float(), rtol=1e-4, atol=1e-5)


def test_padding_adds_exactly_nothing(model: TextModel) -> None:
    batch, targets = task_batch(model)
    embeddings_BTE = model.embed(batch.ids_BT).requires_grad_(True)
    loss = one(model, embeddings_BTE, batch.mask_BT, targets)
    (slope_BTE,) = torch.autograd.grad(loss, embeddings_BTE)
    padding_BT = batch.mask_BT == 0
    assert padding_BT.any()
    assert not slope_BTE[padding_BT].any()
    elsewhere_BTE = embeddings_BTE.detach().clone()
    elsewhere_BTE[padding_BT] += torch.randn(elsewhere_BTE[padding_BT].shape, generator=generator())
    assert torch.equal(one(model, elsewhere_BTE, batch.mask_BT, targets), loss)


def formed(model: TextModel, batch: Batch, targets: Targets) -> dict[str, Tensor]:
    for parameter in model.parameters.values():
        parameter.requires_grad_(True)
    try:
        loss = one(model, batch.ids_BT, batch.mask_BT, targets)
        gradients = torch.autograd.grad(loss, list(model.parameters.values()), materialize_grads=True)
    finally:
        for parameter in model.parameters.values():
            parameter.requires_grad_(False)
    return dict(zip(model.parameters, gradients, strict=True))


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_a_batch_gradient_is_the_weighted_mean_of_its_sentences(
    toy_model: ToyModel, family: str, task: str
) -> None:
    model = toy_model(family, task=task, dtype="float64")
    batch, targets = task_batch(model)
    whole = formed(model, batch, targets)
    total = {name: torch.zeros_like(gradient) for name, gradient in whole.items()}
    for b, length in enumerate(batch.lengths):
        alone = Batch(ids_BT=batch.ids_BT[b : b + 1, :length], mask_BT=batch.mask_BT[b : b + 1, :length])
        kept = slice(None) if task == "classification" else slice(length)
        weights = targets.weights[b : b + 1, kept]
        share = weights.sum()
        own = Targets(labels=targets.labels[b : b + 1, kept], weights=weights / share)
        for name, gradient in formed(model, alone, own).items():
            total[name] += share * gradient
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        # Llama-type norms and softmax run in float32 whatever the weights are.
        torch.testing.assert_close(gradient, total[name], rtol=1e-4, atol=1e-6 * largest, msg=name)


def test_candidates_do_not_mix(model: TextModel) -> None:
    batch, targets = task_batch(model)
    noise = torch.randn((3, *model.embed(batch.ids_BT).shape), generator=generator())
    embeddings_KBTE = (model.embed(batch.ids_BT) + 0.1 * noise).requires_grad_(True)
    mask_KBT = batch.mask_BT.expand(3, -1, -1)
    losses_K = model.loss(embeddings_KBTE, mask_KBT, targets.expand(3))
    (slopes_KBTE,) = torch.autograd.grad(losses_K.sum(), embeddings_KBTE)
    for k in range(3):
        alone_BTE = embeddings_KBTE[k].detach().requires_grad_(True)
        loss = one(model, alone_BTE, batch.mask_BT, targets)
        (slope_BTE,) = torch.autograd.grad(loss, alone_BTE)
        torch.testing.assert_close(losses_K[k], loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slopes_KBTE[k], slope_BTE, rtol=1e-4, atol=1e-6)


def test_candidates_may_have_lengths_of_their_own(model: TextModel) -> None:
    batch, targets = task_batch(model)
    swapped = Batch(ids_BT=batch.ids_BT.flip(0), mask_BT=batch.mask_BT.flip(0))
    flipped = Targets(labels=targets.labels.flip(0), weights=targets.weights.flip(0))
    losses_K = model.loss(
        torch.stack([batch.ids_BT, swapped.ids_BT]),
        torch.stack([batch.mask_BT, swapped.mask_BT]),
        Targets(
            labels=torch.stack([targets.labels, flipped.labels]),
            weights=torch.stack([targets.weights, flipped.weights]),
        ),
    )
    torch.testing.assert_close(losses_K[0], losses_K[1], rtol=1e-5, atol=1e-6)


def test_a_soft_label_of_one_class_is_that_class(model: TextModel) -> None:
    batch, targets = task_batch(model)
    probabilities = nn.functional.one_hot(targets.labels, model.classes).float().requires_grad_(True)
    soft = Targets(labels=probabilities, weights=targets.weights)
    loss = one(model, batch.ids_BT, batch.mask_BT, soft)
    torch.testing.assert_close(loss, one(model, batch.ids_BT, batch.mask_BT, targets))
    (slope,) = torch.autograd.grad(loss, probabilities)
    assert bool(slope[targets.weights > 0].any(-1).all())


def test_the_loss_has_second_derivatives(model: TextModel) -> None:
    batch, targets = task_batch(model)
    embeddings_BTE = model.embed(batch.ids_BT).requires_grad_(True)
    loss = one(model, embeddings_BTE, batch.mask_BT, targets)
    (slope,) = torch.autograd.grad(loss, embeddings_BTE, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.square().sum(), embeddings_BTE)
    assert torch.isfinite(curvature).all()
    assert curvature.any()


def test_the_network_reads_sentences_up_to_the_limit_and_none_beyond(model: TextModel) -> None:
    room = model.max_length - len(model.prefix_ids) - len(model.suffix_ids)
    longest = " ".join(["a"] * room)
    batch, targets = model.targets(model.encode([longest]), None, generator())
    assert batch.lengths == (model.max_length,)
    assert torch.isfinite(one(model, batch.ids_BT, batch.mask_BT, targets))
    with pytest.raises(InputError, match=f"{model.max_length + 1} tokens") as caught:
        model.encode([longest + " a"])
    assert f"at most {model.max_length}" in str(caught.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_other_precisions_are_near(toy_model: ToyModel, family: str, task: str, dtype: str) -> None:
    exact, other = toy_model(family, task=task), toy_model(family, task=task, dtype=dtype)
    losses = []
    for model in (exact, other):
        batch, targets = task_batch(model)
        losses.append(one(model, batch.ids_BT, batch.mask_BT, targets))
    assert losses[1].dtype == (torch.float64 if dtype == "float64" else torch.float32)
    tolerance = 1e-5 if dtype == "float64" else 5e-2
    torch.testing.assert_close(losses[1].float(), losses[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("family", FAMILIES)
def test_only_decoders_read_the_class_from_the_last_token(
    toy_model: ToyModel, family: str, dtype: str
) -> None:
    model = toy_model(family, task="classification", dtype=dtype)
    assert (model._last_token_head is not None) == (family in DECODERS)


@pytest.mark.parametrize("family", DECODERS)
def test_a_padding_token_within_a_sentence_is_a_token(toy_model: ToyModel, family: str) -> None:
    model = toy_model(family, task="classification")
    batch, targets = task_batch(model, SENTENCES[:1])
    ids_BT = batch.ids_BT.clone()
    ids_BT[0, -1] = model.pad_id
    from_ids = one(model, ids_BT, batch.mask_BT, targets)
    assert torch.equal(from_ids, one(model, model.embed(ids_BT), batch.mask_BT, targets))
    shorter = batch.mask_BT.clone()
    shorter[0, -1] = 0
    assert not torch.equal(from_ids, one(model, ids_BT, shorter, targets))


# Names


@pytest.mark.parametrize(("family", "task"), EVERY_TASK)
def test_what_is_not_an_embedding_has_no_row_for_each_token(
    toy_model: ToyModel, family: str, task: str
) -> None:
    model = toy_model(family, task=task)
    for name, parameter in model.parameters.items():
        assert (name in model.embedding_names) or model.vocab_size not in parameter.shape
    tables = [m for m in model.network.modules() if isinstance(m, nn.Embedding)]
    for table in tables:
        assert any(model.parameters[name] is table.weight for name in model.embedding_names)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_parameters_are_those_that_decide_which_tokens_are_read(
    toy_model: ToyModel, family: str
) -> None:
    model = toy_model(family)
    assert model.attention_names
    assert not model.attention_names & model.embedding_names
    layers = 1 if family == "albert" else 2  # ALBERT uses one layer's weights again
    kinds = {"gpt2": 1, "distilbert": 3}.get(family, 3)
    biases = 1 if family == "llama" else 2
    assert len(model.attention_names) == layers * kinds * biases


def test_a_tied_table_has_one_name(toy_model: ToyModel) -> None:
    model = toy_model("gpt2")
    head = model.network.get_output_embeddings().weight
    assert [name for name, p in model.parameters.items() if p is head] == ["transformer.wte.weight"]
    assert "transformer.wte.weight" in model.embedding_names


def test_the_fingerprint_tells_weights_apart(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    assert toy_model("bert", seed=1).public().fingerprint != model.public().fingerprint
    assert model.double().public().fingerprint == model.public().fingerprint
    assert model.public().num_labels == 3


def test_a_double_leaves_its_original_alone(toy_model: ToyModel) -> None:
    model = toy_model("gpt2")
    assert model.double().dtype == torch.float64
    assert model.dtype == torch.float32


# Text


@pytest.mark.parametrize("family", FAMILIES)
def test_text_comes_back_from_its_ids(toy_model: ToyModel, family: str) -> None:
    model = toy_model(family)
    for sentence, ids in zip(SENTENCES, model.encode(SENTENCES).sentences, strict=True):
        assert model.decode(ids) == sentence
        assert tuple(ids[: len(model.prefix_ids)]) == model.prefix_ids
        assert tuple(ids[len(ids) - len(model.suffix_ids) :]) == model.suffix_ids
        assert len(model.token_texts(ids)) == len(ids)
        inner = ids[len(model.prefix_ids) : len(ids) - len(model.suffix_ids)]
        assert not model.special_ids & set(inner)
        assert set(inner) <= set(model.content_ids.tolist())


def test_the_unknown_token_is_content_as_text_turns_into_it(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    unknown = model.tokenizer.unk_token_id
    assert unknown in model.encode(["the cat \u4e2d"]).sentences[0]
    assert unknown not in model.special_ids
    assert model.unknown_ids == {unknown}


def test_a_vocabulary_of_bytes_lacks_nothing(toy_model: ToyModel) -> None:
    model = toy_model("gpt2")
    assert model.unknown_ids == frozenset()


def test_a_bare_text_is_one_sentence(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    assert model.encode("the cat").sentences == model.encode(["the cat"]).sentences


def test_a_row_that_no_token_uses_has_a_text_all_the_same(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    beyond = len(model.tokenizer)
    assert model.token_texts([beyond]) == [f"<row {beyond}>"]
    assert model.decode([beyond]) == ""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sentences", [[], [""], ["hello", ""]])
def test_a_sentence_without_text_is_refused(toy_model: ToyModel, family: str, sentences: list[str]) -> None:
    with pytest.raises(InputError):
        toy_model(family).encode(sentences)


def test_special_tokens_alone_are_refused(toy_model: ToyModel) -> None:
    with pytest.raises(InputError, match="no text"):
        toy_model("bert").encode(["[MASK] [SEP]"])


def test_a_token_beyond_the_table_is_refused(toy_model: ToyModel) -> None:
    network = toy_model("bert").double().network
    network.resize_token_embeddings(20)
    with pytest.raises(InputError, match="20 embeddings"):
        toy_model("bert").with_network(network).encode(["meeting"])


# Targets


def test_labels_are_drawn_from_the_generator_and_kept_when_given(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    batch = model.encode(SENTENCES)
    first = model.targets(batch, None, generator())[1]
    assert torch.equal(first.labels, model.targets(batch, None, generator())[1].labels)
    given = model.targets(batch, [2, 0, 1], generator())[1]
    assert given.labels[:, 0].tolist() == [2, 0, 1]
    torch.testing.assert_close(given.weights.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("labels", [[3, 0, 0], [-1, 0, 0], [0, 1]])
def test_labels_that_do_not_fit_are_refused(toy_model: ToyModel, labels: list[int]) -> None:
    model = toy_model("bert")
    with pytest.raises(InputError, match="label"):
        model.targets(model.encode(SENTENCES), labels, generator())


def test_language_modeling_takes_no_labels(toy_model: ToyModel) -> None:
    model = toy_model("gpt2")
    with pytest.raises(InputError, match="Labels"):
        model.targets(model.encode(SENTENCES), [0, 0, 0], generator())


def test_one_token_has_nothing_to_predict(toy_model: ToyModel) -> None:
    model = toy_model("gpt2")
    with pytest.raises(InputError, match="one token"):
        model.targets(model.encode(["a"]), None, generator())


def test_masking_hides_at_least_one_token_of_each_sentence_and_never_a_special_one(
    toy_model: ToyModel,
) -> None:
    model = toy_model("bert", task="masked-lm")
    original = model.encode(SENTENCES)
    special = torch.tensor(sorted(model.special_ids))
    hidden_share = []
    for seed in range(40):
        batch, targets = model.targets(original, None, torch.Generator().manual_seed(seed))
        hidden_BT = batch.ids_BT == model.mask_id
        assert bool(hidden_BT.any(-1).all())
        assert not torch.isin(original.ids_BT[hidden_BT], special).any()
        assert torch.equal(hidden_BT, targets.weights > 0)
        assert torch.equal(targets.labels, original.ids_BT)
        torch.testing.assert_close(targets.weights.sum(), torch.tensor(1.0))
        assert torch.equal(batch.ids_BT[~hidden_BT], original.ids_BT[~hidden_BT])
        hidden_share.append(float(hidden_BT.sum()) / float((~torch.isin(original.ids_BT, special)).sum()))
    assert 0.1 < sum(hidden_share) / len(hidden_share) < 0.35
