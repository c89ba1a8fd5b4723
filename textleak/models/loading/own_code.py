"""Checkpoints that bring Python code along: transformers would ask whether to run it, and textleak never does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from textleak.errors import InputError
from textleak.models.loading.places import Checkpoint

# What each load from a folder is told: no code from it, nothing from the network.
LOCAL: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def needs_own_code(name: str) -> InputError:
    """The error for a checkpoint that transformers can't read by itself."""
    return InputError(
        f"The model {name!r} needs code of its own, which textleak never runs.",
        why="Its configuration names Python files in auto_map; they could do anything on this machine.",
        fix="Choose a --model of an architecture that transformers has.",
    )


@contextmanager
def refused(name: str) -> Iterator[None]:
    """Have transformers refuse a checkpoint's own code without asking on standard input.

    `trust_remote_code=False` does that for what is asked for, but not for every part that this is made of.

    Raises:
        InputError: the checkpoint can't be read without its code.
    """
    from transformers import dynamic_module_utils

    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # to wait for an answer
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise needs_own_code(name) from None
        raise
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


@contextmanager
def offline() -> Iterator[None]:
    """Have no part of a network asked for on the hub: timm's would fetch what a folder doesn't hold."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def check_parts(name: str, place: Checkpoint) -> None:
    """Raise where a folder holds more than a model.

    Raises:
        InputError: there is an adapter in it. Where the package peft is installed, transformers would put it into the
            network, and its configuration names modules to import.
    """
    if place.gguf is None and (place.folder / "adapter_config.json").exists():
        raise InputError(
            f"The model {name!r} ({place.words}) holds an adapter.",
            why="What is attacked is a network without one.",
            fix="Merge it into the weights first (peft: merge_and_unload), or take adapter_config.json away.",
        )
