"""Updates that plain torch and PEFT loops make with drawn settings: none of textleak's client code."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.adapters import adapted
from textleak.models import TextModel

BEFORE, AFTER, GRADIENTS = "before", "after", "gradients.safetensors"

TEXT = """
the patient was told on friday that her account number had been changed by nobody in the city and she wrote a letter
about it which never came back to our office until winter when rain and snow fell over small red houses near the river
where boats move slowly under old bridges while children play music so loud that doctors and teachers can hear it every
single morning before breakfast with fresh tea and a book of secret gradients
""".split()  # noqa: SIM905


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How an update is made.

    Attributes:
        optimizer: "adamw", "sgd", or None for a gradient.
        lr, weight_decay, clip: of the optimizer; clip is the largest norm of a step's gradient.
        steps: of the optimizer; `fresh` ones each on a batch of its own.
        batch_size: sentences of a step.
        dropout: rate of every dropout module in train mode; None for eval mode.
        bf16: whether under autocast.
        rank: of LoRA's adapters; None for none.
        trained: whether these were trained before, so that their B isn't 0.
        seed: of everything that is drawn.
    """

    optimizer: str | None = "adamw"
    lr: float = 5e-5
    weight_decay: float = 0.0
    clip: float | None = None
    steps: int = 1
    fresh: bool = True
    batch_size: int = 1
    dropout: float | None = None
    bf16: bool = False
    rank: int | None = None
    trained: bool = False
    seed: int = 0

    @classmethod
    def drawn(cls, seed: int) -> Settings:
        """As people train: AdamW more than SGD, one step more than several, with dropout more than without."""
        draws = random.Random(seed)
        optimizer = draws.choice([None, "sgd", "sgd", "adamw", "adamw", "adamw", "adamw"])
        low, high = (-5, -3) if optimizer == "adamw" else (-4, -2)
        return cls(
            optimizer=optimizer,
            lr=float(f"{10 ** draws.uniform(low, high):.2g}"),
            weight_decay=draws.choice([0.0, 0.01, 0.1]),
            clip=draws.choice([None, 1.0]),
            steps=draws.choice([1, 1, 1, draws.randint(2, 5)]),
            fresh=draws.choice([True, False]),
            batch_size=draws.choice([1, 1, 2, 4]),
            dropout=draws.choice([None, 0.1, 0.1, 0.05, 0.2]),
            bf16=draws.random() < 0.2,
            rank=draws.choice([None, None, None, 4, 8, 16, 32]),
            seed=seed,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Recorded:
    """An update with what made it.

    Attributes:
        sent: gradients, or after − before.
        before, after: trainable weights; after is None for a gradient.
        tokens: distinct inputs of the first layer in all steps: of a token at a position without dropout, of every
            token with it.
        clipped: to which part of their norm the last step's gradients were clipped; 1 where they weren't.
        looked_up: ids of all tokens, the tokenizer's own too.
        texts: sentences of all steps, each once, as the tokenizer decodes them.
        settings: see there.
    """

    sent: dict[str, Tensor]
    before: dict[str, Tensor]
    after: dict[str, Tensor] | None
    tokens: int
    clipped: float
    looked_up: frozenset[int]
    texts: frozenset[str]
    settings: Settings


def record(model: TextModel, settings: Settings, folder: Path | None = None) -> Recorded:
    """Train a copy of a model's network for some steps.

    Args:
        model: the public model.
        settings: how.
        folder: that checkpoints are left in, as these loops' own libraries write them: see `left`.
    """
    torch.manual_seed(settings.seed)
    draws = random.Random(f"text {settings.seed}")
    network = prepared(model, settings)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    before = {_plain(name): p.detach().clone() for name, p in trained.items()}
    optimizer = _optimizer(list(trained.values()), settings)
    if folder is not None:
        _save(model, network, folder, BEFORE)
    texts: set[str] = set()
    looked_up: set[int] = set()
    inputs: set[tuple[int, ...]] = set()
    batch: dict[str, Tensor] = {}
    clipped = 1.0
    for step in range(settings.steps if optimizer else 1):
        if settings.fresh or not batch:
            batch = _batch(model, draws, settings.batch_size)
        inputs |= _inputs(model, batch, step if settings.dropout else None)
        looked_up |= set(batch["input_ids"].flatten().tolist())
        texts |= set(model.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True))
        autocast = torch.autocast("cpu", torch.bfloat16) if settings.bf16 else contextlib.nullcontext()
        with autocast:
            network(**batch).loss.backward()
        if settings.clip:
            norm = float(nn.utils.clip_grad_norm_(list(trained.values()), settings.clip))
            clipped = min(1.0, settings.clip / norm)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
    made: dict[str, Any] = {
        "before": before,
        "tokens": len(inputs),
        "clipped": clipped,
        "looked_up": frozenset(looked_up),
        "texts": frozenset(texts),
        "settings": settings,
    }
    if optimizer is None:
        sent = {_plain(name): p.grad for name, p in trained.items() if p.grad is not None}
        if folder is not None:
            save_file({name: tensor.contiguous() for name, tensor in sent.items()}, folder / GRADIENTS)
        return Recorded(sent=sent, after=None, **made)
    if folder is not None:
        _save(model, network, folder, AFTER)
    after = {_plain(name): p.detach().clone() for name, p in trained.items()}
    sent = {name: after[name] - before[name] for name in after}
    return Recorded(sent=sent, after=after, **made)


def left(folder: Path) -> dict[str, str]:
    """What `textleak audit` is told of what `record` left in a folder, and nothing else."""
    before, gradients = str(folder / BEFORE), folder / GRADIENTS
    if gradients.exists():
        return {"gradients": str(gradients), "model": before}
    return {"before": before, "after": str(folder / AFTER)}


def _save(model: TextModel, network: Any, folder: Path, name: str) -> None:
    """A checkpoint; of adapters beside the model that they are of."""
    if not hasattr(network, "peft_config"):
        model.tokenizer.save_pretrained(folder / name)
        network.save_pretrained(folder / name)
        return
    model.tokenizer.save_pretrained(folder)
    model.network.save_pretrained(folder)
    network.peft_config["default"].base_model_name_or_path = ".."
    network.save_pretrained(folder / name, save_embedding_layers=False)


def _plain(name: str) -> str:
    """A parameter's name without what PEFT puts before it and within."""
    return (
        name.removeprefix("base_model.model.").replace(".modules_to_save.default", "").replace(".default", "")
    )


def prepared(model: TextModel, settings: Settings) -> nn.Module:
    """A copy of a model's network as it is trained: all of it or adapters, with dropout or without."""
    network: nn.Module = copy.deepcopy(model.network)
    if settings.rank is None:
        network.requires_grad_(True)
    else:
        import peft

        kind = "SEQ_CLS" if model.task == "classification" else "CAUSAL_LM"
        network = adapted(network, peft.LoraConfig(r=settings.rank, task_type=kind))
        for name, parameter in network.named_parameters():
            if settings.trained and ".lora_B." in name:
                nn.init.normal_(parameter, std=0.02)
    network.train(settings.dropout is not None)
    for module in network.modules():
        if isinstance(module, nn.Dropout) and settings.dropout is not None:
            module.p = settings.dropout
    return network


def _optimizer(parameters: Sequence[nn.Parameter], settings: Settings) -> torch.optim.Optimizer | None:
    if settings.optimizer is None:
        return None
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[settings.optimizer]
    return kind(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


def _batch(model: TextModel, draws: random.Random, size: int) -> dict[str, Tensor]:
    sentences = [" ".join(draws.choices(TEXT, k=draws.randint(4, 12))) for _ in range(size)]
    batch = dict(model.tokenizer(sentences, padding=True, return_tensors="pt"))
    if model.task == "classification":
        assert model.num_labels is not None
        batch["labels"] = torch.tensor([draws.randrange(model.num_labels) for _ in sentences])
    else:
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return batch


def _inputs(model: TextModel, batch: dict[str, Tensor], step: int | None) -> set[tuple[int, ...]]:
    """What tells the inputs of the first layer apart; the last token of a causal model's sentence leaves nothing."""
    found: set[tuple[int, ...]] = set()
    for b, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        count = int(mask.sum()) - (model.task == "causal-lm")
        for t, id_ in enumerate(ids[:count].tolist()):
            found.add((t, id_) if step is None else (t, id_, b, step))
    return found
