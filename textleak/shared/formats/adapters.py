"""The configuration of a PEFT adapter: which low-rank matrices stand where. No module that it names is imported."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from textleak import foreign
from textleak.errors import InputError

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_MOST = foreign.MIB  # bytes of a configuration (our choice: they have one or two KB)
_TASKS = {"SEQ_CLS": "classification", "CAUSAL_LM": "causal-lm"}

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$", max_length=200)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapter:
    """LoRA as PEFT has it.

    Attributes:
        base: name of the model that it was put into; None where the file doesn't say.
        task: of a client here, None where the file doesn't say.
        rank, alpha, targets, dropout, bias, saved, rslora: as `clients.lora` has them.
    """

    base: str | None
    task: str | None
    rank: int
    alpha: float
    targets: tuple[str, ...]
    dropout: float
    bias: Literal["none", "all", "lora_only"]
    saved: tuple[str, ...]
    rslora: bool


class _Config(BaseModel):
    """What is read of the file; what would change the network and isn't known here is refused below."""

    model_config = ConfigDict(extra="allow")

    peft_type: str
    base_model_name_or_path: Annotated[str, Field(max_length=500)] | None = None
    task_type: str | None = None
    r: Annotated[int, Field(ge=1, le=1024)]
    lora_alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    target_modules: Annotated[list[_Name], Field(min_length=1, max_length=1000)]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    modules_to_save: Annotated[list[_Name], Field(max_length=1000)] | None = None
    use_rslora: bool = False


# Other kinds of adapters than plain LoRA, by the option that makes them.
_REFUSED = (
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "lora_bias",
    "megatron_config",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "exclude_modules",
    "use_qalora",
    "alora_invocation_tokens",
)


def read_adapter(folder: Path) -> Adapter:
    """What `adapter_config.json` in a folder says.

    Raises:
        InputError: it can't be read, or is of adapters that no client here has.
    """
    path = folder / CONFIG
    try:
        config = _Config.model_validate_json(foreign.read(path, most=_MOST))
    except OSError as error:
        raise InputError(f"{path} can't be read.", why=f"{error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            f"{path} is not a configuration of LoRA that can be read.",
            why=f"{where or 'It'}: {first['msg']}.",
            fix="Write the folder with PEFT's model.save_pretrained(FOLDER).",
        ) from None
    if config.peft_type != "LORA":
        raise InputError(
            f"The adapter in {folder} is of PEFT's {config.peft_type!r}.",
            why="How it turns inputs into gradients isn't known here; LoRA's way is.",
            fix="Audit the base model's own update, or one of a LoRA adapter.",
        )
    extra: dict[str, Any] = config.model_extra or {}
    for option in _REFUSED:
        if extra.get(option):
            raise InputError(
                f"The adapter in {folder} has {option} set.",
                why="That is another network than plain LoRA makes, and not known here.",
                fix="Only plain LoRA can be audited (rank, alpha, target and saved modules, biases, rslora).",
            )
    drawn = extra.get("init_lora_weights", True)
    if drawn not in (True, False, None, "gaussian"):
        raise InputError(
            f"The adapter in {folder} was begun as {str(drawn)[:40]!r} (init_lora_weights).",
            why="That changes the base model's weights too, and to what isn't in the folder.",
            fix="Begin with PEFT's default, or give checkpoints of the whole model.",
        )
    return Adapter(
        base=config.base_model_name_or_path,
        task=_TASKS.get(config.task_type or ""),
        rank=config.r,
        alpha=config.lora_alpha,
        targets=tuple(sorted(config.target_modules)),
        dropout=config.lora_dropout,
        bias=config.bias,
        saved=tuple(sorted(config.modules_to_save or ())),
        rslora=config.use_rslora,
    )
