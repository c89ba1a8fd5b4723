"""The victim's step: a private batch and the public model in, a shared gradient and a secret out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from textleak import seeds
from textleak.clients.base import Client, OnSample, composed, gradient_of, untold
from textleak.defenses import Defense, Step, check_order
from textleak.errors import InputError
from textleak.events import Label
from textleak.models.base import Examples, Tensors
from textleak.models.batches import TextExamples
from textleak.models.running import explained
from textleak.models.targets import check_labels, check_own_labels
from textleak.models.text import TextModel
from textleak.models.vision import ImageModel, PictureExamples
from textleak.private.secrets import ImageSecret, Secret
from textleak.shared.choice import choose_shared
from textleak.shared.gradient import SharedGradient
from textleak.shared.known import SideInformation, hides_client, hides_defense
from textleak.shared.traits import Trait
from textleak.words import count_of


@overload
def share(
    model: TextModel,
    batch: Sequence[str] | str,
    labels: Sequence[Label] | None = None,
    *,
    share: str = "all",
    client: Client | None = None,
    defenses: Sequence[Defense] = (),
    know: str | None = None,
    seed: int = 0,
) -> tuple[SharedGradient, Secret]: ...


@overload
def share(
    model: ImageModel,
    batch: Tensor,
    labels: Sequence[int] | None = None,
    *,
    share: str = "all",
    client: Client | None = None,
    defenses: Sequence[Defense] = (),
    know: str | None = None,
    seed: int = 0,
) -> tuple[SharedGradient, ImageSecret]: ...


def share(
    model: Any,
    batch: Any,
    labels: Sequence[Any] | None = None,
    *,
    share: str = "all",
    client: Client | None = None,
    defenses: Sequence[Defense] = (),
    know: str | None = None,
    seed: int = 0,
) -> tuple[SharedGradient, Any]:
    """What a client would share for one round on a batch, and what it was made from.

    Args:
        model: the public model, of text or of pictures.
        batch: the private batch: B sentences (a bare text is one), or pictures (B, C, H, W) of values 0 to 1.
        labels: a class each, or what the head's own loss takes: a number, a class for each token; drawn from the seed
            where None.
        share: "all", "no-embeddings", "attention" or a regular expression on parameter names.
        client: how the client trains; None for one backward pass of the mean loss.
        defenses: applied in order.
        know: what the server is told: "lengths,labels,batch-size" ("batch-norm" in place of lengths for pictures) or
            "nothing"; None for the batch size, and the lengths too when B = 1. With "no-defense" it isn't told of the
            defenses, with "no-client" not how the client trains, but for what is in the network that it gave out.
        seed: splits into the client's and the defense's streams.

    Raises:
        InputError: an empty batch, sentences or pictures that the model can't read, labels that don't fit, an
            expression that matches nothing, or a client that can't train on such a batch.
    """
    client = client or composed()
    check_order(defenses)
    prepared = client.prepare(model)
    draws = seeds.generator(seed, "client")
    read = _read_text if isinstance(model, TextModel) else _read_pictures
    private = read(prepared, batch, labels, know, draws)
    names = choose_shared(
        share,
        list(prepared.trainable),
        embeddings=prepared.embedding_names,
        attention=prepared.attention_names,
    )
    step = Step(
        generator=seeds.generator(seed, "defense"),
        batch_size=len(private.examples),
        embeddings=prepared.embedding_names,
    )
    with explained(model):
        shown = _sent(client, prepared, private, names, defenses, step, draws)
    public = tuple(defense.public(step) for defense in defenses)
    trained = client.public(prepared)
    shared = SharedGradient(
        gradients=shown,
        model=model.public(),
        share=share,
        known=private.known,
        defenses=() if hides_defense(know) else public,
        client=untold(trained) if hides_client(know) else trained,
    )
    shared.check_finite("this client")
    secret = dataclasses.replace(private.secret, defenses=public, client=trained)
    return shared, secret


def _sent(
    client: Client,
    prepared: TextModel | ImageModel,
    private: _Private,
    names: Sequence[str],
    defenses: Sequence[Defense],
    step: Step,
    draws: torch.Generator,
) -> dict[str, Tensor]:
    """What leaves the client: its update of the parameters that are shared, defended."""
    gradient = gradient_of(
        client.trained(prepared, names),
        _on_sample(defenses, step),
        None if Trait.REPEATABLE in client.traits(prepared) else draws,
        loss_scale=client.loss_scale,
    )
    sent = client.update(prepared, client.running(private.examples), gradient, draws)
    shown = {name: sent[name] for name in names if name in sent}
    for defense in defenses:
        shown = defense.on_shared(shown, step)
    return shown


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Private:
    """A private batch.

    Attributes:
        examples: as the network reads it.
        known: what the server is told of it.
        secret: what it was, for scoring.
    """

    examples: Examples
    known: SideInformation
    secret: Any


def _read_text(
    model: TextModel,
    sentences: Sequence[str] | str,
    labels: Sequence[Label] | None,
    know: str | None,
    draws: torch.Generator,
) -> _Private:
    """Sentences, tokenized, with labels given or drawn."""
    sentences = (sentences,) if isinstance(sentences, str) else sentences
    if not sentences:
        raise InputError("There is no sentence to share a gradient of.", fix="Give --sentence or --file.")
    told = SideInformation.parse(know, batch_size=len(sentences))
    original = model.encode(sentences)
    classes = _classes(model, labels, original.lengths, draws)
    batch, targets = model.targets(original, classes, draws)
    return _Private(
        examples=TextExamples(batch=batch, targets=targets),
        known=SideInformation(
            batch_size=len(sentences) if "batch-size" in told else None,
            lengths=original.lengths if "lengths" in told else None,
            labels=classes if "labels" in told else None,
        ),
        secret=Secret(sentences=tuple(sentences), ids=original.sentences, labels=classes),
    )


def _read_pictures(
    model: ImageModel,
    pictures_BCHW: Tensor,
    labels: Sequence[int] | None,
    know: str | None,
    draws: torch.Generator,
) -> _Private:
    """Pictures, normalized, with labels given or drawn."""
    count = len(pictures_BCHW)
    if not count or tuple(pictures_BCHW.shape[1:]) != model.shape:
        raise InputError(
            f"Pictures of shape {tuple(pictures_BCHW.shape)} can't be shared.",
            why=f"{model.name} reads a batch of channels, height and width {model.shape}.",
        )
    told = SideInformation.parse(know, batch_size=count, kinds=SideInformation.PICTURE_KINDS)
    if not labels:
        labels = torch.randint(model.num_labels, (count,), generator=draws).tolist()
    if len(labels) != count:
        raise InputError(
            f"{count_of(len(labels), 'label')} for {count_of(count, 'picture')}.",
            fix="Give one --label a picture.",
        )
    classes = tuple(labels)
    pixels_BCHW = model.normalized(pictures_BCHW.to(device=model.device, dtype=model.dtype))
    return _Private(
        examples=PictureExamples(pixels_BCHW=pixels_BCHW, targets=model.targets(classes)),
        known=SideInformation(
            batch_size=count if "batch-size" in told else None,
            labels=classes if "labels" in told else None,
            batch_norm=_statistics(model, pixels_BCHW) if "batch-norm" in told else None,
        ),
        secret=ImageSecret(pictures_BCHW=pictures_BCHW.detach().cpu(), labels=classes),
    )


def _classes(
    model: TextModel, labels: Sequence[Label] | None, lengths: Sequence[int], generator: torch.Generator
) -> tuple[Label, ...] | None:
    """The labels given, or drawn ones; None where they are the tokens."""
    loss, classes, count = model.own_loss, model.num_labels, len(lengths)
    if loss is None and classes is None:
        if labels:
            raise InputError(
                f"A label was given, but the task is {model.task}.",
                why="Its labels are the tokens themselves.",
                fix="Leave --label out, or use --task classification.",
            )
        return None
    if not labels:
        if classes is None:
            assert loss is not None
            return tuple(loss.drawn(length, model.outputs, generator) for length in lengths)
        return tuple(torch.randint(classes, (count,), generator=generator).tolist())
    if len(labels) != count:
        raise InputError(
            f"{count_of(len(labels), 'label')} for {count_of(count, 'sentence')}.",
            fix="Give one label a sentence.",
        )
    if classes is None:
        check_own_labels(model, labels, lengths)
    else:
        check_labels(labels, classes, model.name)
    return tuple(labels)


def _statistics(
    model: ImageModel, pixels_BCHW: Tensor
) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Mean and variance of each channel that the model's batch norms read of the batch."""
    with torch.no_grad():
        found = model.batch_statistics(pixels_BCHW[None])
    if not found:
        raise InputError(
            f"{model.name} has no batch norm that uses the batch's own statistics.",
            why="There is nothing of the kind that a client could send along.",
            fix="Leave batch-norm out of --know, or add --client batch-norm-train to a model with batch norms.",
        )
    return {
        name: (tuple(mean[0].tolist()), tuple(variance[0].tolist()))
        for name, (mean, variance) in found.items()
    }


def _on_sample(defenses: Sequence[Defense], step: Step) -> OnSample | None:
    """What the defenses do to one sample's gradient, in order; None where none of them does anything."""
    if not any(defense.works_per_sample() for defense in defenses):
        return None

    def defended(gradient: Tensors) -> Tensors:
        for defense in defenses:
            gradient = defense.on_sample(gradient, step)
        return gradient

    return defended
