"""What an attack held is free when it has ended, not when the garbage collector comes.

That counts objects, not bytes: what an attack on a BERT left to it was hundreds of megabytes a sentence.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch

from tests.attacks.test_attacks import QUICK, SENTENCE
from tests.conftest import ToyModel
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.clients import CLIENTS, composed
from textleak.models.base import Modality, Model
from textleak.models.loading.images import load_image_model
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

Left = Callable[[SharedGradient, Model, str], list[tuple[int, ...]]]


@pytest.fixture
def left() -> Iterator[Left]:
    """Runs an attack; the shapes of the tensors that only the collector finds afterwards."""

    def after(shared: SharedGradient, model: Model, attack: str) -> list[tuple[int, ...]]:
        def once() -> None:
            to_end(begin(ATTACKS.build(attack, QUICK[attack]), shared, model, seed=0))

        once()  # what a model remembers of itself is made
        gc.collect()
        gc.disable()
        once()
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        return [tuple(found.shape) for found in gc.garbage if isinstance(found, torch.Tensor)]

    yield after
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.parametrize("attack", [name for name in ATTACKS if Modality.TEXT in ATTACKS[name].reads])
def test_an_attack_on_text_leaves_nothing_to_the_collector(
    attack: str, toy_model: ToyModel, left: Left
) -> None:
    model = toy_model("bert", task="classification")
    shared, _ = share(model, (SENTENCE,), seed=1, share="no-embeddings" if attack == "match" else "all")
    assert left(shared, model, attack) == []


@pytest.mark.parametrize("attack", [name for name in ATTACKS if Modality.PICTURES in ATTACKS[name].reads])
@pytest.mark.parametrize("statistics", [False, True])
def test_an_attack_on_pictures_leaves_nothing_to_the_collector(
    attack: str, statistics: bool, left: Left
) -> None:
    name = "resnet20:activation=sigmoid" if statistics else "lenet"
    model = load_image_model(name, size=8, num_labels=5, device="cpu", weights_seed=0)
    count = 1 if attack == "idlg" else 2  # it reads one
    pictures = torch.rand(count, *model.shape, generator=torch.Generator().manual_seed(0))
    client = composed([CLIENTS.build("batch-norm-train" if statistics else "one-step", {})])
    know = "batch-norm,batch-size,labels" if statistics else None
    shared, _ = share(model, pictures, [1, 3][:count], seed=1, client=client, know=know)
    assert left(shared, model, attack) == []
