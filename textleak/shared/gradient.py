"""What leaves a client: named gradients with what a server knows about them, in memory and on disk.

This room knows tensors and names. It doesn't know models, text or attacks.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from textleak import owned, typed
from textleak.errors import InputError, unknown_name
from textleak.numerics import exact
from textleak.shared.effects import STORED, Effect, Rounded
from textleak.shared.known import UNTOLD, SideInformation
from textleak.shared.public import ONE_STEP, PublicClient, PublicDefense, PublicModel
from textleak.shared.tensors import read_tensors
from textleak.words import count_of

FORMAT_VERSION = 2
_READ = ("1", "2")  # files of version 1 have no client: they are of one plain step
_LONGEST_TEXT = 10_000  # characters in a name or an expression (our choice)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SharedGradient:
    """All that a server sees.

    Attributes:
        gradients: by parameter name; only the parameters that were shared.
        model: the public model.
        share: how the parameters were chosen ("all", "no-embeddings", "attention" or an expression).
        known: side information.
        defenses: what the client did before sharing, in order, as far as the server is told: a server that doesn't
            know of them holds none, and takes the gradient for what the client computed.
        client: how the client trained; a server that isn't told takes it for one plain step.

    Example:
        >>> shared.share, shared.known.batch_size, shared.client.spec
        ('all', 1, 'one-step')
    """

    gradients: dict[str, Tensor]
    model: PublicModel
    share: str
    known: SideInformation = UNTOLD
    defenses: tuple[PublicDefense, ...] = ()
    client: PublicClient = ONE_STEP

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What the client's procedure and all defenses do, in order, as far as they say."""
        defended = (effect for defense in self.defenses for effect in defense.effects or ())
        return (*self.client.effects, *defended)

    @property
    def seen_effects(self) -> tuple[Effect, ...]:
        """What was done to the gradient before it was seen: `effects`, and rounding to what it is stored in.

        A client that computes in float32 may send, or save, float16: its tensors' type says so.
        """
        stored = {str(gradient.dtype).removeprefix("torch.") for gradient in self.gradients.values()}
        grid = next((grid for grid in STORED if stored == {grid}), None)
        if grid is None or self.model.dtype in STORED:
            return self.effects
        return (*self.effects, Rounded(grid=grid))

    @property
    def defended_effects(self) -> tuple[Effect, ...]:
        """Of `seen_effects` those that come after the client's own procedure."""
        return self.seen_effects[len(self.client.effects) :]

    @property
    def noise_sigma(self) -> float:
        """Standard deviation of the noise that the defenses publicly add, 0 for none."""
        return math.hypot(*(effect.noise.sigma for effect in self.effects if effect.noise is not None))

    def deviation(self, name: str) -> float:
        """How far an entry of a tensor is from what the client computed, by noise and rounding: root mean square."""
        gradient = exact(self.gradients[name])
        return math.sqrt(sum(effect.variance(gradient) for effect in self.effects))

    def __repr__(self) -> str:
        """A line: what it is of, and nothing of its numbers."""
        return f"<SharedGradient {', '.join(f'{name} {said}' for name, said in self._told().items())}>"

    def _repr_html_(self) -> str:
        """The same as a small table, for a notebook."""
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(said)}</td></tr>"
            for name, said in self._told().items()
        )
        return f"<table><caption>SharedGradient</caption>{rows}</table>"

    def _told(self) -> dict[str, str]:
        """What a person wants to know of it, in words."""
        numbers = sum(gradient.numel() for gradient in self.gradients.values())
        return {
            "of": f"{self.model.name} ({self.model.task})",
            "share": f"{self.share}: {count_of(len(self.gradients), 'tensor')}, {numbers:,} numbers",
            "client": self.client.spec,
            "defenses": "+".join(defense.name for defense in self.defenses) or "none",
            "told": ", ".join(self.known.told) or "nothing",
        }

    def norm(self) -> float:
        """Global L2 norm."""
        return float(torch.stack([exact(g).norm() for g in self.gradients.values()]).norm())

    def save(self, path: Path | str) -> None:
        """Write a safetensors file; the public metadata travels as JSON in its header.

        Raises:
            InputError: the file can't be written.
        """
        path = Path(path)
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        header = {
            "textleak": str(FORMAT_VERSION),
            "model": _dump(self.model),
            "share": self.share,
            "known": _dump(self.known),
            "defenses": _dump(self.defenses),
            "client": _dump(self.client),
        }
        tensors = {name: gradient.detach().cpu().contiguous() for name, gradient in self.gradients.items()}
        try:
            with owned.replacing(path) as partial:
                save_file(tensors, partial, header)
        except (OSError, SafetensorError) as error:
            why = owned.why_not(error) if isinstance(error, OSError) else str(error)
            raise InputError(
                f"The gradient can't be written to {path}.", why=why, fix="Choose another --out."
            ) from None

    @classmethod
    def load(cls, path: Path | str) -> SharedGradient:
        """Read what `save` wrote.

        Raises:
            InputError: no such file, not safetensors (a pickle is never opened), truncated, too large for the
                memory, without textleak's metadata, or with values that are not finite.
        """
        path = Path(path)
        if not path.exists() or path.is_dir():
            raise InputError(
                f"There is no gradient file {path}.", fix="`textleak share --out FILE` writes one."
            )
        try:
            header, gradients = read_tensors(path)
        except OSError as error:
            raise InputError(f"{path} can't be read as a gradient.", why=f"{error}.") from None
        except ValueError as error:
            raise InputError(
                f"{path} is not a readable safetensors file.",
                why=f"{error}. It may be truncated, or a pickle, which is never opened here as it can run code.",
                fix=f"Write it again with `textleak share --out FILE`. Tensors that torch saved: "
                f"`textleak audit {path} --model MODEL`, which reads no more than tensors.",
            ) from None
        if header.get("textleak") not in _READ:
            raise InputError(
                f"{path} carries no textleak metadata of version {' or '.join(_READ)}.",
                why="Without it nobody can say which model and parameters the tensors belong to.",
                fix=f"Write it with `textleak share --out FILE` or `SharedGradient.save`, or say which model it is of: "
                f"`textleak audit {path} --model MODEL`.",
            )
        try:
            shared = cls(
                gradients=gradients,
                model=typed.adapter(PublicModel).validate_json(header["model"]),
                share=header["share"],
                known=typed.adapter(SideInformation).validate_json(header["known"]),
                defenses=typed.adapter(tuple[PublicDefense, ...]).validate_json(header["defenses"]),
                client=typed.adapter(PublicClient).validate_json(header.get("client", "{}")),
            )
        except (KeyError, ValidationError) as error:
            raise InputError(f"The metadata of {path} is damaged.", why=str(error)) from None
        contradiction = shared.contradiction()
        if contradiction:
            raise InputError(f"The metadata of {path} contradict themselves.", why=contradiction)
        told = [json.loads(header.get(key, "{}")) for key in ("model", "defenses", "client")]
        for text in _texts([shared.share, *told]):
            if len(text) > _LONGEST_TEXT or not text.isprintable():
                raise InputError(
                    f"The metadata of {path} hold a text that can't be shown.",
                    why=f"It has {len(text):,} characters and begins with {text[:40]!r}.",
                )
        shared.check_finite(str(path))
        return shared

    def contradiction(self) -> str:
        """What in the side information can't be true together, in a sentence; "" where all can."""
        known = self.known
        counts = {
            "batch size": known.batch_size,
            "number of lengths": None if known.lengths is None else len(known.lengths),
            "number of labels": None if known.labels is None else len(known.labels),
        }
        told = {name: count for name, count in counts.items() if count is not None}
        if len(set(told.values())) > 1:
            return f"{' and '.join(f'the {name} is {count}' for name, count in told.items())}.".capitalize()
        classes = self.model.num_labels
        classified = self.model.task in ("classification", "image-classification")
        if known.labels is not None and classes is not None and classified:
            for label in known.labels:
                if not isinstance(label, int) or label >= classes:
                    return f"A label is {label}, and there are {classes} classes."
        return ""

    def check_finite(self, where: str) -> None:
        """Raise `InputError` naming the first tensor with a NaN or an infinity."""
        for name, gradient in self.gradients.items():
            if not torch.isfinite(gradient).all():
                raise InputError(
                    f"The gradient of {name} in {where} is not finite.",
                    why="A gradient with NaN or infinity can't be matched.",
                    fix="Look for an overflow on the client (bf16, too large a loss scale, an unstable loss) "
                    "and share again.",
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


def _texts(value: object) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _dump(value: object) -> str:
    return json.dumps(typed.adapter(type(value)).dump_python(value, mode="json"))
