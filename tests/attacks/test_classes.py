"""Which classes a batch had, from the gradient of the classification head."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from tests.conftest import FAMILIES, ToyModel
from textleak.errors import InputError
from textleak.exact.classes import class_counts, single_class
from textleak.private.share import share

SENTENCES = ("the cat sat", "a dog ran home", "she wrote a letter", "he saw the sun", "the car was red")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_class_of_one_sentence_is_read_off_every_family(
    family: str, label: int, toy_model: ToyModel
) -> None:
    model = toy_model(family, task="classification")
    shared, _ = share(model, SENTENCES[:1], [label])
    assert single_class(shared, model, generator()) == label


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
@pytest.mark.parametrize("label", [0, 1, 2, 3])
def test_without_the_bias_the_weight_rows_show_it(family: str, label: int, toy_model: ToyModel) -> None:
    model = toy_model(family, task="classification", num_labels=4)
    shared, _ = share(model, SENTENCES[:1], [label], share=r"(classifier|score|out_proj).*weight")
    assert single_class(shared, model, generator()) == label


@pytest.mark.parametrize("label", [0, 1])
def test_two_classes_without_a_bias_are_told_apart_by_the_heads_usual_input(
    label: int, toy_model: ToyModel
) -> None:
    model = toy_model("bert", task="classification", num_labels=2)
    shared, _ = share(model, SENTENCES[:1], [label], share=r"classifier\.weight")
    assert single_class(shared, model, generator()) == label


@pytest.mark.parametrize("labels", [(0, 0, 0, 0, 0), (2, 0, 2, 1, 2), (1, 1, 0, 0, 2), (2, 2, 2, 2, 1)])
@pytest.mark.parametrize("share_", ["all", r"classifier\.weight"])
def test_the_classes_of_a_batch_are_counted(
    labels: tuple[int, ...], share_: str, toy_model: ToyModel
) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, SENTENCES, labels, share=share_)
    found = class_counts(shared, model, len(labels), generator())
    assert sum(found) == len(labels)
    assert dict(Counter(labels)) == {c: n for c, n in enumerate(found) if n}


def test_a_gradient_that_speaks_against_every_class_counts_each_alike(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, SENTENCES, share="classifier")
    beyond = {name: torch.full_like(gradient, 5.0) for name, gradient in shared.gradients.items()}
    shared = dataclasses.replace(shared, gradients=beyond)
    assert sorted(class_counts(shared, model, 5, generator())) == [1, 2, 2]


def test_a_head_that_was_not_shared_shows_nothing(toy_model: ToyModel) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, SENTENCES[:1], share="attention")
    with pytest.raises(InputError, match="head was not shared"):
        single_class(shared, model, generator())


def test_language_models_have_no_classes(toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="causal-lm")
    shared, _ = share(model, SENTENCES[:1])
    with pytest.raises(InputError, match="no classes"):
        single_class(shared, model, generator())
