"""LoRA through PEFT: the model stays frozen, and what leaves is the gradient of low-rank adapters (Hu et al. 2021)."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from textleak.clients.base import CLIENTS, Client
from textleak.errors import InputError
from textleak.models.base import M, Modality
from textleak.models.copies import copy_of
from textleak.models.text import TextModel
from textleak.seeds import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Hu et al. 2021, table 11: LoRA's learning rate for GPT-2.
_RATE = 2e-4
# What PEFT trains in full beside the adapters of a classifier (`PeftModelForSequenceClassification`).
_CLASSIFIERS = ("classifier", "score")
_NAMES = r"[A-Za-z0-9_.]+(/[A-Za-z0-9_.]+)*"  # no expression, no path: options may come from a file

_Names = Annotated[str, Field(pattern=f"^{_NAMES}$", max_length=1000)]


@CLIENTS.register("lora")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora(Client):
    """Low-rank adapters, inserted and named as PEFT does it; only they are trained, and what `modules_to_save` names.

    A is drawn from the weights' seed as PEFT draws it. At round 0 B is 0, and A's gradient with it. The adapters of a
    later round are public, but which data made them isn't: B is drawn as `at` steps of AdamW in one direction would
    leave it, with standard deviation at · 2e-4. What an attack can do doesn't depend on its values (our choice).

    Attributes:
        rank: r.
        alpha: the adapters' output is scaled by alpha / rank.
        targets: names of the modules that get one, separated by "/", or "all-linear"; None for PEFT's choice.
        dropout: of the adapters' inputs, where the client trains in train mode.
        bias: which biases are trained too.
        modules_to_save: names of modules that are trained in full, separated by "/"; a classifier's head always is.
        rslora: scale by alpha / √rank instead (Kalajdzievski 2023).
        at: public rounds before this one.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[Modality]] = frozenset({Modality.TEXT})
    in_network: ClassVar[bool] = True

    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8.0
    targets: _Names | Literal["all-linear"] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: _Names | None = None
    rslora: bool = False
    at: Annotated[int, Field(ge=0, le=1_000_000)] = 0

    def prepare(self, model: M) -> M:
        """The model with adapters, its own parameters shared and frozen.

        Raises:
            InputError: PEFT isn't installed, or has no adapter for what `targets` names.
        """
        try:
            import peft
        except ImportError:
            raise InputError(
                "PEFT isn't installed, and the client lora was asked for.",
                why="It inserts the adapters, as in training.",
                fix="pip install 'textleak[peft]'.",
            ) from None
        assert isinstance(model, TextModel)
        kept = {id(parameter): parameter for parameter in model.network.parameters()}
        network = copy_of(model.network, kept)
        saved = self.modules_to_save.split("/") if self.modules_to_save else []
        saved += _CLASSIFIERS if model.task == "classification" else ()
        config = peft.LoraConfig(
            r=self.rank,
            lora_alpha=cast("int", self.alpha),
            target_modules=self.targets if self.targets in (None, "all-linear") else self.targets.split("/"),
            lora_dropout=self.dropout,
            bias=self.bias,
            modules_to_save=saved or None,
            use_rslora=self.rslora,
        )
        try:
            with seeded(model.weights_seed), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # GPT-2's transposed weights are noticed, and said
                peft.inject_adapter_in_model(config, network)
        except ValueError as error:
            raise InputError(
                f"PEFT can't insert adapters into {model.name}.",
                why=str(error).splitlines()[0],
                fix="Name linear modules of it: lora:targets=q_proj/v_proj, or lora:targets=all-linear.",
            ) from None
        self._check(network, model.name)
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        if self.at:
            self._train(trained, model.weights_seed)
        return cast("M", dataclasses.replace(model, network=network, trained=tuple(trained)))

    @staticmethod
    def _check(network: PreTrainedModel, name: str) -> None:
        """Make sure that every adapter is one of a linear layer.

        Raises:
            InputError: one isn't, as it is looked up or convolved.
        """
        from peft.tuners.lora import Linear, LoraLayer

        for path, module in network.named_modules():
            if isinstance(module, LoraLayer) and not isinstance(module, Linear):
                raise InputError(
                    f"The module {path} of {name} is no linear layer.",
                    why="Its adapter's gradient isn't made of inputs that can be told.",
                    fix="Leave it out of lora:targets.",
                )

    def _train(self, trained: dict[str, Tensor], seed: int) -> None:
        """Put B where `at` rounds could have moved it."""
        draws = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in trained.items():
                if ".lora_B." in name and parameter.dim() == 2:
                    drawn = torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
                    parameter.copy_(drawn * self.at * _RATE)
