"""The bundled vocabularies are the real ones, and catalog entries are the shapes they say."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from textleak.models import describe
from textleak.models.loading import vocabulary
from textleak.models.loading.catalog import CATALOG
from textleak.models.loading.tokenizers import bundled_tokenizer


def test_wordpiece_is_that_of_bert() -> None:
    tokenizer = vocabulary.wordpiece()
    assert len(tokenizer) == 30_522
    ids = tokenizer("Hello world, naïve!")["input_ids"]
    assert ids == [101, 7592, 2088, 1010, 15743, 999, 102]


def test_byte_pairs_are_those_of_gpt2() -> None:
    tokenizer = vocabulary.byte_pairs()
    assert len(tokenizer) == 50_257
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 50_256
    text = "Ünïcödé, 日本語 and 😀\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("alias", CATALOG)
def test_an_alias_has_the_shape_that_the_catalog_says(alias: str) -> None:
    from transformers import AutoConfig

    entry = CATALOG[alias]
    config = AutoConfig.for_model(entry.model_type, **entry.shape)
    assert (config.num_hidden_layers, config.hidden_size) == (entry.layers, entry.hidden_size)
    assert len(bundled_tokenizer(entry)) == entry.vocab_size


# Counted on the published checkpoints; BERT types with a head of two classes.
@pytest.mark.parametrize(
    ("alias", "parameters"),
    [
        ("bert-tiny", 4_386_178),
        ("bert-base", 109_483_778),
        ("distilbert", 66_955_010),
        ("electra-small", 13_549_314),
        ("gpt2", 124_439_808),
        ("distilgpt2", 81_912_576),
    ],
)
def test_an_alias_has_as_many_parameters_as_its_checkpoint(alias: str, parameters: int) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    entry = CATALOG[alias]
    auto = AutoModelForCausalLM if entry.model_type == "gpt2" else AutoModelForSequenceClassification
    config = AutoConfig.for_model(entry.model_type, **entry.shape, vocab_size=entry.vocab_size)
    with torch.device("meta"):
        network = auto.from_config(config)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_every_alias_is_listed_with_what_would_be_loaded() -> None:
    rows = {row.alias: row for row in describe()}
    assert rows.keys() == CATALOG.keys()
    assert all(row.source for row in rows.values())


def test_listing_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from textleak.models import describe; describe(); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
