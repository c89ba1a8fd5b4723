"""What a server sees of a training that isn't textleak's: gradients, or weights before and after, as they are found."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from textleak.clients.base import Client, Composed, composed
from textleak.clients.lora import Lora
from textleak.errors import InputError, unknown_name
from textleak.models.base import Tensors
from textleak.models.copies import copy_of
from textleak.models.text import TextModel
from textleak.shared.formats import Adapter, Names, not_finite
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import UNTOLD, SideInformation

# Weights are the model's where they are no further apart than its type rounds (in units of its last place; our choice).
_PLACES = 2.0
_SOME = "some"  # where none of the words of --share says which parameters are there


def names_of(model: TextModel) -> Names:
    """The names that tensors of a model may come under."""
    return Names.of(model.network)


def from_gradients(
    model: TextModel,
    gradients: Mapping[str, Tensor | None],
    *,
    client: Client | None = None,
    known: SideInformation = UNTOLD,
    where: str = "the gradients",
) -> SharedGradient:
    """A gradient that some training has computed, as a server sees it.

    Args:
        model: the public model at whose weights it was taken.
        gradients: by parameter name, as the network or what wraps it calls them; None for no gradient.
        client: how it was computed; None for one backward pass of the mean loss in eval mode.
        known: what the server knows besides.
        where: they are from, for errors.

    Raises:
        InputError: names or shapes that are not the model's, values that aren't finite, a client that sends weights.
    """
    client = client or composed()
    if sends_weights(client):
        raise InputError(
            f"A client that takes steps ({_words(client)}) sends no gradients.",
            why="What it sends is what the steps made of its weights.",
            fix="Give the weights before and after (from_update, --before and --after), or another --client.",
        )
    there = {name: tensor for name, tensor in gradients.items() if tensor is not None}
    return _shared(model, there, client, known, where)


def from_update(
    model: TextModel,
    before: Mapping[str, Tensor] | None,
    after: Mapping[str, Tensor],
    *,
    client: Client,
    known: SideInformation = UNTOLD,
    where: str = "the update",
) -> SharedGradient:
    """What some training has made of the model's weights, as a server sees it.

    Args:
        model: the public model, with the weights before.
        before: the weights before, to make sure that they are the model's; None to take the model's.
        after: the weights after, under any names that the network or what wraps it gives them.
        client: the procedure, of a kind that sends weights or their difference (fedavg).
        known: what the server knows besides.
        where: they are from, for errors.

    Raises:
        InputError: names or shapes that are not the model's, other weights before than the model's, values that
            aren't finite, a client that sends gradients.
    """
    moved = difference(model, before, after, where=where)
    return from_difference(model, moved, client=client, known=known, where=where)


def from_difference(
    model: TextModel,
    moved: Mapping[str, Tensor],
    *,
    client: Client,
    known: SideInformation = UNTOLD,
    where: str = "the update",
) -> SharedGradient:
    """As `from_update`, of the weights' difference, after − before.

    Raises:
        InputError: as there.
    """
    if not sends_weights(client):
        raise InputError(
            f"A client that computes a gradient ({_words(client)}) changes no weights.",
            why="What its steps were has to be known to tell a gradient from what they left.",
            fix="Name the procedure: fedavg:optimizer=sgd,lr=0.01,steps=1 or the like (`textleak clients fedavg`).",
        )
    prepared = client.prepare(model)
    if _shares_weights(client):
        own = names_of(prepared).fit(moved, where).tensors
        moved = {name: prepared.parameters[name].detach().to(t) + t for name, t in own.items()}
    return _shared(model, moved, client, known, where)


def difference(
    model: TextModel, before: Mapping[str, Tensor] | None, after: Mapping[str, Tensor], *, where: str
) -> Tensors:
    """By how much each parameter moved, by the model's own names, in float32 at least.

    Args:
        model: with the weights before.
        before: these weights as they are found, None to take the model's.
        after: the weights after.
        where: the latter are from, for errors.

    Raises:
        InputError: as for `from_update`.
    """
    names = names_of(model)
    if before is not None:
        _check_before(model, names.fit(before, "the weights before").tensors)
    fitted = names.fit(after, where)
    same = before or {}
    for name, tensor in fitted.unknown.items():
        if name not in same or not torch.equal(same[name], tensor):
            raise _unknown(model, name, where)
    moved: Tensors = {}
    for name, tensor in fitted.tensors.items():
        _check_finite(name, tensor, where)
        start = model.parameters[name].detach()
        kind = torch.promote_types(torch.promote_types(start.dtype, tensor.dtype), torch.float32)
        moved[name] = tensor.to(start.device, kind) - start.to(kind)
    return moved


def with_weights(model: TextModel, tensors: Mapping[str, Tensor], *, where: str) -> TextModel:
    """The model with other values for some of its parameters.

    Args:
        model: the model; it stays as it is.
        tensors: values by whatever names wrappers give them.
        where: they are from, in words.

    Raises:
        InputError: names or shapes that are not the model's.
    """
    fitted = names_of(model).fit(tensors, where)
    network = copy_of(model.network)
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, tensor in fitted.tensors.items():
            _check_finite(name, tensor, where)
            parameters[name].copy_(tensor)
    absent = sorted(set(parameters) - set(fitted.tensors))
    source = (
        f"{where}; {len(absent)} of {len(parameters)} parameters from {model.source}" if absent else where
    )
    return dataclasses.replace(model, network=network, source=source, weights="pretrained")


def with_adapter(
    model: TextModel, adapter: Adapter, tensors: Mapping[str, Tensor], *, where: Path
) -> TextModel:
    """The base model with an adapter's low-rank matrices in it, and what it trains in full: only these are trained.

    Args:
        model: the base model; it stays as it is.
        adapter: its configuration.
        tensors: its weights, as PEFT saves them.
        where: they are from.

    Raises:
        InputError: PEFT isn't installed, the adapter is not for such a model, or weights of it are missing.
    """
    lora = Lora(
        rank=adapter.rank,
        alpha=adapter.alpha,
        targets="/".join(adapter.targets),
        dropout=adapter.dropout,
        bias=adapter.bias,
        modules_to_save="/".join(adapter.saved) or None,
        rslora=adapter.rslora,
    )
    prepared = with_weights(lora.prepare(model), tensors, where=f"the adapter in {where}")
    found = names_of(prepared).fit(tensors, str(where)).tensors
    missing = [name for name in prepared.trainable if ".lora_" in name and name not in found]
    if missing:
        raise InputError(
            f"The adapter in {where} lacks {missing[0]}.",
            why=f"Of {len(missing)} of its matrices there are no weights.",
            fix="Write the folder with PEFT's model.save_pretrained(FOLDER), and name the base model it was put into.",
        )
    trained = tuple(name for name in prepared.trainable if name in found)
    return dataclasses.replace(prepared, trained=trained)


def as_named(model: TextModel, tensors: Mapping[str, Tensor], *, where: str) -> Tensors:
    """Tensors by the model's own names, in the network's order, whatever names and order they come in.

    Args:
        model: the public model, as the client trains it.
        tensors: gradients or differences.
        where: they are from, for errors.

    Raises:
        InputError: one that isn't zero is of no parameter, or of another shape.
    """
    fitted = names_of(model).fit(tensors, where)
    for name, tensor in fitted.unknown.items():
        if tensor.any():
            raise _unknown(model, name, where)
    found = {name: fitted.tensors[name].detach() for name in model.parameters if name in fitted.tensors}
    return {name: (t.to_dense() if t.is_sparse else t).to(model.device) for name, t in found.items()}


def moved_by(client: Client, sent: Mapping[str, Tensor], prepared: TextModel) -> Tensors:
    """By how much weights moved, of what a client sends that sends them or their difference; a gradient as it is."""
    if not _shares_weights(client):
        return dict(sent)
    return {name: tensor - prepared.parameters[name].detach().to(tensor) for name, tensor in sent.items()}


def sends_weights(client: Client) -> bool:
    """Whether what a client sends are weights, or their difference, not a gradient."""
    return any(type(part).as_gradient is not Client.as_gradient for part in _parts(client))


def without_adapters(client: Client) -> Client:
    """The client without the kind that inserts adapters, for a model that has them in it."""
    return composed([part for part in _parts(client) if not isinstance(part, Lora)])


def _shares_weights(client: Client) -> bool:
    return any(getattr(part, "share", None) == "weights" for part in _parts(client))


def _parts(client: Client) -> tuple[Client, ...]:
    return client.parts if isinstance(client, Composed) else (client,)


def _words(client: Client) -> str:
    return " + ".join(name for name, _ in client.kinds) or "one-step"


def _shared(
    model: TextModel, tensors: Mapping[str, Tensor], client: Client, known: SideInformation, where: str
) -> SharedGradient:
    """Tensors under the model's own names, with what is public about them."""
    prepared = client.prepare(model)
    gradients = as_named(prepared, tensors, where=where)
    shared = SharedGradient(
        gradients=gradients,
        model=model.public(),
        share=_share_of(prepared, set(gradients)),
        known=known,
        client=client.public(prepared),
    )
    shared.check_finite(where)
    shared.validate(prepared.parameters)
    return shared


def _share_of(model: TextModel, names: set[str]) -> str:
    """The word of --share that names these parameters."""
    own = set(model.trainable)
    choices = {
        "all": own,
        "no-embeddings": own - model.embedding_names,
        "attention": own & model.attention_names,
    }
    return next((word for word, chosen in choices.items() if chosen == names), _SOME)


def _unknown(model: TextModel, name: str, where: str) -> InputError:
    return unknown_name(
        f"parameter in {where} for the model {model.name!r}",
        name,
        model.parameters,
        fix="Load the model that was trained, with its head (--model, --task).",
    )


def _check_finite(name: str, tensor: Tensor, where: str) -> None:
    if not torch.isfinite(tensor).all():
        raise not_finite(name, where)


def _check_before(model: TextModel, before: Mapping[str, Tensor]) -> None:
    """Make sure that weights are the model's, as far as types round them.

    Raises:
        InputError: they aren't.
    """
    for name, tensor in before.items():
        own = model.parameters[name].detach().double()
        rounding = max(torch.finfo(tensor.dtype).eps, torch.finfo(model.dtype).eps) * _PLACES
        apart = (tensor.to(own) - own).abs()
        if not bool((apart <= rounding * own.abs() + torch.finfo(torch.float32).tiny).all()):
            raise InputError(
                f"The weights before are not those of {model.name}: {name} differs by up to {float(apart.max()):.1e}.",
                why="The gradients were taken at the weights before; at others the text can't be told.",
                fix="Load the model with those weights, or wrap the network before its first step.",
            )
