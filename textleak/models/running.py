"""Running a public model's network on embeddings, in whichever way its family takes them.

What a family's own code can't do, it says in its own words: `explained` makes an error of that for a person, which
names the module.

Shapes: N sentences, T tokens, E size of an input embedding.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from textleak.errors import AttackError, InputError, TextleakError
from textleak.matching.factored import out_of_memory
from textleak.matching.hooks import hooked
from textleak.models.both import Both, both_of, reads_twice
from textleak.models.mapped import LayerByLayer
from textleak.models.quiet import quiet

if TYPE_CHECKING:
    from textleak.models.text import TextModel

_TOKENS = 4  # of the text that a network is tried on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """How a network is run on embeddings.

    Attributes:
        by_ids: whether it asks for ids: what it looks up is replaced.
        own_constants: whether numbers that it makes on the way have to be of its own precision: some don't fit others.
        masked: whether it can be told what is padding.
        shortest: tokens of a text at least.
        both: how an encoder and a decoder read the same text; None for networks of one of them.
    """

    by_ids: bool = False
    own_constants: bool = False
    masked: bool = True
    shortest: int = 1
    both: Both | None = None


def run(
    model: TextModel,
    inputs: Tensor,
    *,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    types: Tensor | None = None,
    whole: bool = True,
    again: bool = False,
) -> Any:  # noqa: ANN401 - each family has its own
    """The network's output.

    Args:
        model: the public model.
        inputs: ids (N, T), or embeddings (N, T, E) in place of looked-up ones.
        mask: (N, T), 1 for tokens; all of them where None. Or (N, 1, T, T), added to the attention scores.
        positions: (N, T), where the tokens stand; one after the other where None. Few encoders take them.
        types: (N, T), the part of its text that each token belongs to, as `parts` finds out about; None for the first.
        whole: with the head, or the body alone.
        again: whether the same layers are to run again soon, so that a wide model's stay in memory.
    """
    # Ids are looked up here, so that they and embeddings take the same way from there on: families that
    # count positions from the ids (RoBERTa) would treat a padding token within a sentence differently.
    embeddings_NTE = inputs if inputs.dtype.is_floating_point else model.embed(inputs)
    where = {} if positions is None else {"position_ids": positions}
    where |= {} if types is None else {"token_type_ids": types}
    with LayerByLayer() if model.wide and not again else nullcontext():
        return _run(model, model.way, embeddings_NTE, whole=whole, attention_mask=mask, **where)


def left_padded(model: TextModel, inputs: Tensor, mask_NT: Tensor) -> Tensor:
    """A causal network's logits where padding stands on the left: it sees all of its row alike.

    A row of a mask that is "nowhere" throughout weighs all places alike where what stands for it swallows every score
    and is finite wherever it is added, as float32's does in float32. Float64's own is beyond float32, in which some
    networks weigh what they attend to even then, so float32's is what a network is told there too.
    """
    with _nowhere_of_float32() if model.dtype == torch.float64 else nullcontext():
        logits: Tensor = run(model, inputs, mask=mask_NT).logits
    return logits


@contextmanager
def _nowhere_of_float32() -> Iterator[None]:
    """Have float64's least number be float32's, for what a network makes its masks of."""
    own = torch.finfo

    def limits(dtype: torch.dtype | None = None) -> torch.finfo:
        dtype = torch.get_default_dtype() if dtype is None else dtype
        return own(torch.float32 if dtype == torch.float64 else dtype)

    torch.finfo = limits  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        torch.finfo = own  # type: ignore[misc]


def _run(
    model: TextModel,
    way: Way,
    embeddings_NTE: Tensor,
    *,
    whole: bool,
    **named: Tensor | None,
) -> Any:  # noqa: ANN401
    network = model.network if whole else model.network.base_model
    embeddings_NTE = embeddings_NTE.clone()  # some scale them in place
    named = (
        named if way.masked else {name: value for name, value in named.items() if name != "attention_mask"}
    )
    with ExitStack() as held:
        if way.own_constants:
            held.enter_context(_default(model.dtype))
        if way.both is not None:
            return way.both.run(model, embeddings_NTE, whole=whole, **named)
        if not way.by_ids:
            return network(inputs_embeds=embeddings_NTE, **named)

        def ours(_module: nn.Module, _ids: Any, looked_up_NTE: Tensor) -> Tensor:  # noqa: ANN401
            own = embeddings_NTE.shape[1]
            return torch.cat([embeddings_NTE, looked_up_NTE[:, own:]], 1)  # some pad texts by themselves

        replaced = model.word_embedding.register_forward_hook(ours)
        held.enter_context(hooked([replaced]))
        ids_NT = model.content_ids[:1].expand(embeddings_NTE.shape[:2])  # no padding: any other token does
        return network(input_ids=ids_NT, **named)


def way_of(model: TextModel, like: Way | None = None) -> Way:
    """How the network is run, found by trying.

    Args:
        model: whose network it is.
        like: how the same network is run in another precision, which leaves less to try.

    Raises:
        InputError: in none of the ways that are known here.
    """
    with explained(model), torch.no_grad(), quiet():
        embeddings_1TE: Any = model.embed(model.content_ids[:_TOKENS][None])
        if not isinstance(embeddings_1TE, Tensor):
            kind = type(model.word_embedding).__name__
            raise InputError(
                f"The word embedding of {model.name!r} ({kind}) gives more than embeddings.",
                why="Networks are run on embeddings here; this family's carry the scales of quantized numbers along.",
                fix="Choose a model whose layers compute in floating point.",
            )
        if reads_twice(model):
            return like or Way(both=both_of(model))
        masked = "attention_mask" in inspect.signature(model.network.forward).parameters
        ways = [
            Way(by_ids=by_ids, own_constants=own, masked=masked)
            for own in (False, True)
            if not own or model.dtype != torch.get_default_dtype()
            for by_ids in (False, True)
        ]
        first = None
        for way in ways:
            error = _why_not(model, way, embeddings_1TE)
            if error is None:
                break
            first = first or error
        else:
            assert first is not None
            raise first
        if like is not None:
            return dataclasses.replace(way, shortest=like.shortest)
        short = _why_not(model, way, embeddings_1TE[:, :1])
        return way if short is None else dataclasses.replace(way, shortest=2)


def _why_not(model: TextModel, way: Way, embeddings_1TE: Tensor) -> Exception | None:
    """What the network says to a text that is run in some way; None where it takes it."""
    mask_1T = torch.ones(embeddings_1TE.shape[:2], dtype=torch.long, device=model.device)
    try:
        _run(model, way, embeddings_1TE, whole=True, attention_mask=mask_1T)
    except Exception as error:  # each family fails in its own way
        if out_of_memory(error):
            raise
        return error
    return None


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def explained(model: Any) -> Iterator[None]:  # noqa: ANN401 - a TextModel, or an ImageModel
    """Make what a network's own code raises an error for a person.

    Raises:
        InputError: a module of the network can't do what it is asked for.
        AttackError: memory ran out.
    """
    try:
        yield
    except TextleakError:
        raise
    except Exception as error:
        kind = _failed_in(error)
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        if out_of_memory(error):
            raise AttackError(
                "Memory ran out.", why=reason, fix="Take a smaller model, or fewer or shorter sentences."
            ) from error
        if kind is None:
            raise
        raise InputError(
            f"{model.name!r} can't be attacked: its {kind} doesn't run as an attack runs it.",
            why=reason,
            fix="Choose another --model, --task or --attack; textleak/models/README.md lists architectures that work.",
        ) from error


def _failed_in(error: BaseException) -> str | None:
    """The class of the network's module whose own code failed; None where it was ours."""
    trace, kind, ours = error.__traceback__, None, False
    while trace is not None:
        frame, trace = trace.tb_frame, trace.tb_next
        ours = str(frame.f_globals.get("__name__")).startswith("textleak")
        owner = type(frame.f_locals.get("self"))
        if issubclass(owner, nn.Module) and not owner.__module__.startswith(("torch.", "textleak.")):
            kind = owner.__name__
    return None if ours else kind
