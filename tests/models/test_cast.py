"""A wide model in float64 without a copy of it, and its gradient a matrix at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

import textleak
from tests.conftest import ToyModel
from textleak.clients.view import view_of
from textleak.events import Stop
from textleak.models import TextModel, cast, deferred
from textleak.models.batches import TextExamples
from textleak.models.cast import CastTensor
from textleak.models.decoding import to_sentence
from textleak.models.deferred import Deferred, deferred_gradient
from textleak.models.gradient import formed_gradient, mutually_apart, plainly_apart
from textleak.models.guesses import examples_of
from textleak.proof.certificate import certify

_LENGTHS = (5, 3, 9, 4)


@pytest.fixture(params=["bert", "gpt2", "llama"])
def wide_model(
    request: pytest.FixtureRequest, toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> TextModel:
    """A small model that counts as wide, in blocks and passes as small."""
    monkeypatch.setattr(cast, "MOST_COPIED", 0)
    monkeypatch.setattr(cast, "_BLOCK", 2**7)
    monkeypatch.setattr(deferred, "_TOKENS_A_PASS", 12)
    model = toy_model(request.param)
    return model.with_network(model.network)  # one that nobody has asked how wide it is


def _batch(model: TextModel) -> TextExamples:
    ids = model.content_ids.tolist()
    rows = [tuple(ids[3 * k : 3 * k + length]) for k, length in enumerate(_LENGTHS)]
    return examples_of(model, rows, (0, 1, 2, 0) if model.num_labels else ())


def _copied(model: TextModel) -> TextModel:
    return model.with_network(copy.deepcopy(model.network).double())


def _largest_error(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    whole = max(float(gradient.norm()) for gradient in expected.values())
    return max(float((expected[name] - found[name]).norm()) for name in expected) / whole


def test_a_wide_model_computes_in_float64_and_keeps_its_weights_where_they_are(wide_model: TextModel) -> None:
    exactly, names = wide_model.double(), list(wide_model.parameters)
    assert exactly.dtype == torch.float64
    assert exactly.fingerprint == _copied(wide_model).fingerprint
    for name, parameter in exactly.parameters.items():
        assert isinstance(parameter, CastTensor)
        assert parameter.original.data_ptr() == wide_model.parameters[name].data_ptr()
    expected = formed_gradient(_copied(wide_model), _batch(wide_model), names)
    found = formed_gradient(exactly, _batch(wide_model), names)
    assert expected.keys() == found.keys()
    assert {gradient.dtype for gradient in found.values()} == {torch.float64}
    assert _largest_error(expected, found) < 1e-13


def test_a_weight_that_is_converted_cannot_be_changed_and_a_copy_of_it_can(wide_model: TextModel) -> None:
    exactly = wide_model.double()
    weight = exactly.word_embedding.weight
    with pytest.raises(RuntimeError, match="in place"):
        weight.data.mul_(2)
    moved = copy.deepcopy(exactly.network)
    parameter = next(moved.parameters())
    parameter.data.mul_(0)
    assert not parameter.any()
    assert wide_model.word_embedding.weight.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_formed_a_matrix_at_a_time_is_the_gradient(
    wide_model: TextModel, dtype: torch.dtype
) -> None:
    names = list(wide_model.parameters)
    expected = formed_gradient(_copied(wide_model), _batch(wide_model), names)
    found = deferred_gradient(wide_model.in_dtype(dtype), _batch(wide_model), names)
    assert set(found) == expected.keys()
    narrowest = (
        torch.float32 if wide_model.network.config.model_type == "llama" else dtype
    )  # its norms compute in float32, always
    assert _largest_error(expected, found) < 100 * torch.finfo(narrowest).eps
    matrices = [name for name in found if wide_model.parameters[name].dim() == 2]
    assert matrices
    assert all(found[name] is not found[name] for name in matrices)  # nothing holds on to one


def test_some_rows_of_a_gradient_are_those_of_all_of_it(wide_model: TextModel) -> None:
    found = deferred_gradient(wide_model, _batch(wide_model), list(wide_model.parameters))
    for name in found:
        whole = found[name]
        some = found.rows(name, 1, 3)
        assert torch.allclose(some, whole[1:3], rtol=1e-4, atol=1e-7 * float(whole.abs().max()))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_wide_causal_model_multiplies_no_token_that_nothing_is_asked_after(
    family: str, toy_model: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cast, "MOST_COPIED", 0)
    model = toy_model(family)
    batch, rows = _batch(model), []

    def counted(input: Tensor, weight: Tensor) -> Tensor:
        rows.append(len(input))
        return multiply(input, weight)

    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", counted)
    deferred_gradient(model, batch, [name for name in model.parameters if name not in model.embedding_names])
    assert model.task == "causal-lm"
    assert set(rows) == {sum(_LENGTHS) - len(_LENGTHS)}


def test_two_distances_are_taken_on_the_way_of_one(wide_model: TextModel) -> None:
    names = list(wide_model.parameters)
    seen = formed_gradient(wide_model, _batch(wide_model), names)
    own = deferred_gradient(wide_model.double(), _batch(wide_model), names)
    again = deferred_gradient(wide_model, _batch(wide_model), names)
    both = mutually_apart(seen, own, again)
    assert both[0] == pytest.approx(plainly_apart(seen, own), rel=1e-9)
    assert both[1] == pytest.approx(plainly_apart(own, again), rel=1e-9)


def test_gradients_of_nothing_are_nowhere_apart() -> None:
    nothing: dict[str, Tensor] = {}
    assert plainly_apart(nothing, nothing) == (0.0, 0.0)
    number = {"scale": torch.tensor(3.0)}
    assert plainly_apart(number, nothing) == (3.0, 3.0)
    assert mutually_apart(number, number, nothing) == ((0.0, 3.0), (3.0, 3.0))


def test_a_wide_models_batch_is_verified_from_a_gradient_that_is_never_whole(
    wide_model: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Deferred] = []

    def noted(*arguments: object, **named: object) -> Deferred:
        made.append(deferred_gradient(*arguments, **named))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr("textleak.clients.view.deferred_gradient", noted)
    shared, secret = textleak.share(wide_model, "the cat sat", share="no-embeddings")
    recovery = textleak.recover(shared, wide_model, "span")
    assert recovery.stop is Stop.VERIFIED
    assert [tuple(p.id for p in s.positions) for s in recovery.sentences] == list(secret.ids)
    assert made


def test_a_wide_models_wrong_batch_is_not_verified(wide_model: TextModel) -> None:
    shared, secret = textleak.share(wide_model, ["the cat sat", "a dog"], share="no-embeddings")
    view = view_of(shared, wide_model)
    labels = secret.labels or (None,) * len(secret.ids)

    def verified(rows: list[tuple[int, ...]]) -> bool | None:
        sentences = (
            to_sentence(wide_model, row, label=label) for row, label in zip(rows, labels, strict=True)
        )
        return certify(view, tuple(sentences)).verified

    first, second = secret.ids
    other = next(token for token in wide_model.content_ids.tolist() if token not in (*first, *second))
    assert verified([first, second])
    assert not verified([(*first[:1], first[2], first[1], *first[3:]), second])
    assert not verified([(*first[:-1], other), second])
    assert not verified([(*first[:1], other, *first[2:]), second])
