"""One run on pictures from its settings to its result: load, share, attack, score, certify.

As `textleak.jobs.text` for text, and driven in the same way.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import TYPE_CHECKING, Any

from textleak.data.pictures import Picture, chosen_pictures
from textleak.events import Recovery, Truth
from textleak.jobs.text import (
    build_attack,
    build_client,
    build_defenses,
    outcome_facts,
    run_facts,
    set_threads,
    told_to,
)
from textleak.settings import ImageConfig

if TYPE_CHECKING:
    from torch import Tensor

    from textleak.attacks import Attack
    from textleak.attacks.base import Steps
    from textleak.clients.view import View
    from textleak.models.vision import ImageModel
    from textleak.private.secrets import ImageSecret
    from textleak.shared.gradient import SharedGradient
    from textleak.shared.public import PublicClient, PublicDefense


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageJob:
    """A run that can go: everything is loaded and checked.

    Attributes:
        config: what was asked for.
        attack: the attack with its options.
        shared: what it sees.
        model: the public model.
        secret: the pictures that were shared, for scoring.
        pictures: where they are from.
        threads: CPU threads in use.
        seconds_to_load: from the settings to here.
    """

    config: ImageConfig
    attack: Attack
    shared: SharedGradient
    model: ImageModel
    secret: ImageSecret
    pictures: tuple[Picture, ...]
    threads: int
    seconds_to_load: float

    @property
    def name(self) -> str:
        """Model and attack in two words, for a folder's name."""
        return f"{self.config.model.rstrip('/').rpartition('/')[2].partition(':')[0]}-{self.attack.name}"

    @property
    def defenses(self) -> tuple[PublicDefense, ...]:
        """What the client did before sharing, whether the attack is told or not."""
        return self.secret.defenses

    @property
    def client(self) -> PublicClient:
        """How the client trained, likewise."""
        return self.secret.client

    def settings(self) -> dict[str, Any]:
        """What the run works on, as plain values: the head of its result, and what viewers show."""
        from textleak.attacks.dummies.pictures import numbers_determined

        count = len(self.pictures)
        known = self.shared.known
        told = {"batch-size": known.batch_size, "labels": known.labels, "batch-norm": known.batch_norm}
        return {
            **run_facts(self),
            "know": told_to(self, [kind for kind, value in told.items() if value is not None]),
            "batch_size": count,
            "picture_shape": list(self.model.shape),
            "numbers": count * self.model.numbers,
            "numbers_determined": numbers_determined(self.view.model, self.shared.gradients, count),
            "pictures": [picture.name for picture in self.pictures],
            "conversions": {picture.name: list(picture.notes) for picture in self.pictures if picture.notes},
            "labels": list(self.secret.labels),
        }

    def warnings(self) -> tuple[str, ...]:
        """What a person should know before the run: conversions, and a batch beyond the gradient's rank."""
        said = [f"{picture.name}: {note}." for picture in self.pictures for note in picture.notes]
        limit = limit_in_words(self.settings())
        return (*said, limit) if limit else tuple(said)

    def truth(self) -> Truth:
        """What viewers compare with."""
        return Truth(
            image=tuple(self.secret.pictures_BCHW.permute(0, 2, 3, 1).double().round(decimals=3).tolist()),
            labels=self.secret.labels,
        )

    def steps(self) -> Steps:
        """The attack, ready to be driven."""
        from textleak.attacks.base import begin

        return begin(self.attack, self.shared, self.model, seed=self.config.seed)

    @functools.cached_property
    def view(self) -> View:
        """What the server makes of what was shared."""
        from textleak.clients.view import view_of

        return view_of(self.shared, self.model)

    def recovered(self, recovery: Recovery) -> Tensor:
        """The answer's pictures, (B, channels, height, width)."""
        import torch

        if not recovery.image:
            return torch.zeros(0, *self.model.shape)
        return torch.tensor(recovery.image, dtype=torch.float64).permute(0, 3, 1, 2)

    def result(
        self,
        recovery: Recovery,
        *,
        outcome: str,
        seconds: float,
        run_dir: str | None,
        certified: bool = True,
    ) -> dict[str, Any]:
        """What `image --json` prints: settings, figures and the certificate, as plain JSON values.

        Args:
            recovery: the attack's answer, or the best one when it was stopped.
            outcome: "done", "interrupted" or "stopped".
            seconds: the attack's own time.
            run_dir: the run folder.
            certified: form the answer's own gradient in float64.
        """
        from textleak.proof.certificate import Certificate, certify_pictures
        from textleak.scoring.pixels import score_pictures

        pictures_BCHW = self.recovered(recovery)
        certificate = Certificate(gradient_distance=None, verified=None)
        if certified:
            certificate = certify_pictures(self.view, pictures_BCHW, recovery.labels)
        scores = score_pictures(
            self.secret.pictures_BCHW, self.secret.labels, pictures_BCHW, recovery.labels
        ).to_json()
        settings = self.settings()
        limit = limit_in_words(settings)
        facts = outcome_facts(recovery, certificate, outcome=outcome, seconds=seconds, run_dir=run_dir)
        return {
            **{key: value for key, value in settings.items() if key != "labels"},
            **facts,
            "notes": [*facts["notes"], *([limit] if limit else [])],
            "seconds_to_load": round(self.seconds_to_load, 3),
            **scores,
        }


def limit_in_words(settings: dict[str, Any]) -> str:
    """A sentence where the batch is more numbers than the gradient can determine, else an empty one."""
    if settings["numbers"] <= settings["numbers_determined"]:
        return ""
    return (
        f"The batch is {settings['numbers']:,} numbers, and this model's shared gradient can determine at most "
        f"{settings['numbers_determined']:,}: the pictures can't come back exactly."
    )


def prepare(config: ImageConfig) -> ImageJob:
    """Load and check all that a run needs; nothing is written.

    Raises:
        InputError: whatever the caller can mend.
    """
    from textleak import seeds

    began = time.perf_counter()
    attack = build_attack(config)
    from textleak.attacks.base import check_reads
    from textleak.models.base import Modality

    check_reads(attack, Modality.PICTURES)
    defenses = build_defenses(config)
    threads = set_threads(config.threads)
    from textleak.models.loading.images import ImageRequest, load_images
    from textleak.private.share import share

    model = load_images(
        ImageRequest(
            name=config.model,
            weights=config.weights,
            device=config.device,
            dtype=config.dtype,
            weights_seed=seeds.derive(config.seed, "weights"),
            num_labels=config.num_labels,
            size=config.size,
            channels=config.channels,
        )
    )
    pictures = chosen_pictures(config.images, config.indices, config.dataset, model.shape)
    import torch

    own = [picture.label for picture in pictures if picture.label is not None]
    labels = config.labels or (own if len(own) == len(pictures) and max(own) < model.num_labels else None)
    shared, secret = share(
        model,
        torch.stack([picture.values_CHW for picture in pictures]),
        labels,
        share=config.share,
        client=build_client(config),
        defenses=defenses,
        know=config.know,
        seed=config.seed,
    )
    return ImageJob(
        config=config,
        attack=attack,
        shared=shared,
        model=model,
        secret=secret,
        pictures=pictures,
        threads=threads,
        seconds_to_load=time.perf_counter() - began,
    )
