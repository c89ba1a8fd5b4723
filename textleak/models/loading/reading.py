"""A checkpoint's files, read with care: whatever is wrong with them is told, and none of their code is run."""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textleak.errors import InputError
from textleak.models.loading import own_code
from textleak.models.loading.catalog import Entry
from textleak.models.loading.places import Checkpoint
from textleak.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Layers of any kind that a configuration may ask for (our choice: published networks have up to some hundreds, and each
# takes a millisecond or more to build, however small it is).
_MOST_LAYERS = 2000
# What stands in a repository in place of a large file; https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md has
# pointers of less than 1024 bytes.
_POINTER, _MOST_POINTER = b"version https://git-lfs", 1024
_LONGEST_SAID = 400  # characters of an error of others (our choice)


@contextmanager
def reading(name: str, place: Checkpoint, what: str) -> Iterator[None]:
    """Turn whatever goes wrong in reading a checkpoint into an `InputError` that says where; keep quiet."""
    if place.gguf is not None and importlib.util.find_spec("gguf") is None:
        raise _package_missing(name, place, "the package gguf")
    try:
        with quiet(), own_code.refused(name):
            yield
    except InputError:
        raise
    except ImportError as error:
        raise _package_missing(name, place, str(error).strip().splitlines()[0]) from error
    except Exception as error:  # a damaged file fails in as many ways as there are formats
        raise InputError(
            f"The {what} of the model {name!r} can't be read from {place.words}.",
            why=_said(error),
            fix="Check that the checkpoint is complete, or choose another --model.",
        ) from error


def read_config(name: str, place: Checkpoint, entry: Entry | None) -> PreTrainedConfig:
    """The configuration of a checkpoint; no code of its own is run.

    Raises:
        InputError: it can't be read.
    """
    from transformers import AutoConfig

    own_code.check_parts(name, place)
    with reading(name, place, "configuration"):
        if place.gguf is not None:
            return AutoConfig.from_pretrained(place.folder, gguf_file=place.gguf, **own_code.LOCAL)
        settings = json.loads((place.folder / "config.json").read_text("utf-8"))
        if entry is not None and "model_type" not in settings:  # checkpoints of 2019 and 2020 don't say
            return checked(AutoConfig.for_model(entry.model_type, **settings))
        return checked(AutoConfig.from_pretrained(place.folder, **own_code.LOCAL))


def checked(config: PreTrainedConfig) -> PreTrainedConfig:
    """A configuration, where what is read of it here has the type that it should have, and building it has an end.

    Raises:
        ValueError: it hasn't; transformers itself looks at some values alone.
    """
    kinds = config.architectures
    if not (
        kinds is None or (isinstance(kinds, list | tuple) and all(isinstance(one, str) for one in kinds))
    ):
        raise ValueError(f"architectures are names of classes, not {kinds!r:.60}")
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            if "layer" in name and isinstance(value, int) and value > _MOST_LAYERS:
                raise ValueError(
                    f"{name} is {value!r:.40}, and a network of more than {_MOST_LAYERS} layers isn't built"
                )
    return config


@contextmanager
def reading_gguf_once() -> Iterator[None]:
    """Parse a GGUF file once for configuration, tokenizer and weights: seconds each time otherwise."""
    if importlib.util.find_spec("gguf") is None:  # `reading` says so
        yield
        return
    import gguf

    reader, name_map = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = functools.cache(reader), functools.cache(name_map)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, name_map


def check_weights(name: str, place: Checkpoint, config: PreTrainedConfig) -> None:
    """Make sure that a folder's weights are there, and numbers that training moves.

    Raises:
        InputError: they are pointers of Git LFS's, or quantized.
    """
    if place.gguf is not None:  # its tensors are read as numbers
        return
    if getattr(config, "quantization_config", None):
        raise InputError(
            f"The weights of {name!r} in {place.words} are quantized (quantization_config).",
            why="Training doesn't move such weights, and no gradient of them leaves a client.",
            fix="Name the base model in 16 or 32 bits; where these weights are, take quantization_config out of their "
            "config.json.",
        )
    for path in (*place.folder.glob("*.safetensors"), *place.folder.glob("*.bin")):
        if path.stat().st_size < _MOST_POINTER and path.read_bytes().startswith(_POINTER):
            raise InputError(
                f"{path.name} of {name!r} in {place.words} is a pointer of Git LFS's, and no weights.",
                why="The repository was cloned without its large files.",
                fix="Fetch them: git lfs pull.",
            )


def _said(error: Exception) -> str:
    """The first sentence of an error of others, with the list that it announces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines)[:_LONGEST_SAID] if lines[0].endswith(":") else lines[0]


def weights_options(folder: Path) -> dict[str, Any]:
    """How a folder's weights are read: safetensors where there are any, else pickles of nothing but tensors."""
    safe = any((folder / file).is_file() for file in ("model.safetensors", "model.safetensors.index.json"))
    return {"use_safetensors": True if safe else None, "weights_only": True}


def _package_missing(name: str, place: Checkpoint, what: str) -> InputError:
    return InputError(
        f"A package is missing to read {name!r} ({place.words}).",
        why=f"It needs {what}.",
        fix="pip install 'textleak[pretrained]' (or: pip install gguf)." if place.gguf else "Install it.",
    )
