"""One run on pictures from its settings to its result: load, share or read a gradient, attack, score, certify.

As `textleak.jobs.text` for text, and driven in the same way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textleak.data.pictures import Picture, chosen_pictures
from textleak.errors import InputError
from textleak.events import Recovery, Truth
from textleak.jobs.base import Job
from textleak.jobs.files import asked_by_file, read_gradient
from textleak.jobs.parts import asked_for, build_client, build_defenses
from textleak.jobs.prepared import Batch, prepared
from textleak.settings import ImageConfig, PictureConfig

if TYPE_CHECKING:
    from torch import Tensor

    from textleak.models.base import Modality
    from textleak.models.vision import ImageModel
    from textleak.private.secrets import ImageSecret
    from textleak.proof.certificate import Certificate
    from textleak.shared.gradient import SharedGradient

# Of a head that a file may have built: numbers of a picture times classes (our choice: 1 GiB in float32).
_MOST_WEIGHTS = 1 << 28
_CLASSES = 100  # where it says none, as models are loaded here


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageJob(Job):
    """A run on pictures.

    Attributes:
        pictures: where they are from; none of a gradient from a file.
    """

    config: ImageConfig
    model: ImageModel
    secret: ImageSecret | None
    pictures: tuple[Picture, ...] = ()

    @staticmethod
    def modality() -> Modality:
        """Pictures."""
        from textleak.models.base import Modality

        return Modality.PICTURES

    def facts(self) -> dict[str, Any]:
        """The pictures, and how many numbers they are beside what the gradient determines."""
        from textleak.attacks.dummies.pictures import numbers_determined

        count = self.shared.known.size if self.secret is None else len(self.secret.labels)
        names = self.shared.gradients
        return {
            "batch_size": count,
            "picture_shape": list(self.model.shape),
            "numbers": count and count * self.model.numbers,
            "numbers_determined": count and numbers_determined(self.view.image_model, names, count),
            "pictures": [picture.name for picture in self.pictures],
            "conversions": {picture.name: list(picture.notes) for picture in self.pictures if picture.notes},
            "labels": None if self.secret is None else list(self.secret.labels),
        }

    def limits(self) -> tuple[str, ...]:
        """A sentence where the batch is more numbers than the gradient can determine."""
        numbers, determined = self.settings["numbers"], self.settings["numbers_determined"]
        if numbers is None or numbers <= determined:
            return ()
        return (
            f"The batch is {numbers:,} numbers, and this model's shared gradient can determine at most "
            f"{determined:,}: the pictures can't come back exactly.",
        )

    def warnings(self) -> tuple[str, ...]:
        """Conversions of the pictures, and the limits."""
        said = [f"{picture.name}: {note}." for picture in self.pictures for note in picture.notes]
        return (*said, *self.limits())

    def truth(self) -> Truth | None:
        """What viewers compare with."""
        if self.secret is None:
            return None
        return Truth(
            image=tuple(self.secret.pictures_BCHW.permute(0, 2, 3, 1).double().round(decimals=3).tolist()),
            labels=self.secret.labels,
        )

    def truth_fits(self) -> bool:
        """Whether shapes, labels and their numbers are those of such a batch."""
        secret, model = self.secret, self.model
        assert secret is not None
        count = len(secret.labels)
        return (
            count > 0
            and tuple(secret.pictures_BCHW.shape) == (count, *model.shape)
            and all(0 <= label < model.num_labels for label in secret.labels)
            and self.shared.known.size in (None, count)
        )

    def recovered(self, recovery: Recovery) -> Tensor:
        """The answer's pictures, (B, channels, height, width)."""
        import torch

        if not recovery.image:
            return torch.zeros(0, *self.model.shape)
        return torch.tensor(recovery.image, dtype=torch.float64).permute(0, 3, 1, 2)

    def certificate(self, recovery: Recovery) -> Certificate:
        """What the answer's own gradient says."""
        from textleak.proof.certificate import certify
        from textleak.proof.pictures import Pictures

        return certify(self.view, Pictures(self.recovered(recovery), recovery.labels))

    def scores(self, recovery: Recovery) -> dict[str, Any]:
        """Figures, each picture's and their means; null where the truth isn't known."""
        from textleak.scoring.pixels import score_pictures, unscored

        if self.secret is None:
            return unscored(recovery.labels, len(recovery.image)).to_json()
        return score_pictures(
            self.secret.pictures_BCHW, self.secret.labels, self.recovered(recovery), recovery.labels
        ).to_json()


def prepare(config: ImageConfig) -> ImageJob:
    """`textleak.jobs.prepared.prepared`, for pictures.

    Raises:
        InputError: whatever the caller can mend.
    """
    return prepared(ImageJob, config, share=lambda: _share(config), read=lambda: _read(config))


def _share(config: ImageConfig) -> Batch:
    model = load(config)
    pictures = read_pictures(config, model)
    shared, secret = share_pictures(config, model, pictures)
    return Batch(model=model, shared=shared, secret=secret, more={"pictures": pictures})


def load(config: PictureConfig) -> ImageModel:
    """The public model that the settings name."""
    from textleak.models.loading.images import ImageRequest, load_images

    return load_images(
        ImageRequest(
            **asked_for(config),
            num_labels=config.num_labels,
            size=config.size,
            channels=config.channels,
        )
    )


def read_pictures(config: PictureConfig, model: ImageModel) -> tuple[Picture, ...]:
    """The private batch, as the model reads it."""
    return chosen_pictures(config.images, config.indices, config.dataset, model.shape)


def share_pictures(
    config: PictureConfig, model: ImageModel, pictures: Sequence[Picture]
) -> tuple[SharedGradient, ImageSecret]:
    """What the client that the settings name shares of some pictures, and the truth.

    Their classes are those that were given, else their own where the model has as many; else they are drawn.
    """
    import torch

    from textleak.private.share import share

    own = tuple(picture.label for picture in pictures if picture.label is not None)
    given = tuple(label for label in config.labels if isinstance(label, int))
    labels = given or (own if len(own) == len(pictures) and max(own) < model.num_labels else None)
    return share(
        model,
        torch.stack([picture.values_CHW for picture in pictures]),
        labels,
        share=config.share,
        client=build_client(config),
        defenses=build_defenses(config),
        know=config.know,
        seed=config.seed,
    )


def _read(config: ImageConfig) -> Batch:
    """A gradient from a file, its model, and the truth where a file of it was given."""
    from textleak.models.base import Modality
    from textleak.models.loading.images import ALIASES, ImageRequest, load_images
    from textleak.private.secrets import ImageSecret

    shared = read_gradient(config, Modality.PICTURES)
    secret = None if config.truth is None else ImageSecret.load(config.truth)
    public, given = shared.model, config.model_fields_set
    assert public.picture is not None
    channels, size, _ = public.picture
    classes = public.num_labels or _CLASSES
    if "model" not in given and channels * size**2 * classes > _MOST_WEIGHTS:
        raise InputError(
            f"{config.gradients} names a model of {classes} classes for pictures of {size} x {size}.",
            why="That would fill the memory, and no alias is trained at such a size.",
            fix="Name the model yourself, if you trust the file: --model NAME.",
        )
    model = load_images(
        ImageRequest(
            **asked_by_file(config, public, ALIASES),
            num_labels=config.num_labels if "num_labels" in given else public.num_labels,
            size=config.size if "size" in given else size,
            channels=config.channels if "channels" in given else channels,
        )
    )
    return Batch(model=model, shared=shared, secret=secret)
