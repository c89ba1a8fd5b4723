"""Networks of an encoder and a decoder that classify a text: both read it, the decoder moved on by one token.

transformers' classifiers of this kind (BART, T5) take ids alone and make the decoder's text of them; here both are run
on embeddings. What the decoder begins with is seen on the network's own pass of a text, and what comes out of ours is
held against that.

Shapes: N sentences, T tokens, E size of an input embedding, D hidden size.
"""

from __future__ import annotations

import dataclasses
import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textleak.errors import InputError
from textleak.matching.hooks import hooked

if TYPE_CHECKING:
    from textleak.models.text import TextModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Both:
    """How an encoder-decoder classifies a text.

    Attributes:
        begins_with: the token before the text in the decoder; None for the text's own last one.
        head: path of the module that reads the decoder's output at the text's end token.
        after_end: tokens of a text after its end token.
    """

    begins_with: int | None
    head: str
    after_end: int

    def run(
        self,
        model: TextModel,
        embeddings_NTE: Tensor,
        *,
        whole: bool,
        attention_mask: Tensor | None,
        **named: Tensor | None,
    ) -> Any:  # noqa: ANN401 - each family has its own
        """The network's output, or its body's alone."""
        N, T = embeddings_NTE.shape[:2]
        lengths_N = torch.full((N,), T, device=embeddings_NTE.device)
        if attention_mask is not None and attention_mask.dim() == 2:
            lengths_N = attention_mask.sum(-1)
        rows_N = torch.arange(N, device=embeddings_NTE.device)
        first_NE = (
            embeddings_NTE[rows_N, lengths_N - 1]
            if self.begins_with is None
            else model.embed(torch.full((N,), self.begins_with, device=embeddings_NTE.device))
        )
        output = model.network.base_model(
            inputs_embeds=embeddings_NTE,
            attention_mask=attention_mask,
            decoder_inputs_embeds=torch.cat([first_NE[:, None], embeddings_NTE[:, :-1]], 1),
            **named,
        )
        if not whole:
            return output
        # A text too short to hold its end token is only run to see what layers before the head read.
        ends_N = (lengths_N - 1 - self.after_end).clamp_min(0)
        head: nn.Module = model.network.get_submodule(self.head)
        return SimpleNamespace(logits=head(output.last_hidden_state[rows_N, ends_N]))


def reads_twice(model: TextModel) -> bool:
    """Whether the network's body is an encoder and a decoder."""
    return "decoder_inputs_embeds" in inspect.signature(model.network.base_model.forward).parameters


def both_of(model: TextModel) -> Both:
    """How the network classifies, seen on its own pass of a text.

    Raises:
        InputError: its head makes no prediction of a whole text, the tokenizer writes no end token, or its decoder
            reads something else than the same text.
    """
    if not model.pooled:
        raise _unlike(model, f"Its head is for {model.task}, and tells nothing of a text as a whole.")
    end = model.network.config.eos_token_id
    if end not in model.suffix_ids:
        raise InputError(
            f"The tokenizer of {model.name!r} ends no text with the token {end}.",
            why="An encoder-decoder's classifier reads its decoder there (eos_token_id of its configuration).",
            fix="Give the tokenizer that the model was trained with (--tokenizer).",
        )
    inside = {id(module) for module in model.network.base_model.modules()}
    outside = [
        name
        for name, module in model.network.named_children()
        if id(module) not in inside and next(module.parameters(), None) is not None
    ]
    if len(outside) != 1:
        raise _unlike(model, f"Besides its body it has {', '.join(outside) or 'nothing'}.")
    # The end token isn't the last, so that what begins the decoder's text shows.
    before, middle, last = model.content_ids[:3].tolist()
    ids_1T = torch.tensor([[before, middle, int(end), last]], device=model.device)
    read_1T, logits = _own_pass(model, ids_1T)
    if not torch.equal(read_1T[:, 1:], ids_1T[:, :-1]):
        raise _unlike(model, "Its decoder reads another text than its encoder.")
    first = int(read_1T[0, 0])
    found = Both(begins_with=None if first == last else first, head=outside[0], after_end=1)
    own = found.run(model, model.embed(ids_1T), whole=True, attention_mask=torch.ones_like(ids_1T)).logits
    # Another kernel adds up in another order; no other text's logits come anywhere near.
    if float((own - logits).norm()) > torch.finfo(model.dtype).eps ** 0.5 * float(logits.norm()):
        raise _unlike(model, "Run on embeddings, it gives other logits than on ids.")
    ending = [*model.suffix_ids][::-1]
    return dataclasses.replace(found, after_end=ending.index(end))


def _own_pass(model: TextModel, ids_1T: Tensor) -> tuple[Tensor, Tensor]:
    """What the last look-up of a whole text was of, and the logits, where the network is run as it was written."""
    looked_up: list[Tensor] = []

    def note(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor) and arguments[0].shape == ids_1T.shape:
            looked_up.append(arguments[0].clone())

    tables = [
        module
        for module in model.network.modules()
        if isinstance(module, nn.Embedding) and module.weight.shape == model.word_embedding.weight.shape
    ]
    with hooked([table.register_forward_pre_hook(note) for table in tables]):
        logits: Tensor = model.network(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T)).logits
    return looked_up[-1], logits


def _unlike(model: TextModel, why: str) -> InputError:
    return InputError(
        f"The encoder-decoder {model.name!r} ({model.network.config.model_type}) isn't read here.",
        why=why,
        fix="Those are that classify a text which encoder and decoder both read, as BART's and T5's classifiers do.",
    )
