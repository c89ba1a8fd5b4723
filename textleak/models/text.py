"""A text model as client and attacker both see it: sentences to ids, ids or embeddings to losses.

Everything about the network is found on the network itself (its embeddings, heads, parameter identity) and
everything about tokens on the tokenizer, so that no family of models is special here.

Shapes: K candidates, B sentences in the client's batch, N = K·B sentences as the network reads them, T tokens
of the longest one, E size of an input embedding, D hidden size, V rows of the embedding table, C classes of
the prediction (V for language modeling), L predictions a sentence (1 for classification, T otherwise).
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from textleak.errors import InputError
from textleak.events import Label
from textleak.models.base import Modality, Weights
from textleak.models.batches import Batch, Targets
from textleak.models.cast import cast_network, convert_buffers, standing_for, wide
from textleak.models.copies import copy_of
from textleak.models.heads import last_token_head
from textleak.models.identity import attends, fingerprint_of, public_model
from textleak.models.losses.base import Loss, loss_of
from textleak.models.losses.language import PLAIN, Language, turned
from textleak.models.parts import Parts, parts_of
from textleak.models.running import Way, left_padded, run, way_of
from textleak.models.targets import cross_entropies, targets_of
from textleak.shared.public import PublicModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

Task = str
"""What the loss is: one of `COMMON_TASKS`, or of a head's own loss (`losses`)."""

COMMON_TASKS = ("classification", "causal-lm", "masked-lm")

_UNHEARD_OF = "\U00013000"  # a hieroglyph: in no vocabulary, so it becomes bytes or the unknown token
_UNLIMITED = 2**30  # tokens
# What was found of a network and holds for no copy of it: modules and tensors of its own, how its numbers are handled.
_OF_ITS_WEIGHTS = ("word_embedding", "content_ids", "parameters", "fingerprint", "way")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextModel:
    """A public model: network, tokenizer, and where its weights came from.

    The network has eager attention and frozen parameters. Nothing here changes it.

    Attributes:
        name: alias, hub id, folder or file as it was asked for.
        task: what the loss is.
        network: the Hugging Face model.
        tokenizer: its tokenizer.
        weights: "pretrained", or "random" where all of them were drawn.
        source: where the weights came from, in words.
        weights_seed: seed of the weights that were drawn (all of them, or a missing head).
        num_labels: classes for classification, else None.
        outputs: how many numbers the head gives for each prediction, where its loss is one of its own (`own_loss`).
        changed_loss: what the head is trained with in place of its own loss; None for that.
        language: how a language model's loss is made of its tokens'.
        trained: names of the parameters that training moves; None for all.
        pairs: whether its client's texts may be of two parts that are embedded as such (`parts`).
        first_layers: how many layers of the model it has, the first, without a head; None where it is whole.
        copied_from: the model that this is a copy of in another precision; None where it is none.

    Example:
        >>> model.name, model.task, model.weights, model.hidden_size
        ('bert-tiny', 'classification', 'random', 128)
    """

    modality: ClassVar[Modality] = Modality.TEXT

    name: str
    task: Task
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    weights: Weights
    source: str
    weights_seed: int = 0
    num_labels: int | None = None
    outputs: int | None = None
    changed_loss: Loss | None = None
    language: Language = PLAIN
    trained: tuple[str, ...] | None = None
    pairs: bool = False
    first_layers: int | None = None
    copied_from: TextModel | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Freeze the network, and look at it once while nobody has put hooks on it."""
        self.network.requires_grad_(False)
        self.network.config.use_cache = False
        text_config = self.network.config.get_text_config()
        if getattr(text_config, "pad_token_id", None) is None:  # decoders that were trained without padding
            text_config.pad_token_id = self.pad_id
        _ = self.way, self._last_token_head

    # What it is

    @cached_property
    def word_embedding(self) -> nn.Embedding:
        """The module that turns token ids into embeddings."""
        module: nn.Embedding = self.network.get_input_embeddings()
        return module

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.word_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.word_embedding.weight.dtype

    @cached_property
    def wide(self) -> bool:
        """Whether its weights are too large for a copy of all of them in float64, or of all of a gradient."""
        return wide(self.network)

    @property
    def hidden_size(self) -> int:
        """D, the width of the network (not of a factorized embedding)."""
        return int(self.network.config.get_text_config().hidden_size)

    @property
    def embedding_size(self) -> int:
        """E, the width of an input embedding; D in most families."""
        return self.word_embedding.weight.shape[1]

    @property
    def vocab_size(self) -> int:
        """V, rows of the embedding table."""
        return self.word_embedding.weight.shape[0]

    @property
    def marks(self) -> int:
        """How many tokens can stand at a place, those of a second part counted by themselves: V, or twice that."""
        return self.vocab_size * (2 if self.pairs else 1)

    @property
    def classes(self) -> int:
        """C, the classes of a prediction."""
        return self.num_labels if self.num_labels is not None else self.vocab_size

    @cached_property
    def own_loss(self) -> Loss | None:
        """The loss of a head that tells neither one class a sentence nor tokens; None for those that do."""
        return self.changed_loss or loss_of(self.task)

    @property
    def pooled(self) -> bool:
        """Whether the head makes one prediction of a whole sentence."""
        return self.task == "classification" or (self.own_loss is not None and self.own_loss.pooled)

    @cached_property
    def way(self) -> Way:
        """How the network is run on embeddings."""
        return way_of(self)

    @cached_property
    def max_length(self) -> int:
        """Most tokens in a sentence, special tokens counted."""
        config = self.network.config.get_text_config()
        limit = int(getattr(config, "max_position_embeddings", None) or 0)
        if limit < 1:  # positions are relative
            limit = _UNLIMITED
        for module in self.network.modules():
            # RoBERTa counts positions from the padding index on, in a table of max_position_embeddings rows.
            if (
                isinstance(module, nn.Embedding)
                and module is not self.word_embedding
                and module.num_embeddings == limit
                and module.padding_idx is not None
            ):
                limit -= module.padding_idx + 1
                break
        return min(limit, int(self.tokenizer.model_max_length))

    @property
    def pad_id(self) -> int:
        """Token that fills up short sentences; any will do where the tokenizer has none, as it's masked."""
        for token_id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                return int(token_id)
        return 0

    @property
    def mask_id(self) -> int | None:
        """Token that hides another one in masked language modeling, None where there is none."""
        mask_id = self.tokenizer.mask_token_id
        return None if mask_id is None else int(mask_id)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that stand for no text: padding, beginning, end, mask, control tokens.

        The unknown token isn't one of them where text turns into it.
        """
        special = {i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}
        special |= set(self.tokenizer.all_special_ids)
        special -= set(self.tokenizer(_UNHEARD_OF, add_special_tokens=False)["input_ids"])
        return frozenset(int(i) for i in special)

    @cached_property
    def unknown_ids(self) -> frozenset[int]:
        """The token that stands for whatever the vocabulary has no entry for; empty where there is none.

        It is content to a network, which reads it as any other, and no content to a person: the text is lost in it.
        """
        unknown = self.tokenizer.unk_token_id
        return frozenset() if unknown is None or unknown in self.special_ids else frozenset({int(unknown)})

    @cached_property
    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        probe = "a"
        inner = self.tokenizer(probe, add_special_tokens=False)["input_ids"]
        whole = self.tokenizer(probe)["input_ids"]
        for start in range(len(whole) - len(inner) + 1):
            if whole[start : start + len(inner)] == inner:
                return tuple(whole[:start]), tuple(whole[start + len(inner) :])
        raise InputError(
            f"The tokenizer of {self.name!r} writes {probe!r} as {whole}, without special tokens as {inner}.",
            why="What it puts around a sentence can't be told.",
        )

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        """Tokens that the tokenizer puts before every sentence."""
        return self._around[0]

    @property
    def suffix_ids(self) -> tuple[int, ...]:
        """Tokens that the tokenizer puts after every sentence."""
        return self._around[1]

    @cached_property
    def parts(self) -> Parts | None:
        """How a text's two parts are told apart; None where they aren't, but by the token between them."""
        return parts_of(self.plain())

    @cached_property
    def content_ids(self) -> Tensor:
        """(number,) ids that text can turn into: the tokenizer's tokens that aren't special."""
        known = min(len(self.tokenizer), self.vocab_size)
        ids = [i for i in range(known) if i not in self.special_ids]
        return torch.tensor(ids, device=self.device)

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name; a tied one once, under its first name."""
        return dict(self.network.named_parameters())

    @property
    def trainable(self) -> tuple[str, ...]:
        """Names of the parameters that training moves."""
        return tuple(self.parameters) if self.trained is None else self.trained

    @cached_property
    def embedding_names(self) -> frozenset[str]:
        """Parameters of every embedding and of the output head over the vocabulary, and what is tied."""
        modules: list[nn.Module] = [m for m in self.network.modules() if isinstance(m, nn.Embedding)]
        owned: list[nn.Parameter] = []
        head = self.network.get_output_embeddings()
        if head is not None:
            modules.append(head)
            # Some heads keep their bias beside the matrix instead of in it.
            owned = [
                parameter
                for module in self.network.modules()
                if any(child is head for child in module.modules())
                for parameter in module.parameters(recurse=False)
                if parameter.shape == (self.vocab_size,)
            ]
        owned += [parameter for module in modules for parameter in module.parameters(recurse=False)]
        identities = {id(parameter) for parameter in owned}
        return frozenset(name for name, p in self.parameters.items() if id(p) in identities)

    @cached_property
    def attention_names(self) -> frozenset[str]:
        """Query, key and value weights and biases, fused ones too."""
        names = set()
        for path, module in self.network.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 2 and attends(path.rpartition(".")[2]):
                names |= {f"{path}.{name}" for name, _ in module.named_parameters()}  # adapters inside it too
        # And matrices that are no layer's, as XLNet's.
        names |= {
            name for name, p in self.parameters.items() if p.dim() > 2 and attends(name.rpartition(".")[2])
        }
        return frozenset(names & self.parameters.keys())

    def public(self) -> PublicModel:
        """What both sides need to know to load the same model."""
        return public_model(self)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of every parameter's name, shape and a sample of its values."""
        return fingerprint_of(self.parameters)

    # Text and ids

    def encode(self, sentences: Sequence[str] | str) -> Batch:
        """Tokenize a batch (a bare text is one sentence) and pad it on the right.

        Raises:
            InputError: no sentence, one without text, or one that is too long.
        """
        sentences = (sentences,) if isinstance(sentences, str) else sentences
        if not sentences:
            raise InputError("There is no sentence.", fix="Give one with --sentence or --file.")
        rows: list[list[int]] = []
        for sentence in sentences:
            ids = self.tokenizer(sentence, verbose=False)["input_ids"]
            if all(token_id in self.special_ids for token_id in ids):
                raise InputError(
                    f"The sentence {sentence!r} has no text in it.",
                    why="Special tokens alone leave nothing to recover.",
                    fix="Give a sentence of at least one word.",
                )
            if len(ids) > self.max_length:
                raise InputError(  # a private text isn't quoted
                    f"Sentence {len(rows) + 1} is too long: {len(ids)} tokens.",
                    why=f"{self.name} reads at most {self.max_length}, special tokens counted.",
                    fix="Shorten it or split it; `textleak eval --max-words` leaves such sentences out.",
                )
            if max(ids) >= self.vocab_size:
                raise InputError(
                    f"The tokenizer gives the id {max(ids)}; {self.name} has {self.vocab_size} embeddings.",
                    why="The tokenizer is not the one that the weights were trained with.",
                )
            rows.append(ids)
        longest = max(map(len, rows))
        ids_BT = torch.tensor([row + [self.pad_id] * (longest - len(row)) for row in rows])
        mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return Batch(ids_BT=ids_BT.to(self.device), mask_BT=mask_BT.to(self.device))

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """The text of one sentence's ids, special tokens left out but for those between its parts."""
        known = [int(i) for i in ids if 0 <= int(i) < len(self.tokenizer)]
        places = [t for t, i in enumerate(known) if i not in self.special_ids] or [0]
        between = {t for t, i in enumerate(known) if i in self.suffix_ids and places[0] < t < places[-1]}
        kept = [i for t, i in enumerate(known) if i not in self.special_ids or t in between]
        text: str = self.tokenizer.decode(kept)
        return text

    def token_texts(self, ids: Sequence[int] | Tensor) -> list[str]:
        """Each id as the tokenizer writes it; rows of the table that no token uses as "<row 123>"."""
        listed = [int(i) for i in ids]
        known = len(self.tokenizer)
        tokens = self.tokenizer.convert_ids_to_tokens([i if i < known else self.pad_id for i in listed])
        return [
            token if token is not None and i < known else f"<row {i}>"
            for i, token in zip(listed, tokens, strict=True)
        ]

    # Losses

    def embed(self, ids: Tensor) -> Tensor:
        """Look ids (..., T) up in the table: (..., T, E), as the network takes them in place of ids."""
        if self.pairs and ids.dim():
            return self.embed_marked(self.marked(ids))
        embeddings: Tensor = self.word_embedding(ids)
        return embeddings

    def marked(self, ids: Tensor) -> Tensor:
        """Ids (..., T) of whole texts, those in a second part as id + V."""
        return ids + self.vocab_size * self.parts.of(ids) if self.pairs and self.parts else ids

    def embed_marked(self, marked: Tensor) -> Tensor:
        """The same look-up, (..., E), of tokens that say their part themselves: id + V is one in a second part."""
        assert self.parts is not None
        embeddings: Tensor = self.word_embedding(marked % self.vocab_size)
        return embeddings + self.parts.added(self.network, marked // self.vocab_size)

    def read_marked(self, marked: Tensor) -> Tensor:
        """What the network takes of tokens that say their part, (..., T): ids alone where texts have one part."""
        return self.embed_marked(marked) if self.pairs else marked

    def targets(
        self, batch: Batch, labels: Sequence[Label] | None, generator: torch.Generator
    ) -> tuple[Batch, Targets]:
        """What Hugging Face training would take the batch's loss against.

        Args:
            batch: from `encode`.
            labels: class of each sentence; None draws them. Language modeling takes none: the tokens are it.
            generator: draws labels or masked positions; on the CPU, so that every device draws the same.

        Returns:
            The batch as the network reads it (masked language modeling hides tokens) and the targets, (B, L).

        Raises:
            InputError: labels that don't fit, or a batch with nothing to predict.
        """
        return targets_of(self, batch, labels, generator)

    def causal_targets(self, ids: Tensor, mask: Tensor) -> Targets:
        """Each token predicts the next: ids and mask (..., B, T), 1 for tokens, 0 for padding on the right."""
        return self.language.causal_targets(ids, mask, pad_id=self.pad_id, dtype=self.loss_dtype)

    @property
    def loss_dtype(self) -> torch.dtype:
        """Type that losses are computed in: the weights', but at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    def loss(self, inputs: Tensor, mask: Tensor, targets: Targets) -> Tensor:
        """The loss of K candidates, each what a client with its B sentences would have: (K,).

        Padding adds exactly nothing. Candidates share no arithmetic, so the gradient of the sum of the losses
        is each candidate's own. bfloat16 logits are read as float32, like Hugging Face does.

        Args:
            inputs: ids (K, B, T), or embeddings (K, B, T, E) in place of looked-up ones.
            mask: (K, B, T), 1 for tokens, 0 for padding on the right.
            targets: with leading dimensions (K, B).

        Raises:
            InputError: these are the model's first layers alone.
        """
        if self.first_layers is not None:
            raise InputError(
                f"Of {self.name!r} only the first layers were read, so no text's loss can be computed.",
                why="The head reads what the last layer makes.",
                fix="Leave --layers out.",
            )
        K = len(mask)
        logits = self.logits(inputs.flatten(0, 1), mask.flatten(0, 1)).to(self.loss_dtype)
        flat = Targets(labels=targets.labels.flatten(0, 1), weights=targets.weights.flatten(0, 1))
        losses = (
            cross_entropies(logits, flat, self.language.smoothing)
            if self.own_loss is None
            else self.own_loss.losses(logits, flat)
        )
        total: Tensor = (losses.reshape(K, -1) * flat.weights.reshape(K, -1)).sum(-1)
        return total

    def logits(self, inputs: Tensor, mask_NT: Tensor) -> Tensor:
        """Ids (N, T) or embeddings (N, T, E) in, logits (N, L, C) out."""
        if self._last_token_head is None:
            if self.language.padding == "left":
                logits: Tensor = left_padded(self, turned(inputs, mask_NT), turned(mask_NT, mask_NT))
                return turned(logits, mask_NT, back=True)
            output = run(self, inputs, mask=mask_NT)
            logits = output.logits if self.own_loss is None else self.own_loss.logits(output)
            return logits[:, None] if self.pooled else logits
        hidden_NTD = run(self, inputs, mask=mask_NT, whole=False).last_hidden_state
        last_N = mask_NT.sum(-1) - 1
        last_ND = hidden_NTD[torch.arange(len(last_N), device=last_N.device), last_N]
        head: nn.Module = self.network.get_submodule(self._last_token_head)
        logits = head(last_ND)
        return logits[:, None]

    @cached_property
    def _last_token_head(self) -> str | None:
        """Path of a head that reads the last token (decoders), None for any other head."""
        return last_token_head(self) if self.pooled else None

    @property
    def head(self) -> nn.Module | None:
        """The linear module that makes the logits: over the vocabulary, or a classifier of the last token."""
        if self.first_layers is not None:
            return None
        if self.pooled:
            path = self._last_token_head
            return None if path is None else self.network.get_submodule(path)
        module: nn.Module | None = self.network.get_output_embeddings()
        return module

    def double(self) -> Self:
        """A copy in float64, for verification; on the CPU where the device has no float64. Itself if it is that."""
        return self.in_dtype(torch.float64)

    def in_dtype(self, dtype: torch.dtype) -> Self:
        """A copy in another precision, float64 on the CPU where the device has none. Itself if it is in that.

        A wide model isn't copied: its weights are converted where they are used (`cast`).
        """
        if self.dtype == dtype:
            return self
        capable = self.device.type != "mps" or dtype != torch.float64
        if capable and self.wide and dtype == torch.float64:
            return self._copied(cast_network(self.network, dtype))
        device = self.device if capable else torch.device("cpu")
        # Copied straight into the new precision, so that no second copy in the old one takes memory on the way; and a
        # table of which rows are looked up, while no logits are made of it, isn't copied at all on a CPU.
        table = self.word_embedding.weight
        kept = {id(table)} if self.pooled and dtype == torch.float64 and self.device.type == "cpu" else set()
        copies = {
            id(p): standing_for(p, dtype)
            if id(p) in kept
            else nn.Parameter(p.detach().to(device=device, dtype=dtype), requires_grad=False)
            for p in self.network.parameters()
        }
        network = copy_of(self.network, copies)
        convert_buffers(network, dtype, device)
        return self._copied(network)

    def _copied(self, network: PreTrainedModel) -> Self:
        """A copy in another precision, around its network."""
        made = copy.copy(self)  # what is known of its text and of its architecture is so of the copy's too
        for own in _OF_ITS_WEIGHTS:
            made.__dict__.pop(own, None)
        object.__setattr__(made, "network", network)
        object.__setattr__(made, "copied_from", self.copied_from or self)
        made.__dict__["way"] = way_of(made, self.way)
        return made

    def trained_with(self, loss: Loss) -> Self:
        """The same model, trained with another loss than its head's."""
        return dataclasses.replace(
            self, num_labels=None, outputs=self.num_labels or self.outputs, changed_loss=loss
        )

    def in_pairs(self) -> Self:
        """The same model, read with texts of two parts.

        Raises:
            InputError: its tokenizer marks no parts, or the network reads them in a way of its own.
        """
        if self.parts is None:
            raise InputError(
                f"{self.name!r} isn't read with texts of two parts here.",
                why="Its tokenizer gives both the same token type, or its network doesn't add an embedding of it.",
                fix="Leave the client pairs out: the token between the parts tells them apart.",
            )
        made = dataclasses.replace(self, pairs=True)
        made.__dict__["parts"] = self.parts
        return made

    def plain(self) -> Self:
        """The same model, read with texts of one part."""
        return dataclasses.replace(self, pairs=False) if self.pairs else self

    def spoken_with(self, language: Language) -> Self:
        """The same language model, its loss made of its tokens' in another way."""
        return dataclasses.replace(self, language=language)

    def with_network(self, network: nn.Module) -> Self:
        """The same model around another network of the same kind."""
        return dataclasses.replace(self, network=cast("PreTrainedModel", network), copied_from=None)
