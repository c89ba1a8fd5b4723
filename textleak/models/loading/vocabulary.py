"""The bundled vocabularies as tokenizers: real text in, real token ids out, where no hub can be reached."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FOLDER = files("textleak.models.loading") / "vocabularies"


@cache
def read_wordpiece() -> tuple[str, ...]:
    """The 30,522 entries of the bert-base-uncased vocabulary, in id order."""
    text = (FOLDER / "bert-base-uncased.txt").read_text(encoding="utf-8")
    return tuple(text.rstrip("\n").split("\n"))


@cache
def read_merges() -> tuple[tuple[str, str], ...]:
    """The 50,000 byte-pair merges of GPT-2, in order of rank."""
    lines = (FOLDER / "gpt2-merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    pairs = (line.split(" ") for line in lines if not line.startswith("#version"))
    return tuple((left, right) for left, right in pairs)


def byte_symbols() -> list[str]:
    """The 256 characters that byte-level BPE writes bytes as, in GPT-2's order: printable bytes first."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(others))]


def wordpiece(vocabulary: tuple[str, ...] | None = None) -> PreTrainedTokenizerFast:
    """A BERT tokenizer (lower-casing WordPiece); the bundled vocabulary unless another is given."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {token: index for index, token in enumerate(vocabulary or read_wordpiece())}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def byte_pairs(
    *,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = ("<|endoftext|>",),
    template: str = "$A",
    roles: dict[str, str] | None = None,
    merges: tuple[tuple[str, str], ...] | None = None,
) -> PreTrainedTokenizerFast:
    """A GPT-2 tokenizer (byte-level BPE), with the special tokens of another family where asked.

    Args:
        before: special tokens with the first ids.
        after: special tokens with the last ids.
        template: what stands around a sentence, as `tokenizers` writes it ("<s> $A </s>").
        roles: special token of each role, for example {"pad_token": "<pad>"}.
        merges: other merges than the bundled ones.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    merges = read_merges() if merges is None else merges
    tokens = [*before, *byte_symbols(), *(left + right for left, right in merges), *after]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(ids, list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if template != "$A":
        around = [name for name in template.split() if name != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, ids[name]) for name in around]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **(roles or {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"})
    )
