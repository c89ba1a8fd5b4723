"""A model's tokenizer: beside its weights, one that was asked for, or a bundled one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textleak import foreign
from textleak.errors import InputError
from textleak.models.loading import own_code, vocabulary
from textleak.models.loading.catalog import BY_HUB_ID, CATALOG, Entry
from textleak.models.loading.places import Checkpoint, find_place, not_at_hand
from textleak.models.loading.reading import reading

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast


def tokenizer_for(
    name: str, place: Checkpoint, config: PreTrainedConfig, *, asked: str | None, download: bool
) -> PreTrainedTokenizerFast:
    """The tokenizer that was asked for, else the one that lies beside the weights.

    Args:
        name: of the model.
        place: where its weights are.
        config: its configuration.
        asked: alias, hub id or folder of another tokenizer; None for the model's own.
        download: whether the hub may be asked for what isn't on this machine.

    Raises:
        InputError: there is none, or it can't be read.
    """
    if asked is None:
        return _read_tokenizer(name, place, config)
    path = foreign.expanded(asked)
    if path.is_dir():
        return _read_tokenizer(asked, Checkpoint(folder=path, gguf=None, words=f"folder {path}"), None)
    entry = CATALOG.get(asked) or BY_HUB_ID.get(asked)
    found, missing = find_place(asked, entry, "auto", download=download)
    if found is not None:
        return _read_tokenizer(asked, found, None)
    if entry is not None:
        return bundled_tokenizer(entry)
    raise not_at_hand(asked, entry, missing, download=download)


def _read_tokenizer(name: str, place: Checkpoint, config: PreTrainedConfig | None) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    options = {} if place.gguf is None else {"gguf_file": place.gguf}
    with reading(name, place, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(place.folder, config=config, **own_code.LOCAL, **options)
    # What transformers makes of missing files: a tokenizer with no words.
    if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):
        raise InputError(
            f"There is no tokenizer of {name!r} in {place.words}.",
            why="Without its vocabulary no text can be turned into the model's tokens, nor back.",
            fix="Save it there (tokenizer.save_pretrained(FOLDER)): tokenizer.json, or vocab.txt or the like.",
        )
    return tokenizer


def bundled_tokenizer(entry: Entry) -> PreTrainedTokenizerFast:
    """The bundled tokenizer that random weights of an alias go with."""
    match entry.vocabulary:
        case "wordpiece":
            return vocabulary.wordpiece()
        case "byte-pairs":
            return vocabulary.byte_pairs()
        case "byte-pairs-roberta":
            return vocabulary.byte_pairs(
                before=("<s>", "<pad>", "</s>"),
                after=("<mask>",),
                template="<s> $A </s>",
                roles={
                    "bos_token": "<s>",
                    "cls_token": "<s>",
                    "eos_token": "</s>",
                    "sep_token": "</s>",
                    "pad_token": "<pad>",
                    "mask_token": "<mask>",
                },
            )
        case "byte-pairs-opt":
            return vocabulary.byte_pairs(
                before=("</s>", "<pad>"),
                after=(),
                template="</s> $A",
                roles={"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"},
            )
        case "byte-pairs-chat":
            return vocabulary.byte_pairs(
                after=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
                roles={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
            )
