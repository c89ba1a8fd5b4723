"""The victim: a private batch and the public model in, a shared gradient and a secret out.

Nothing here is known to an attack. The secret goes to scoring only.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from textleak import seeds
from textleak.defenses import Defense, Step, check_order
from textleak.errors import InputError
from textleak.models import Batch, Targets, TextModel
from textleak.models.gradient import formed_gradient, formed_image_gradient
from textleak.models.text import check_labels
from textleak.models.vision import ImageModel
from textleak.shared.gradient import PublicDefense, SharedGradient, choose_shared
from textleak.shared.known import SideInformation, hides_defense
from textleak.words import count_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Secret:
    """What the gradient was computed from; for scoring only.

    Attributes:
        sentences: as they were given.
        ids: their tokens, special tokens counted, padding left out.
        labels: one class a sentence; None for tasks whose labels are the tokens.
        defenses: what was done to the gradient, whether the server was told or not.
    """

    sentences: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...] | None = None
    defenses: tuple[PublicDefense, ...] = ()

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.touch(mode=0o600)  # it holds the private text
        path.write_text(json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> Secret:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, or not a truth file.
        """
        try:
            return TypeAdapter(cls).validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise InputError(
                f"{path} can't be read as a truth file.",
                why=str(error).splitlines()[0],
                fix="`textleak share --out FILE` writes FILE.truth.json beside the gradient.",
            ) from None


def share(
    model: TextModel,
    sentences: Sequence[str],
    labels: Sequence[int] | None = None,
    *,
    share: str = "all",
    defenses: Sequence[Defense] = (),
    know: str | None = None,
    seed: int = 0,
) -> tuple[SharedGradient, Secret]:
    """The gradient that a client would share for one training step on a batch, and what it was made from.

    Args:
        model: the public model.
        sentences: the private batch, B sentences.
        labels: a class each; drawn from the seed where None.
        share: "all", "no-embeddings", "attention" or a regular expression on parameter names.
        defenses: applied in order.
        know: what the server is told: "lengths,labels,batch-size" or "nothing"; None for the batch size, and
            the lengths too when B = 1. With "no-defense" it isn't told of the defenses.
        seed: splits into the client's and the defense's streams.

    Raises:
        InputError: no sentence, an empty or over-long one, labels that don't fit, an expression that matches
            nothing.
    """
    if not sentences:
        raise InputError("There is no sentence to share a gradient of.", fix="Give --sentence or --file.")
    known_kinds = SideInformation.parse(know, batch_size=len(sentences))
    names = choose_shared(
        share, list(model.parameters), embeddings=model.embedding_names, attention=model.attention_names
    )
    client_stream = seeds.generator(seed, "client")
    original = model.encode(sentences)
    classes = _labels(model, labels, len(sentences), client_stream)
    batch, targets = model.targets(original, classes, client_stream)
    step = Step(
        generator=seeds.generator(seed, "defense"),
        batch_size=len(sentences),
        embeddings=model.embedding_names,
    )

    def sample(b: int) -> dict[str, Tensor]:
        weights = targets.weights[b : b + 1]
        return formed_gradient(
            model,
            Batch(ids_BT=batch.ids_BT[b : b + 1], mask_BT=batch.mask_BT[b : b + 1]),
            Targets(labels=targets.labels[b : b + 1], weights=weights / weights.sum()),
            names,
        )

    gradient = _defended(lambda: formed_gradient(model, batch, targets, names), sample, defenses, step)
    lengths = tuple(int(n) for n in original.mask_BT.sum(1))
    public = tuple(defense.public(step) for defense in defenses)
    shared = SharedGradient(
        gradients=gradient,
        model=model.public(),
        share=share,
        known=SideInformation(
            batch_size=len(sentences) if "batch-size" in known_kinds else None,
            lengths=lengths if "lengths" in known_kinds else None,
            labels=classes if "labels" in known_kinds else None,
        ),
        defenses=() if hides_defense(know) else public,
    )
    shared.check_finite("this client")
    secret = Secret(
        sentences=tuple(sentences),
        ids=tuple(
            tuple(row[:length].tolist()) for row, length in zip(original.ids_BT.cpu(), lengths, strict=True)
        ),
        labels=classes,
        defenses=public,
    )
    return shared, secret


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageSecret:
    """The pictures that a gradient was computed from; for scoring only.

    Attributes:
        pictures_BCHW: values 0 to 1, on the CPU.
        labels: the class of each.
        defenses: what was done to the gradient, whether the server was told or not.
    """

    pictures_BCHW: Tensor
    labels: tuple[int, ...]
    defenses: tuple[PublicDefense, ...] = ()


def share_images(
    model: ImageModel,
    pictures_BCHW: Tensor,
    labels: Sequence[int] | None = None,
    *,
    share: str = "all",
    defenses: Sequence[Defense] = (),
    know: str | None = None,
    seed: int = 0,
) -> tuple[SharedGradient, ImageSecret]:
    """As `share`, for a batch of pictures.

    Args:
        model: the public image classifier.
        pictures_BCHW: values 0 to 1, of the size that the model reads.
        labels: a class each; drawn from the seed where None.
        share: "all", "attention" or a regular expression on parameter names.
        defenses: applied in order.
        know: what the server is told: "labels,batch-size,batch-norm" or "nothing"; None for the batch size.
            "batch-norm" is the statistics of the batch norms, which clients send along where these are averaged.
            With "no-defense" it isn't told of the defenses.
        seed: splits into the client's and the defense's streams.

    Raises:
        InputError: no picture, one of another size, labels that don't fit, an expression that matches nothing, or
            statistics of batch norms that the model doesn't take from the batch.
    """
    count = len(pictures_BCHW)
    if not count or tuple(pictures_BCHW.shape[1:]) != model.shape:
        raise InputError(
            f"Pictures of shape {tuple(pictures_BCHW.shape)} can't be shared.",
            why=f"{model.name} reads a batch of channels, height and width {model.shape}.",
        )
    known_kinds = SideInformation.parse(know, batch_size=count, kinds=SideInformation.PICTURE_KINDS)
    names = choose_shared(
        share, list(model.parameters), embeddings=model.embedding_names, attention=model.attention_names
    )
    if not labels:
        stream = seeds.generator(seed, "client")
        labels = torch.randint(model.num_labels, (count,), generator=stream).tolist()
    if len(labels) != count:
        raise InputError(
            f"{count_of(len(labels), 'label')} for {count_of(count, 'picture')}.",
            fix="Give one --label a picture.",
        )
    classes = tuple(labels)
    targets = model.targets(classes)
    pixels_BCHW = model.normalized(pictures_BCHW.to(device=model.device, dtype=model.dtype))
    step = Step(
        generator=seeds.generator(seed, "defense"), batch_size=count, embeddings=model.embedding_names
    )
    gradient = _defended(
        lambda: formed_image_gradient(model, pixels_BCHW, targets, names),
        lambda b: formed_image_gradient(
            model, pixels_BCHW[b : b + 1], model.targets(classes[b : b + 1]), names
        ),
        defenses,
        step,
    )
    public = tuple(defense.public(step) for defense in defenses)
    shared = SharedGradient(
        gradients=gradient,
        model=model.public(),
        share=share,
        known=SideInformation(
            batch_size=count if "batch-size" in known_kinds else None,
            labels=classes if "labels" in known_kinds else None,
            batch_norm=_statistics(model, pixels_BCHW) if "batch-norm" in known_kinds else None,
        ),
        defenses=() if hides_defense(know) else public,
    )
    shared.check_finite("this client")
    return shared, ImageSecret(pictures_BCHW=pictures_BCHW.detach().cpu(), labels=classes, defenses=public)


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
            fix="Leave batch-norm out of --know, or use a model in train mode: resnet20:batch_norm=train.",
        )
    return {
        name: (tuple(mean[0].tolist()), tuple(variance[0].tolist()))
        for name, (mean, variance) in found.items()
    }


def _labels(
    model: TextModel, labels: Sequence[int] | None, count: int, generator: torch.Generator
) -> tuple[int, ...] | None:
    if model.num_labels is None:
        if labels:
            raise InputError(
                f"A label was given, but the task is {model.task}.",
                why="Its labels are the tokens themselves.",
                fix="Leave --label out, or use --task classification.",
            )
        return None
    if not labels:
        return tuple(torch.randint(model.num_labels, (count,), generator=generator).tolist())
    if len(labels) != count:
        raise InputError(
            f"{count_of(len(labels), 'label')} for {count_of(count, 'sentence')}.",
            fix="Give one label a sentence.",
        )
    check_labels(labels, model.num_labels, model.name)
    return tuple(labels)


def _defended(
    whole: Callable[[], dict[str, Tensor]],
    sample: Callable[[int], dict[str, Tensor]],
    defenses: Sequence[Defense],
    step: Step,
) -> dict[str, Tensor]:
    """The batch's gradient after every hook of the defenses.

    Args:
        whole: gives the batch's gradient.
        sample: gives that of one of its samples, for defenses that work on these.
        defenses: in order.
        step: of training.

    Raises:
        InputError: one that works on samples comes after one that works on the batch.
    """
    check_order(defenses)
    if any(defense.works_per_sample() for defense in defenses):
        gradient: dict[str, Tensor] = {}
        for b in range(step.batch_size):
            own = sample(b)
            for defense in defenses:
                own = defense.on_sample(own, step)
            for name, value in own.items():
                gradient[name] = gradient.get(name, torch.zeros_like(value)) + value / step.batch_size
    else:
        gradient = whole()
    for defense in defenses:
        gradient = defense.on_shared(gradient, step)
    return gradient
