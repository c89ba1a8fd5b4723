"""A decoder's text is guessed from what several steps of an optimizer made of its adapters' A."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.conftest import write_toy
from tests.exact.adapters.conftest import SHAPE
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.attacks.replaying import ALONG, LIKELY
from textleak.attacks.replaying.by_adapters import reads_adapters
from textleak.clients import CLIENTS, composed
from textleak.clients.view import view_of
from textleak.errors import InputError
from textleak.events import Recovery, Stop
from textleak.exact.adapters.measured import Measured, first_layers
from textleak.exact.adapters.within import Within
from textleak.models import TextModel, load_model
from textleak.models.probes.layers import layer_inputs
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient

SENTENCE = "a dog ran"
STEPS = {"optimizer": "adamw", "lr": 2e-4, "steps": 2}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    folder = write_toy("llama", tmp_path_factory.mktemp("wide"), **SHAPE)
    return load_model(str(folder), weights="random", task="causal-lm", device="cpu")


def sent(model: TextModel, *, at: int = 5) -> SharedGradient:
    client = composed([CLIENTS.build("lora", {"rank": 8, "at": at}), CLIENTS.build("fedavg", STEPS)])
    return share(model, [SENTENCE], client=client, seed=1)[0]


def replayed(shared: SharedGradient, model: TextModel, time_limit: float | None = None) -> Recovery:
    return to_end(begin(ATTACKS.build("replay", {}), shared, model, time_limit=time_limit))


def test_what_is_read_of_a_text_behind_two_steps_is_a_guess_and_none_of_it_proved(decoder: TextModel) -> None:
    recovery = replayed(sent(decoder), decoder)
    (true,) = decoder.encode([SENTENCE]).sentences
    (sentence,) = recovery.sentences
    found = [position.id for position in sentence.positions]
    assert len(found) == len(true)
    assert found[:-1] == list(
        true[:-1]
    )  # the last one is a label alone, which a random network doesn't foresee
    assert not any(position.proved for position in sentence.positions)
    assert {position.channel for position in sentence.positions} == {ALONG}
    assert ALONG not in LIKELY
    assert all(position.confidence < 0.5 for position in sentence.positions)
    assert recovery.stop is not Stop.VERIFIED
    assert "a guess" in " ".join(recovery.notes)


def test_cut_off_it_gives_the_beginning_that_it_came_to(decoder: TextModel) -> None:
    recovery = replayed(sent(decoder), decoder, time_limit=1e-3)
    (sentence,) = recovery.sentences
    assert recovery.stop is Stop.TIME
    assert len(sentence.positions) == len(decoder.encode([SENTENCE]).sentences[0])
    assert sentence.positions[0].id >= 0
    assert sentence.positions[-1].id < 0


def test_where_no_a_moved_there_is_nothing_to_read(decoder: TextModel) -> None:
    client = composed([CLIENTS.build("lora", {"rank": 8}), CLIENTS.build("fedavg", {**STEPS, "steps": 1})])
    shared = share(decoder, [SENTENCE], client=client, seed=1)[0]
    assert reads_adapters(view_of(sent(decoder), decoder))
    assert not reads_adapters(view_of(shared, decoder))
    with pytest.raises(InputError):
        replayed(shared, decoder)


def test_what_a_text_makes_layers_read_lies_there_more_than_by_chance(decoder: TextModel) -> None:
    view = view_of(sent(decoder), decoder)
    model = view.text_model
    first = Measured.of(view.shared, first_layers(model, view.shared))
    generator = torch.Generator().manual_seed(0)
    some = model.content_ids[torch.randperm(len(model.content_ids), generator=generator)[:200]].tolist()
    within = Within(model, [first], [(token,) for token in some])

    def beyond(tokens: list[int]) -> float:
        ids_N1 = torch.tensor(tokens)[:, None]
        return float(within.beyond(layer_inputs(model, ids_N1, within.names)).mean())

    (true,) = model.encode([SENTENCE]).sentences
    assert beyond(list(true[:-1])) > 2 * beyond([token for token in some if token not in true])


def test_of_a_zero_update_nothing_is_said(decoder: TextModel) -> None:
    shared = sent(decoder)
    zero = {name: torch.zeros_like(gradient) for name, gradient in shared.gradients.items()}
    with pytest.raises(InputError):
        replayed(dataclasses.replace(shared, gradients=zero), decoder)
