"""Toy models of every family for all tests: real architectures and tokenizers, a few thousand parameters."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests import bytecode, warm

# What is heavy is loaded by what needs it: the process that hands out the tests to others needs nothing.
if TYPE_CHECKING:
    from textleak.models import TextModel

# The tests share the cores by process; what they start does so too.
os.environ.setdefault("OMP_NUM_THREADS", "1")


# Modules that a test has loaded, from which on they are kept from the search for garbage as those before (our choice).
MANY = 200

_loaded = 0

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """The process that hands out the tests compiles for all others where these may not write what they compile."""
    if sys.dont_write_bytecode and config.getoption("numprocesses", None):
        config.add_cleanup(bytecode.write([ROOT / "textleak", ROOT / "tui" / "textleak_tui"]))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is loaded stays, and isn't looked through for garbage, now or later: of the time of the app's tests a sixth
    went there (measured)."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    """Nothing has run yet: what tests start from here on begins like this."""
    import torch

    torch.set_num_threads(1)
    # A share of all tests needs what runs need, here and in the keeper: loaded once for both.
    if "PYTEST_XDIST_WORKER" in os.environ:
        warm.load()
    _freeze()
    gc.enable()
    warm.keep()
    gc.set_threshold(50_000, 10, 10)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """What a test has loaded stays too: behind one with a Trainer each search took four times as long (measured)."""
    if len(sys.modules) > _loaded + MANY:
        _freeze()


def _freeze() -> None:
    global _loaded
    _loaded = len(sys.modules)
    gc.collect()
    gc.freeze()


WORDS = tuple(
    """
    the a an of to and in is was it for on that with as at by he she they we you i this his her from be
    are were not but have had has or will would can could about who what which when how all one two three
    more out up meeting moved friday morning plan told nobody bank secret account number doctor patient
    cat dog sat mat ran boy girl house home work day night time man woman people book read wrote letter
    saw red blue small big old new good bad quick brown fox over lazy word sentence gradient private
    market price fell rose never again every some any other first last love hate red green tea coffee
    water city river road car train ship boat john mary paris london sun moon star rain snow wind hello
    world
    """.split()  # noqa: SIM905
)

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-")
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "initializer_range": 0.2}
ENCODER = {**SMALL, "intermediate_size": 32, "max_position_embeddings": 40}
ROTARY = {**ENCODER, "num_key_value_heads": 1, "head_dim": 8, "tie_word_embeddings": True}

# Family: configuration, and the special tokens its tokenizer uses.
FAMILIES: dict[str, tuple[dict[str, object], str]] = {
    "bert": (ENCODER, "wordpiece"),
    "distilbert": (
        {
            "n_layers": 2,
            "dim": 16,
            "n_heads": 2,
            "hidden_dim": 32,
            "initializer_range": 0.2,
            "max_position_embeddings": 40,
        },
        "wordpiece",
    ),
    "roberta": ({**ENCODER, "type_vocab_size": 1}, "roberta"),
    "albert": ({**ENCODER, "embedding_size": 8}, "wordpiece"),
    "electra": ({**ENCODER, "embedding_size": 8}, "wordpiece"),
    "gpt2": ({"n_layer": 2, "n_embd": 16, "n_head": 2, "initializer_range": 0.2, "n_positions": 40}, "gpt2"),
    "opt": (
        {
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "ffn_dim": 32,
            "word_embed_proj_dim": 16,
            "max_position_embeddings": 40,
            "init_std": 0.2,
        },
        "opt",
    ),
    "llama": (ROTARY, "gpt2"),
    "qwen2": (ROTARY, "gpt2"),
}
DECODERS = ("gpt2", "opt", "llama", "qwen2")
TASKS = {
    family: ("classification", "causal-lm" if family in DECODERS else "masked-lm") for family in FAMILIES
}
EVERY_TASK = [(family, task) for family in FAMILIES for task in TASKS[family]]


def every_other(firsts: Iterable[object], seconds: Iterable[object]) -> list[Any]:
    """Parameters of all pairs, every other one of them slow: by default each value comes up with half of the others."""
    seconds = list(seconds)
    return [
        pytest.param(first, second, marks=[pytest.mark.slow] if (m + n) % 2 else [])
        for m, first in enumerate(firsts)
        for n, second in enumerate(seconds)
    ]


ToyModel = Callable[..., "TextModel"]


def toy_tokenizer(kind: str) -> object:
    """A tokenizer with a small vocabulary that can write any text."""
    from textleak.models.loading import vocabulary as bundled

    if kind == "wordpiece":
        special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        pieces = (*LETTERS, *(f"##{letter}" for letter in LETTERS), "##ing", "##ed", "##s")
        return bundled.wordpiece(tuple(dict.fromkeys((*special, *pieces, *WORDS))))
    merges = bundled.read_merges()[:300]
    if kind == "gpt2":
        return bundled.byte_pairs(merges=merges)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    if kind == "opt":
        return bundled.byte_pairs(
            merges=merges,
            before=("</s>", "<pad>"),
            after=(),
            template="</s> $A",
            roles={**roles, "bos_token": "</s>"},
        )
    return bundled.byte_pairs(
        merges=merges,
        before=("<s>", "<pad>", "</s>"),
        after=("<mask>",),
        template="<s> $A </s>",
        roles={**roles, "mask_token": "<mask>"},
    )


def write_toy(family: str, folder: Path, **wider: object) -> Path:
    """Write configuration and tokenizer of a family's toy model, without weights, into a folder of its name.

    Args:
        family: of `FAMILIES`.
        folder: where that folder is made.
        wider: what its shape has otherwise.
    """
    from transformers import AutoConfig

    shape, kind = FAMILIES[family]
    tokenizer = toy_tokenizer(kind)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("pad", "bos", "eos")}
    config = AutoConfig.for_model(family, **{**shape, **wider, "vocab_size": len(tokenizer), **ids})
    config.save_pretrained(folder / family)
    tokenizer.save_pretrained(folder / family)
    return folder / family


def write_network(
    family: str,
    tokenizer: Any,
    shape: Mapping[str, object],
    folder: Path,
    *,
    roles: Sequence[str] = ("pad", "bos", "eos"),
) -> Path:
    """Write configuration and tokenizer of any network, without weights, into a folder.

    Args:
        family: its model type.
        tokenizer: tells the vocabulary's size and the ids of special tokens.
        shape: options of the configuration; they go before what the tokenizer tells.
        folder: where they are written.
        roles: of the special tokens that the configuration is told, where the tokenizer has them.
    """
    from transformers import AutoConfig

    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in roles}
    given = {name: token for name, token in ids.items() if token is not None}
    config = AutoConfig.for_model(family, **{"vocab_size": len(tokenizer), **given, **shape})
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a folder with configuration and tokenizer of a family's toy model, without weights."""
    return functools.cache(lambda family: write_toy(family, tmp_path_factory.mktemp("toys")))


@pytest.fixture(scope="session")
def toy_model(toy_folder: Callable[[str], Path]) -> ToyModel:
    """Gives a family's toy model: toy_model("bert", task="masked-lm", dtype="float64", seed=1)."""
    from textleak.models import load_model

    @functools.cache
    def model(
        family: str = "bert",
        *,
        task: str = "auto",
        dtype: str = "float32",
        seed: int = 0,
        num_labels: int = 3,
    ) -> TextModel:
        return load_model(
            str(toy_folder(family)),
            weights="random",
            task=task,
            device="cpu",
            dtype=dtype,
            weights_seed=seed,
            num_labels=num_labels,
        )

    return model
