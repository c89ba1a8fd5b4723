"""From a name to a network and its tokenizer: the cache, installed packages, the hub, or random weights."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import textleak.models.rules.text  # noqa: F401 - tells the engine what it needs to know
from textleak.errors import InputError, unknown_name
from textleak.models.loading import cut, heads, own_code
from textleak.models.loading.catalog import BY_HUB_ID, CATALOG, Entry
from textleak.models.loading.places import NOT_ASKED, Checkpoint, find_place, not_at_hand
from textleak.models.loading.reading import (
    check_weights,
    read_config,
    reading,
    reading_gguf_once,
    weights_options,
)
from textleak.models.loading.request import Built, Request
from textleak.models.loading.tokenizers import bundled_tokenizer, tokenizer_for
from textleak.models.losses.base import LOSSES, loss_of
from textleak.models.quiet import quiet
from textleak.models.text import COMMON_TASKS, Task, TextModel
from textleak.seeds import seeded
from textleak.words import count_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

# Attention and experts as plain operations of torch: they have every precision, and derivatives of derivatives.
_PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}


def load_model(
    name: str | Path = "bert-tiny",
    *,
    weights: str = "auto",
    task: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    weights_seed: int = 0,
    num_labels: int | None = None,
) -> TextModel:
    """Load the public model that client and attacker share. No code that a checkpoint brings along is run.

    Args:
        name: alias, hub id, folder, or .gguf file (or a folder that holds one).
        weights: "auto" takes the Hugging Face cache, then an installed package that ships them, then the hub,
            else random ones; "pretrained" doesn't go as far as random ones; "random" never asks the network.
        task: "classification", "causal-lm", "masked-lm", or a loss of a head's own: "regression", "multi-label",
            "token-classification", "question-answering"; "auto": that of the checkpoint's own head, else causal-lm for
            decoders and classification.
        device: "auto" takes CUDA or MPS where there is one; "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32", "float64" or "bfloat16".
        weights_seed: seed of weights that are drawn: all of them, or a head that the checkpoint lacks.
        num_labels: classes of a classification head, at least 2, or outputs of another; None for the checkpoint's
            own, or a fresh one's.

    Example:
        >>> textleak.load_model("bert-tiny", weights="random", task="masked-lm").task
        'masked-lm'

    Raises:
        InputError: an unknown name or option, weights that can't be had, a checkpoint that needs code of its own, a
            device that isn't there.
    """
    if not isinstance(name, str | Path):
        raise InputError(
            f"load_model was given a {type(name).__name__}.",
            why="It loads a model by its name, or from a folder.",
            fix="For a network in memory: textleak.wrap(network, tokenizer).",
        )
    name = str(name)
    return load(
        TextRequest(
            name=name,
            weights=weights,
            task=task,
            device=device,
            dtype=dtype,
            weights_seed=weights_seed,
            num_labels=num_labels,
        )
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextRequest(Request):
    """A text model as it is asked for: as `load_model` takes it, and

    Attributes:
        download: whether the hub may be asked for what isn't on this machine.
        tokenizer: alias, hub id or folder of a tokenizer in place of the model's own.
        layers: read no more than so many of a decoder's layers, the first, and no head; None for all.
    """

    task: str = "auto"
    num_labels: int | None = None
    download: bool = True
    tokenizer: str | None = None
    layers: int | None = None


def load(request: TextRequest) -> TextModel:
    """Load what was asked for; as `load_model`."""
    if request.task not in (known := ("auto", *COMMON_TASKS, *LOSSES)):
        raise unknown_name("task", request.task, known)
    if request.num_labels is not None and request.num_labels < 1:
        raise InputError(
            f"num_labels={request.num_labels} can't be used.", why="A head gives one number at least."
        )
    device, dtype = request.target()
    built = _kept.pop(_key(request), None) or _built_for(request)
    model = TextModel(
        name=request.name,
        task=built.task,
        network=built.network.to(device=device, dtype=dtype).eval(),
        tokenizer=built.tokenizer,
        weights=built.weights,
        source=built.source,
        weights_seed=request.weights_seed,
        num_labels=built.num_labels,
        outputs=built.outputs,
        first_layers=request.layers,
    )
    if request.task == "auto" and heads.tells_what_it_reads(model):
        return load(dataclasses.replace(request, task="classification"))
    heads.check_predicts(model)
    return model


# Models that are loaded beforehand

_kept: dict[TextRequest, _Built] = {}


def keep(request: TextRequest) -> bool:
    """Have ready what `load` is to be asked for, for whatever device; once, as a network is changed by its users.

    What was kept before is dropped. The hub is not asked: where it may have weights that aren't here, nothing is kept.

    Returns:
        Whether it is kept.
    """
    from huggingface_hub import constants

    offline = bool(constants.HF_HUB_OFFLINE)  # then asking is for nothing, and the answer the same
    _kept.clear()
    entry = CATALOG.get(request.name) or BY_HUB_ID.get(request.name)
    _, missing = find_place(request.name, entry, request.weights, download=offline)
    if missing == NOT_ASKED:
        importlib.import_module("transformers.models.bert.modeling_bert")  # what any network needs with it
        return False
    _kept[_key(request)] = _built_for(dataclasses.replace(request, download=offline))
    return True


def _key(request: TextRequest) -> TextRequest:
    """What makes a difference to the network."""
    return dataclasses.replace(request, device="", dtype="", download=True)


# Building networks


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Built(Built):
    network: PreTrainedModel
    task: Task
    num_labels: int | None
    outputs: int | None
    tokenizer: PreTrainedTokenizerFast


def _built_for(request: TextRequest) -> _Built:
    """Network and tokenizer, from wherever they can be had."""
    name, weights, download = request.name, request.weights, request.download
    entry = CATALOG.get(name) or BY_HUB_ID.get(name)
    place, missing = find_place(name, entry, weights, download=download)
    if request.layers is not None:
        cut.check(name, request.layers, place if weights != "random" else None)
    if place is not None and weights != "random" and not place.has_weights:
        if weights == "pretrained":
            raise not_at_hand(
                name, entry, f"{place.words} holds a configuration without weights", download=download
            )
        weights = "random"
    if place is not None and weights == "random":
        return _random_in(request, place, entry)
    if place is not None:
        with reading_gguf_once() if place.gguf is not None else nullcontext():
            return _pretrained(request, place, entry)
    if entry is not None and weights != "pretrained":
        return _random_alias(request, entry, missing)
    raise not_at_hand(name, entry, missing, download=download)


def _choose_task(name: str, config: PreTrainedConfig, task: str) -> tuple[Task, type[PreTrainedModel]]:
    """The task and the Auto class that builds it; what an architecture can do is transformers' own table."""
    import transformers
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoModelForSequenceClassification,
    )

    kind = type(config)
    two_texts = bool(getattr(config, "is_encoder_decoder", False))
    masked = kind in AutoModelForMaskedLM._model_mapping and not two_texts
    able: dict[Task, type[PreTrainedModel]] = {}
    if kind in AutoModelForSequenceClassification._model_mapping:
        able["classification"] = AutoModelForSequenceClassification
    if masked:
        able["masked-lm"] = AutoModelForMaskedLM
    elif kind in AutoModelForCausalLM._model_mapping and not two_texts:
        able["causal-lm"] = AutoModelForCausalLM
    chosen = task
    if task == "auto":
        classifier = "classification" in able and heads.classifies(config)
        usual = "causal-lm" if "causal-lm" in able and not classifier else "classification"
        chosen = heads.own_task(name, config.architectures or (), config) or usual
    if two_texts and (not able or chosen in ("masked-lm", "causal-lm")):
        raise InputError(
            f"{name!r} is an encoder-decoder ({config.model_type}) and can't do {chosen} here.",
            why=heads.TWO_TEXTS,
            fix="--task classification: both read the same text."
            if able
            else "Choose an encoder or a decoder.",
        )
    loss = loss_of(chosen)
    if loss is not None and kind in (auto := getattr(transformers, loss.auto))._model_mapping:
        able[chosen] = auto
    if chosen not in able:
        if not able and hasattr(config, "auto_map"):
            raise own_code.needs_own_code(name)
        raise InputError(
            f"{name!r} ({config.model_type}) can't do {chosen}.",
            why=f"transformers has it for {', '.join(able) or 'none of the tasks here'}.",
            fix="Choose another --task or --model.",
        )
    return chosen, able[chosen]


def _pretrained(request: TextRequest, place: Checkpoint, entry: Entry | None) -> _Built:
    name, seed = request.name, request.weights_seed
    config = read_config(name, place, entry)
    check_weights(name, place, config)
    chosen, auto = _choose_task(name, config, request.task)
    num_labels, outputs = heads.shape_head(config, chosen, request.num_labels)
    tokenizer = tokenizer_for(name, place, config, asked=request.tokenizer, download=request.download)
    if request.layers is not None:
        config = cut.shortened(name, config, request.layers, task=chosen)
    with reading(name, place, "weights"), seeded(seed):
        if place.gguf is not None:
            network, absent = _fill_from_gguf(auto, config, place.folder / place.gguf)
            unread: Collection[str] = ()
        else:
            network, absent, unread = _fill_from_folder(auto, config, place.folder)
    names = dict(network.named_parameters())
    drawn = [key for key in names if key in absent]
    if 2 * len(drawn) > len(names):
        around = next((before for key in unread if (before := _around(key))), "")
        if around:
            raise InputError(
                f"The parameters of {name!r} in {place.words} are called {around}...: a wrapper's.",
                why="They were saved with what training wraps around a network (DistributedDataParallel, "
                "torch.compile).",
                fix="Save the network itself (model.module.save_pretrained), or take that beginning off their "
                "names.",
            )
        raise InputError(
            f"Of the {len(names)} parameters of {name!r}, {len(drawn)} are not in {place.words}.",
            why="It seems to be the checkpoint of another architecture.",
            fix="Choose another --task or --model, or --weights random.",
        )
    source = place.words
    if request.layers is not None:
        source += f"; the first {count_of(request.layers, 'layer')} alone"
        network = cut.headless(network)
    if drawn:
        shown = ", ".join(drawn[:4]) + (f" and {len(drawn) - 4} more" if len(drawn) > 4 else "")
        source += f"; {shown} random, seed {seed}"
    return _Built(
        task=chosen,
        num_labels=num_labels,
        outputs=outputs,
        network=network,
        tokenizer=tokenizer,
        weights="pretrained",
        source=source,
    )


def _around(name: str) -> str:
    """What a wrapper around a network put before the name of a parameter; nothing where none did."""
    from textleak.shared.formats import plain_name

    plain = plain_name(name)
    return name.removesuffix(plain) if name.endswith(plain) else ""


def _fill_from_folder(
    auto: type[PreTrainedModel], config: PreTrainedConfig, folder: Path
) -> tuple[PreTrainedModel, set[str], set[str]]:
    """The network with the folder's weights, which parameters these left to be drawn, and which of them it lacks."""
    network, report = auto.from_pretrained(
        folder,
        config=config,
        **_PLAIN,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # a head for another number of classes is drawn anew
        **own_code.LOCAL,
        **weights_options(folder),
    )
    absent = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    return network, absent, set(report["unexpected_keys"])


def _fill_from_gguf(
    auto: type[PreTrainedModel], config: PreTrainedConfig, path: Path
) -> tuple[PreTrainedModel, set[str]]:
    """The same from a GGUF file, dequantized."""
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # Not from_pretrained, which asks for a package (accelerate) that only its other uses need.
    network = _built(auto, config)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=network)["tensors"]
    network.load_state_dict(tensors, strict=False)
    network.tie_weights()
    filled = {
        id(parameter)
        for name, parameter in network.named_parameters(remove_duplicate=False)
        if name in tensors
    }
    return network, {name for name, parameter in network.named_parameters() if id(parameter) not in filled}


def _built(auto: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    return auto.from_config(config, **_PLAIN, dtype=torch.float32, trust_remote_code=False)


def _draw(auto: type[PreTrainedModel], config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    with quiet(), seeded(seed):
        return _built(auto, config)


def _random_in(request: TextRequest, place: Checkpoint, entry: Entry | None) -> _Built:
    """The architecture and tokenizer of a folder, random weights."""
    name, seed = request.name, request.weights_seed
    config = read_config(name, place, entry)
    chosen, auto = _choose_task(name, config, request.task)
    num_labels, outputs = heads.shape_head(config, chosen, request.num_labels)
    tokenizer = tokenizer_for(name, place, config, asked=request.tokenizer, download=request.download)
    with reading(name, place, "configuration"):
        network = _draw(auto, config, seed)
    return _Built(
        task=chosen,
        num_labels=num_labels,
        outputs=outputs,
        network=network,
        tokenizer=tokenizer,
        weights="random",
        source=f"random, seed {seed}; shape and tokenizer of {place.words}",
    )


def _random_alias(request: TextRequest, entry: Entry, missing: str) -> _Built:
    from transformers import AutoConfig

    seed = request.weights_seed
    tokenizer = bundled_tokenizer(entry)
    ids = {
        f"{role}_token_id": getattr(tokenizer, f"{role}_token_id")
        for role in ("pad", "bos", "eos")
        if getattr(tokenizer, f"{role}_token_id") is not None
    }
    config = AutoConfig.for_model(entry.model_type, **{**entry.shape, "vocab_size": len(tokenizer), **ids})
    chosen, auto = _choose_task(entry.alias, config, request.task)
    num_labels, outputs = heads.shape_head(config, chosen, request.num_labels)
    because = f"; no pretrained weights found: {missing}" if missing else ""
    return _Built(
        task=chosen,
        num_labels=num_labels,
        outputs=outputs,
        network=_draw(auto, config, seed),
        tokenizer=tokenizer,
        weights="random",
        source=f"random, seed {seed}; bundled vocabulary {entry.vocabulary_name}{because}",
    )
