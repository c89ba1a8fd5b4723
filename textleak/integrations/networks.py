"""A network in training: what is inside its wrappers, what its parameters are called, and what is saved of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from textleak.errors import InputError
from textleak.integrations.peft import new_folder, save_adapter
from textleak.models.base import Tensors
from textleak.models.identity import fingerprint_of
from textleak.models.loading.heads import outputs_of
from textleak.models.loading.memory import task_of, unwrapped
from textleak.models.quiet import quiet
from textleak.shared.formats import inner_name
from textleak.shared.public import PublicModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def copied(value: Tensor) -> Tensor:
    """A tensor's value as it is now, in memory of its own."""
    return value.detach().clone()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """A network that is being trained.

    Attributes:
        network: the Hugging Face model itself, with PEFT's adapters in it where there are any.
        parameters: all of them by name, a tied one once.
        adapters: PEFT's configuration of the adapters that are trained; None without any.
        task: "classification", "causal-lm" or "masked-lm".
    """

    network: PreTrainedModel
    parameters: dict[str, nn.Parameter]
    adapters: Any
    task: str
    began_as: str = dataclasses.field(init=False)  # fingerprint of the weights, adapters aside

    def __post_init__(self) -> None:
        """Look at the weights as they are."""
        object.__setattr__(self, "began_as", fingerprint_of(self._base({})))

    @property
    def moving(self) -> dict[str, nn.Parameter]:
        """What is trained."""
        return {name: p for name, p in self.parameters.items() if p.requires_grad}

    @property
    def name(self) -> str:
        """What it is called: the last part of where it was loaded from."""
        loaded = str(getattr(self.network.config, "_name_or_path", "") or type(self.network).__name__)
        return loaded.rstrip("/").rpartition("/")[2]

    def values(self) -> Tensors:
        """What is trained, as it is now."""
        return {name: copied(parameter) for name, parameter in self.moving.items()}

    def public(self, values: Mapping[str, Tensor], name: str) -> PublicModel:
        """The model that the server has.

        Args:
            values: of what is trained; what isn't has not moved.
            name: under which the server has it.
        """
        labels, outputs = outputs_of(self.network.config, self.task)
        return PublicModel(
            name=name,
            task=self.task,
            weights="pretrained",
            weights_seed=0,
            num_labels=outputs if labels is None else labels,
            dtype=str(self.network.get_input_embeddings().weight.dtype).removeprefix("torch."),
            fingerprint=fingerprint_of({**self.parameters, **values}),
        )

    def save(
        self,
        values: Mapping[str, Tensor],
        tokenizer: Any,  # noqa: ANN401 - any library's
        out: Path,
        *,
        public: str | None,
    ) -> str:
        """Write the public model as `-m` takes it, unless a server has it; what is there already stays as it is.

        Args:
            values: of what is trained; what isn't has not moved.
            tokenizer: of the model.
            out: a folder to write into.
            public: name under which a server has the weights that training began with, adapters aside; None to write
                these too. Later ones are always written.

        Returns:
            What `-m` takes: `public` or a folder; with adapters the folder that these are in.

        Raises:
            InputError: it can't be written.
        """
        base = self._base(values)
        folder = out / f"model-{fingerprint_of(base)}"
        if fingerprint_of(base) != self.began_as:
            public = None
        if public is None:
            self._save_base(base, tokenizer, folder)
        if self.adapters is None:
            return public or str(folder)
        adapter = (folder if public is None else out) / f"adapter-{fingerprint_of(values)}"
        # A file has only an alias loaded, or the folder that it is in.
        save_adapter(self.adapters, self.network, values, adapter, base=public or "..")
        return str(adapter)

    def _save_base(self, base: Tensors, tokenizer: Any, folder: Path) -> None:  # noqa: ANN401 - any library's
        if folder.is_dir() and not folder.is_symlink():
            return
        buffers = {
            inner_name(name): value for name, value in self.network.named_buffers(remove_duplicate=False)
        }
        persistent = {inner_name(name) for name in self.network.state_dict()} & buffers.keys()
        state = {**base, **{name: buffers[name].detach().clone() for name in persistent}}
        with new_folder(folder) as partial, quiet():
            self.network.save_pretrained(partial, state_dict=state)
            tokenizer.save_pretrained(partial)

    def _base(self, values: Mapping[str, Tensor]) -> Tensors:
        """The public model's weights, without adapters."""
        weights: Tensors = {}
        for name, parameter in self.parameters.items():
            parts = name.split(".")
            if any(part.startswith("lora_") or part == "modules_to_save" for part in parts):
                continue
            plain = ".".join(part for part in parts if part not in ("base_layer", "original_module"))
            weights[plain] = values[name] if name in values else copied(parameter)
        return weights


def trained(model: nn.Module, task: str = "auto") -> Trained:
    """What is being trained, whatever is wrapped around it.

    Args:
        model: as the loop has it.
        task: "classification", "causal-lm", "masked-lm", or "auto" for what its class says.

    Raises:
        InputError: it is no model of transformers, its task isn't one here, or nothing of it is trained.
    """
    network = unwrapped(model)
    adapters = getattr(network, "peft_config", None) or {}
    found = Trained(
        network=network,
        parameters={inner_name(name): parameter for name, parameter in network.named_parameters()},
        adapters=next(iter(adapters.values()), None),
        task=task_of(network, task),
    )
    if not found.moving:
        raise InputError("No parameter of the model is trained.", why="Nothing would leave the client.")
    return found
