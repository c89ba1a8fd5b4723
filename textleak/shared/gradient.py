"""What leaves a client: named gradients with what a server knows about them, in memory and on disk.

This room knows tensors and names. It doesn't know models, text or attacks.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from textleak.errors import InputError, unknown_name
from textleak.numerics import exact
from textleak.shared.effects import Effect, Noised, Rounded, spacing
from textleak.shared.known import SideInformation

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicModel:
    """The model both sides know, as far as is needed to load the same one again.

    Attributes:
        name: alias, hub id or folder as it was asked for.
        task: "classification", "causal-lm" or "masked-lm"; "image-classification" for pictures.
        weights: "pretrained" or "random".
        weights_seed: seed of the weights that were drawn at random (all of them, or a classification head).
        num_labels: classes of a classification head, None for the other tasks.
        dtype: for example "float32".
        fingerprint: hash of names, shapes and a sample of the values, to notice another model.
        picture: channels, height and width that an image model reads; None for text.
    """

    name: str
    task: str
    weights: str
    weights_seed: int
    num_labels: int | None
    dtype: str
    fingerprint: str
    picture: tuple[int, int, int] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicDefense:
    """A defense as the server knows it: its name and strength, never its noise.

    Attributes:
        name: as it was registered.
        options: its settings.
        effects: what it does to a gradient, in order; None where it doesn't say.
        epsilon: the differential privacy that it accounts for, None where it accounts for none.
    """

    name: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    effects: tuple[Effect, ...] | None = None
    epsilon: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedGradient:
    """All that a server sees.

    Attributes:
        gradients: by parameter name; only the parameters that were shared.
        model: the public model.
        share: how the parameters were chosen ("all", "no-embeddings", "attention" or an expression).
        known: side information.
        defenses: what the client did before sharing, in order, as far as the server is told: a server that doesn't
            know of them holds none, and takes the gradient for what the client computed.
    """

    gradients: dict[str, Tensor]
    model: PublicModel
    share: str
    known: SideInformation = dataclasses.field(default_factory=SideInformation)
    defenses: tuple[PublicDefense, ...] = ()

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What all defenses do, in order, as far as they say."""
        return tuple(effect for defense in self.defenses for effect in defense.effects or ())

    @property
    def noise_sigma(self) -> float:
        """Standard deviation of the noise that the defenses publicly add, 0 for none."""
        return math.hypot(*(effect.sigma for effect in self.effects if isinstance(effect, Noised)))

    def deviation(self, name: str) -> float:
        """How far an entry of a tensor is from what the client computed, by noise and rounding: root mean square."""
        gradient = exact(self.gradients[name])
        squared = self.noise_sigma**2
        for effect in self.effects:
            if isinstance(effect, Rounded):
                # Uniform over a cell, or over two, weighted, where rounding is stochastic; 0 isn't rounded.
                cells = spacing(gradient, effect.grid).where(gradient != 0, 0.0)
                squared += float(cells.square().mean()) / (6 if effect.stochastic else 12)
        return math.sqrt(squared)

    def norm(self) -> float:
        """Global L2 norm."""
        return float(torch.stack([exact(g).norm() for g in self.gradients.values()]).norm())

    def save(self, path: Path) -> None:
        """Write a safetensors file; the public metadata travels as JSON in its header.

        Raises:
            InputError: the file can't be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        header = {
            "textleak": str(FORMAT_VERSION),
            "model": _dump(self.model),
            "share": self.share,
            "known": _dump(self.known),
            "defenses": _dump(self.defenses),
        }
        partial = path.with_name(path.name + ".partial")
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.gradients.items()}, partial, header)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise InputError(
                f"The gradient can't be written to {path}.", why=str(error), fix="Choose another --out."
            ) from None

    @classmethod
    def load(cls, path: Path) -> SharedGradient:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, not safetensors (a pickle is never opened), truncated, without
                textleak's metadata, or with values that are not finite.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise InputError(
                f"There is no gradient file {path}.", fix="`textleak share --out FILE` writes one."
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                gradients = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path} is not a readable safetensors file.",
                why=f"{error}. It may be truncated, or a pickle, which is never opened as it can run code.",
                fix="Write it again with `textleak share --out FILE`.",
            ) from None
        if header.get("textleak") != str(FORMAT_VERSION):
            raise InputError(
                f"{path} carries no textleak metadata of version {FORMAT_VERSION}.",
                why="Without it nobody can say which model and parameters the tensors belong to.",
                fix="Write it with `textleak share --out FILE` or `SharedGradient.save`.",
            )
        try:
            shared = cls(
                gradients=gradients,
                model=TypeAdapter(PublicModel).validate_json(header["model"]),
                share=header["share"],
                known=TypeAdapter(SideInformation).validate_json(header["known"]),
                defenses=TypeAdapter(tuple[PublicDefense, ...]).validate_json(header["defenses"]),
            )
        except (KeyError, ValidationError) as error:
            raise InputError(f"The metadata of {path} is damaged.", why=str(error)) from None
        shared.check_finite(str(path))
        return shared

    def check_finite(self, where: str) -> None:
        """Raise `InputError` naming the first tensor with a NaN or an infinity."""
        for name, gradient in self.gradients.items():
            if not torch.isfinite(gradient).all():
                raise InputError(
                    f"The gradient of {name} in {where} is not finite.",
                    why="A gradient with NaN or infinity can't be matched.",
                    fix="Look for an overflow on the client (bf16, an unstable loss) and share again.",
                )

    def validate(self, parameters: Mapping[str, Tensor]) -> None:
        """Check that every tensor is a gradient of one of `parameters` (the model's, by name).

        Raises:
            InputError: nothing shared, an unknown name (with the nearest), a wrong shape, or integers.
        """
        if not self.gradients:
            raise InputError("The shared gradient is empty.", why="There is nothing to attack.")
        for name, gradient in self.gradients.items():
            if name not in parameters:
                raise unknown_name(
                    f"parameter in the shared gradient for model {self.model.name!r}",
                    name,
                    parameters,
                    fix="Load the model that the client used (--model, --weights, --task).",
                )
            if gradient.shape != parameters[name].shape:
                raise InputError(
                    f"The gradient of {name} has shape {tuple(gradient.shape)}, "
                    f"the model's parameter {tuple(parameters[name].shape)}.",
                    why="It was computed on another model.",
                    fix="Load the model that the client used (--model, --weights, --task).",
                )
            if not gradient.dtype.is_floating_point:
                raise InputError(f"The gradient of {name} has dtype {gradient.dtype}, not a floating one.")


def _dump(value: object) -> str:
    return json.dumps(TypeAdapter(type(value)).dump_python(value, mode="json"))


def share_expression(share: str) -> re.Pattern[str]:
    """What is searched for in parameter names where `share` is none of the three words.

    Raises:
        InputError: it is malformed.
    """
    try:
        return re.compile(share)
    except re.error as error:
        raise InputError(
            f"--share {share!r} is not a regular expression.", why=f"{error}.", fix=_SHARE_FIX
        ) from None


def choose_shared(
    share: str, names: list[str], *, embeddings: frozenset[str], attention: frozenset[str]
) -> list[str]:
    """The parameters whose gradients leave the client.

    Args:
        share: "all", "no-embeddings", "attention", or a regular expression searched for in each name.
        names: all parameter names.
        embeddings: names of every embedding, the output head and what is tied to them.
        attention: names of query, key and value parameters.

    Raises:
        InputError: an expression that is malformed or matches nothing.
    """
    if share == "all":
        return names
    if share == "no-embeddings":
        return [name for name in names if name not in embeddings]
    if share == "attention":
        chosen = [name for name in names if name in attention]
    else:
        expression = share_expression(share)
        chosen = [name for name in names if expression.search(name)]
    if not chosen:
        raise InputError(
            f"--share {share!r} matches none of the {len(names)} parameters.",
            why=f"They are called like {names[0]} and {names[-1]}.",
            fix=_SHARE_FIX,
        )
    return chosen


_SHARE_FIX = "Use all, no-embeddings, attention, or an expression that matches parameter names."
