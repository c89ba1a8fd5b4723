"""Is a wrong answer ever proved, however clients train? `python -m tests.figures.corrupted_clients` tries five hundred.

Clients whose answers are settled by replaying get the certificate of corrupted recoveries, as in `corruptions`. Where
the span proves instead, no answer can be put to it: there wrong tokens among the proved ones are counted, over batches
that make it hard. In a crowded one tokens have near neighbors, and sentences differ by those; in a mixed one the first
layer's gradients, or one of them, were made of another sentence than the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tests import conftest
from tests.figures.clients import client_of
from tests.figures.corruptions import SENTENCES, Trial, nearest_token, table, trials
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.clients.view import view_of
from textleak.defenses import DEFENSES
from textleak.errors import InputError
from textleak.events import Recovery, Stop
from textleak.exact.adaptive.spans import first_layers
from textleak.models import TextModel, load_model
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.proof.certificate import certificate_of
from textleak.shared.gradient import SharedGradient
from textleak.shared.traits import Trait

# Clients that replaying settles; their batches are of these sizes.
REPLAYED: dict[str, Sequence[int]] = {
    "one-step": range(1, 9),
    "autocast": range(1, 9),
    "accumulate:steps=2": (2, 4, 6, 8),
    "fedavg:steps=1": range(1, 9),
    "fedavg:steps=4": range(1, 9),
    "fedavg:optimizer=adamw,steps=1": range(1, 9),
    "lora:at=5,targets=all-linear": range(1, 9),
}
# Clients, or defenses, whose tokens the span proves, with the sizes of batches that are read so.
_TRAINER = "fedavg:optimizer=adamw,lr=5e-5,steps=1,max_grad_norm=1.0"
SPANNED: dict[str, Sequence[int]] = {
    "train-mode": (1, 2, 3),
    "train-mode+autocast": (1,),
    f"train-mode+{_TRAINER}": (1, 2),
    "train-mode+fedavg:lr=0.01,steps=4": (1, 2),
    "train-mode+fedavg:optimizer=adamw,lr=5e-5,steps=4": (1,),
    "autocast": (1,),
    "quantize:to=fp16": (1,),
    "quantize:to=bf16": (1,),
}
# Of the clock for a gradient: one mixed of two batches may keep the search busy for minutes (our choice).
_SECONDS = 20.0
KINDS = ("plain", "crowded", "first layer of another", "one tensor of another")
FAMILIES = ("bert", "gpt2", "albert", "llama")
WIDE = {
    "bert": {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 128},
    "gpt2": {"n_embd": 96, "n_head": 4},
}
PRETRAINED = ("bert-tiny", "minilm")
# Part of a small model's corruptions that one gets whose certificates take longer.
_OF_LARGER = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """What the span proved of one gradient.

    Attributes:
        client: or defense.
        model: its name.
        kind: of `KINDS`.
        tokens: of the batch that the first layers' gradients were made of.
        proved: tokens that the recovery says are proved.
        wrong: proved ones that stand at their place in no sentence that any of these gradients was made of.
        whole: whether the recovery as a whole counts as verified.
        wholly_wrong: whether it does with other sentences than these.
        seconds: CPU time of the attack.
    """

    client: str
    model: str
    kind: str
    tokens: int
    proved: int
    wrong: int
    whole: bool
    wholly_wrong: bool
    seconds: float


def replayed(model: TextModel, spec: str, *, number: int, seed: int = 0) -> Iterator[Trial]:
    """Certificates of true and of `number` corrupted recoveries of one kind of client."""
    shares = ("all",) if spec.startswith("lora") else ("all", "no-embeddings")
    client, sizes = client_of(spec), REPLAYED[spec]
    for trial in trials(
        model, SENTENCES, number=number, shares=shares, sizes=sizes, client=client, each=5, seed=seed
    ):
        yield dataclasses.replace(trial, model=spec)


def spanned(model: TextModel, spec: str, *, number: int, seed: int = 0) -> Iterator[Read]:
    """What the span proves of `number` gradients of a client or a defense, of each kind in turn."""
    draw = random.Random(f"{seed} {Path(model.name).name} {spec}")
    for index in range(number):
        kind, size = KINDS[index % len(KINDS)], draw.choice(SPANNED[spec])
        batch = draw.sample(SENTENCES, size)
        if kind == "crowded":
            batch = [crowded(model, batch[0], draw) for _ in batch]
        shared, secret = _shared(model, spec, batch, seed=index)
        secrets = [secret]
        if kind.endswith("of another"):
            others = [crowded(model, sentence, draw) for sentence in batch]
            other, its_secret = _shared(model, spec, others, seed=index)
            shared = mixed(model, shared, other, whole=kind == "first layer of another")
            secrets = [its_secret] if kind == "first layer of another" else [secret, its_secret]
        attack = "span" if view_of(shared, model).has(Trait.ONE_POINT) else "replay"
        began = time.process_time()
        try:
            recovery = to_end(
                begin(ATTACKS.build(attack, {"time_limit": _SECONDS}), shared, model, seed=index)
            )
        except InputError:  # it found nothing to go by
            recovery = Recovery(sentences=(), stop=Stop.READ, final_loss=None, steps=0)
        took = time.process_time() - began
        yield _counted(model, shared, recovery, secrets, spec=spec, kind=kind, seconds=took)


def crowded(model: TextModel, sentence: str, draw: random.Random) -> str:
    """The sentence with about half of its tokens exchanged for those whose embeddings are nearest.

    Bytes that make no letter are several tokens again once they are text: then fewer are exchanged, so that it fits.
    """
    ids = model.tokenizer(sentence, add_special_tokens=False)["input_ids"]
    near = {t: nearest_token(model, token) for t, token in enumerate(ids) if draw.random() < 0.5}
    while near:
        text = model.decode([near.get(t, token) for t, token in enumerate(ids)])
        if text.strip() and len(model.tokenizer(text, verbose=False)["input_ids"]) <= model.max_length:
            return text
        near.popitem()
    return sentence


def mixed(model: TextModel, shared: SharedGradient, other: SharedGradient, *, whole: bool) -> SharedGradient:
    """A gradient with its first layers' tensors, or only the first of these, from another one."""
    names = [layer.weight_name for layer in first_layers(view_of(shared, model))]
    taken = set(names if whole else names[:1])
    own = shared.gradients
    return dataclasses.replace(
        shared, gradients={name: (other.gradients if name in taken else own)[name] for name in own}
    )


def _shared(model: TextModel, spec: str, batch: Sequence[str], *, seed: int) -> tuple[SharedGradient, Secret]:
    if spec.startswith("quantize"):
        defenses = [DEFENSES.build("quantize", {"to": spec.rpartition("=")[2]})]
        return share(model, batch, share="no-embeddings", defenses=defenses, seed=seed)
    return share(model, batch, share="no-embeddings", client=client_of(spec), seed=seed)


def _counted(
    model: TextModel,
    shared: SharedGradient,
    recovery: Recovery,
    secrets: Sequence[Secret],
    *,
    spec: str,
    kind: str,
    seconds: float,
) -> Read:
    table_VE = model.word_embedding.weight.detach()

    def look(token: int) -> bytes:  # tokens with equal embeddings can't be told apart
        return table_VE[token].numpy().tobytes()

    true = {(t, look(token)) for secret in secrets for ids in secret.ids for t, token in enumerate(ids)}
    said = [
        (p.position, p.id) for s in recovery.sentences for p in s.positions if p.proved and p.id is not None
    ]
    whole = bool(certificate_of(recovery, view_of(shared, model)).verified)
    rows = sorted(tuple(p.id for p in s.positions) for s in recovery.sentences)
    return Read(
        client=spec,
        model=model.name,
        kind=kind,
        tokens=sum(map(len, secrets[-1].ids)),
        proved=len(said),
        wrong=sum((t, look(token)) not in true for t, token in said),
        whole=whole,
        wholly_wrong=whole and all(rows != sorted(secret.ids) for secret in secrets),
        seconds=seconds,
    )


def by_client(reads: Sequence[Read]) -> Iterator[str]:
    """What came of the gradients that the span reads, a line for a client and a kind."""
    heads = ("gradients", "tokens", "proved", "wrong", "whole", "wrongly", "seconds")
    yield f"{'client':44s} {'kind':24s} " + " ".join(f"{head:>9s}" for head in heads)
    for spec, kind in [*dict.fromkeys((read.client, read.kind) for read in reads), ("all", "all")]:
        some = [read for read in reads if (spec, kind) in ((read.client, read.kind), ("all", "all"))]
        sums = (
            len(some),
            *(sum(getattr(r, head) for r in some) for head in ("tokens", "proved", "wrong", "whole")),
            sum(read.wholly_wrong for read in some),
        )
        seconds = sum(read.seconds for read in some) / max(1, len(some))
        name = spec.replace(_TRAINER, "AdamW, clipped")
        yield f"{name:44s} {kind:24s} " + " ".join(f"{number:9d}" for number in sums) + f" {seconds:9.1f}"


def suite(models: Sequence[TextModel], number: int, *, seed: int) -> Iterator[Trial]:
    """`number` corrupted recoveries in all, over the kinds of clients and models; pretrained ones get fewer."""
    parts = [_OF_LARGER if model.name in PRETRAINED else 1.0 for model in models]
    for model, part in zip(models, parts, strict=True):
        each = math.ceil(number * part / sum(parts) / len(REPLAYED))
        for spec in REPLAYED:
            yield from replayed(model, spec, number=each, seed=seed)


def main() -> int:
    """Parse, try, print; 1 where something wrong was proved."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--number", type=int, default=500, help="corrupted recoveries in all")
    parser.add_argument(
        "--gradients", type=int, default=8, help="that the span reads, of each client and model"
    )
    parser.add_argument(
        "--client", action="append", choices=SPANNED, help="that the span reads, repeatable; all of them"
    )
    parser.add_argument("--model", action="append", choices=(*PRETRAINED, *WIDE), help="that it is asked of")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        small = [_toy(family, Path(folder) / "small") for family in FAMILIES]
        wide = [_toy(family, Path(folder) / "wide", **shape) for family, shape in WIDE.items()]
        larger = [load_model(name) for name in PRETRAINED]
        asked = dict(zip((*PRETRAINED, *WIDE), (*larger, *wide), strict=True))
        reads, found = [], []
        for trial in suite([*small, *larger], options.number, seed=options.seed):
            found.append(trial)
            if len(found) % 100 == 0:
                _say(f"{len(found)} certificates")
            if not trial.right:
                _say(f"WRONG {trial}")
        _say(*table(found))
        for model in (asked[name] for name in options.model or asked):
            for spec in options.client or SPANNED:
                reads += spanned(model, spec, number=options.gradients, seed=options.seed)
            _say(model.name, *by_client([read for read in reads if read.model == model.name]))
        _say("all models", *by_client(reads))
    wrong = [t for t in found if t.kind and t.verified], [r for r in reads if r.wrong or r.wholly_wrong]
    return int(any(wrong))


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _toy(family: str, folder: Path, **wider: object) -> TextModel:
    return load_model(str(conftest.write_toy(family, folder, **wider)), weights="random", device="cpu")


if __name__ == "__main__":
    sys.exit(main())
