"""LoRA as PEFT has it: adapters in the words of `--client lora`, and as a folder. PEFT itself isn't imported."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from textleak import owned
from textleak.errors import unwritten
from textleak.shared.formats import plain_name

_NAME = re.compile(r"[A-Za-z0-9_.]+")
_BEFORE = "base_model.model."
_LONGEST = 1000  # characters that the client takes
# What makes another network than plain LoRA.
_OTHERS = ("use_dora", "rank_pattern", "alpha_pattern", "lora_bias", "layer_replication", "target_parameters")


def lora_options(adapters: Any, network: nn.Module) -> tuple[dict[str, Any] | None, list[str]]:  # noqa: ANN401 - PEFT's
    """Options of the client `lora`, None where no client here has such adapters, and what they don't say.

    Args:
        adapters: a `peft.PeftConfig`.
        network: that they are in.
    """
    kind = str(getattr(adapters.peft_type, "value", adapters.peft_type))
    others = [option for option in _OTHERS if getattr(adapters, option, None)]
    if kind != "LORA" or others:
        what = f"LoRA with {others[0]}" if others else kind
        return None, [f"No client here trains PEFT's {what}: none is told."]
    targets = "/".join(_adapted(network))
    if len(targets) > _LONGEST:
        return None, ["The adapters are in modules that no client here can be told: none is told."]
    options: dict[str, Any] = {
        "rank": int(adapters.r),
        "alpha": float(adapters.lora_alpha),
        "targets": targets or None,
        "dropout": float(adapters.lora_dropout),
        "bias": adapters.bias,
        "modules_to_save": "/".join(_names(adapters.modules_to_save)) or None,
        "rslora": bool(adapters.use_rslora),
    }
    return {key: value for key, value in options.items() if value is not None}, []


def save_adapter(
    adapters: Any,  # noqa: ANN401 - PEFT's
    network: nn.Module,
    values: Mapping[str, Tensor],
    folder: Path,
    *,
    base: str,
) -> None:
    """Write adapters as PEFT does; nothing where the folder is there already.

    Args:
        adapters: a `peft.PeftConfig`.
        network: that they are in.
        values: of what is trained.
        folder: to be written.
        base: name of the model that they are put into.

    Raises:
        InputError: it can't be written.
    """
    if folder.is_dir() and not folder.is_symlink():
        return
    from safetensors.torch import save_file

    config = copy.copy(adapters)
    config.base_model_name_or_path = base
    # Where they are, said by names alone.
    config.target_modules = set(_adapted(network))
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    with new_folder(folder) as partial:
        config.save_pretrained(str(partial))
        tensors = {f"{_BEFORE}{plain_name(name)}": value.cpu().contiguous() for name, value in values.items()}
        save_file(tensors, partial / "adapter_model.safetensors", {"format": "pt"})


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that takes its place when all went well (`owned.filling`).

    Raises:
        InputError: it can't be written.
    """
    with unwritten(f"{folder} can't be written.", fix="Choose another out=."):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with owned.filling(folder) as partial:
            yield partial


def _adapted(network: nn.Module) -> list[str]:
    """What names exactly the modules that have an adapter: last parts of their names, else all of these."""
    found = [path for path, module in network.named_modules() if hasattr(module, "lora_A")]
    last = {path.rpartition(".")[2] for path in found}
    named = [path for path, _ in network.named_modules() if path.rpartition(".")[2] in last]
    return sorted(last) if len(named) == len(found) else sorted(path.removeprefix(_BEFORE) for path in found)


def _names(modules: Iterable[str] | None) -> list[str]:
    return sorted(name for name in modules or () if _NAME.fullmatch(name))
