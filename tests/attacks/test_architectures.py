"""Architectures of every kind give a sentence away; what a family's own code can't do is told by the module's name."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from tests.conftest import ToyModel, toy_tokenizer, write_network
from textleak import recover
from textleak.errors import InputError
from textleak.events import Stop
from textleak.models import TextModel, load_model
from textleak.models.running import explained
from textleak.private.share import share

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
ENCODER = {**SIZES, "intermediate_size": 96, "max_position_embeddings": 40}
DECODER = {**ENCODER, "num_key_value_heads": 2}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 40}
RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHARED = {"shared_expert_intermediate_size": 32, "num_key_value_heads": 4}

KINDS = {
    "experts behind a router": ("mixtral", "gpt2", {**DECODER, "num_local_experts": 4}),
    "a gate after the last layer": ("qwen2_moe", "gpt2", {**DECODER, **EXPERTS, **SHARED}),
    "additions in place": ("falcon", "gpt2", {**SIZES, "multi_query": True, "parallel_attn": True}),
    "embeddings scaled in place": ("ctrl", "gpt2", {**GPT, "dff": 96}),
    "no pad token in the configuration": ("codegen", "gpt2", {**GPT, "rotary_dim": 8}),
    "constants of another precision": (
        "xglm",
        "gpt2",
        {"d_model": 64, "num_layers": 2, "attention_heads": 4, "ffn_dim": 96, "max_position_embeddings": 40},
    ),
    "blocks side by side": ("cohere", "gpt2", DECODER),
    "logits scaled": ("granite", "gpt2", {**DECODER, "logits_scaling": 8.0, "embedding_multiplier": 12.0}),
    "logits capped, a padding row of zeros": (
        "gemma2",
        "gpt2",
        {**DECODER, "head_dim": 16, "final_logit_softcapping": 2.0, "pad_token_id": 0},
    ),
    "no mask": ("fnet", "wordpiece", ENCODER),
    "order unknown to the first layers": ("modernbert", "wordpiece", ENCODER),
    "one token is too short": (
        "funnel",
        "wordpiece",
        {"d_model": 64, "n_head": 4, "d_head": 16, "d_inner": 96, "block_sizes": [1, 1]},
    ),
    "words read beside their neighbors": (
        "mobilebert",
        "wordpiece",
        {
            **ENCODER,
            **{"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
            "initializer_range": 0.1,
        },
    ),
    "words read with the one before": (
        "rwkv",
        "gpt2",
        {**SIZES, "attention_hidden_size": 64, "context_length": 40},
    ),
    "texts filled up, positions before texts": (
        "longformer",
        "roberta",
        {**ENCODER, "attention_window": [8, 8], "pad_token_id": 1},
    ),
    "convolutions in groups, positions last": ("squeezebert", "wordpiece", {**ENCODER, "embedding_size": 64}),
    "matrices that are no layer's": (
        "xlnet",
        "wordpiece",
        {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96, "initializer_range": 0.1},
    ),
    "relative positions": ("deberta", "wordpiece", {**ENCODER, **RELATIVE, "max_relative_positions": -1}),
}


def written(family: str, tokens: str, shape: dict[str, object], folder: Path) -> Path:
    """Configuration and tokenizer of a small network, in a folder."""
    return write_network(family, toy_tokenizer(tokens), shape, folder)


def drawn(kind: str, folder: Path) -> TextModel:
    """The toy model of a kind."""
    return load_model(str(written(*KINDS[kind], folder)), weights="random")


@pytest.mark.parametrize("kind", KINDS)
def test_one_sentence_comes_back_exactly_without_a_doubtful_note(kind: str, tmp_path: Path) -> None:
    model = drawn(kind, tmp_path)
    shared, secret = share(model, ["he sat on the mat"], share="no-embeddings")
    recovery = recover(shared, model, "span")
    assert recovery.stop is Stop.VERIFIED
    assert [p.id for p in recovery.sentences[0].positions] == list(secret.ids[0])
    assert recovery.notes == ()


def test_two_sentences_of_words_read_beside_their_neighbors_come_back(tmp_path: Path) -> None:
    model = drawn("words read beside their neighbors", tmp_path)
    texts = ["he sat on the mat", "she ran home"]
    shared, _ = share(model, texts, share="no-embeddings")
    recovery = recover(shared, model, "span")
    assert recovery.stop is Stop.VERIFIED
    assert sorted(sentence.text for sentence in recovery.sentences) == texts


def test_two_sentences_behind_matrices_that_are_no_layers_are_not_told_apart(tmp_path: Path) -> None:
    model = drawn("matrices that are no layer's", tmp_path)
    shared, _ = share(model, ["he sat on the mat", "she ran home"], share="no-embeddings")
    recovery = recover(shared, model, "span")
    assert not recovery.stop.settled
    (note,) = recovery.notes
    assert "one sentence at most" in note


def test_a_network_that_reads_the_next_token_is_no_causal_language_model(tmp_path: Path) -> None:
    folder = str(written(*KINDS["matrices that are no layer's"], tmp_path))
    assert load_model(folder, weights="random").task == "classification"
    with pytest.raises(InputError, match="reads the tokens after each one"):
        load_model(folder, weights="random", task="causal-lm")


def test_a_network_that_asks_for_ids_is_given_its_own_embeddings_by_them(tmp_path: Path) -> None:
    shape = {**ENCODER, "attention_window": [8, 8], "pad_token_id": 1}
    model = load_model(str(written("longformer", "roberta", shape, tmp_path)), weights="random")
    assert model.way.by_ids
    batch = model.encode(["he sat"])
    inputs = {"input_ids": batch.ids_BT, "attention_mask": batch.mask_BT}
    own = model.network(**inputs).logits
    assert model.logits(model.embed(batch.ids_BT), batch.mask_BT)[:, 0].allclose(own, atol=1e-6)


def test_embeddings_that_carry_scales_along_are_refused(tmp_path: Path) -> None:
    folder = written("ibert", "wordpiece", ENCODER, tmp_path)
    with pytest.raises(InputError, match="QuantEmbedding"):
        load_model(str(folder), weights="random")


class Broken(nn.Module):
    """A module of somebody else's, whose forward fails."""

    def forward(self, x: object) -> object:
        raise IndexError("no such expert")


def test_what_a_networks_own_code_raises_names_the_module(toy_model: ToyModel) -> None:
    Broken.__module__ = "transformers.models.broken"
    with pytest.raises(InputError, match="Broken") as caught, explained(toy_model("bert")):
        Broken()(1)
    assert "no such expert" in str(caught.value)


def test_our_own_mistakes_stay_what_they_are(toy_model: ToyModel) -> None:
    with pytest.raises(ZeroDivisionError), explained(toy_model("bert")):
        _ = 1 / 0
