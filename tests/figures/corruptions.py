"""Is a wrong recovery ever certified? `python -m tests.figures.corruptions` tries two thousand and prints a table.

No corrupted recovery may be verified: a token changed (to any other, to its nearest neighbor, or the last of a
sentence), two tokens swapped, neighbors too, two sentences' tails exchanged. Each batch's true recovery must be, or the
certificate must say why it can't be told. What changes nothing is left out: the same sentences in another order, tokens
whose embeddings are equal.

Models are tiny ones of many families, drawn as their configurations draw them, every other one trained a few steps, and
pretrained ones.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import itertools
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from tests import conftest
from textleak import seeds
from textleak.clients.base import Client
from textleak.clients.view import View, view_of
from textleak.events import Sentence
from textleak.exact.alone import each_alone
from textleak.models import TextModel, load_model
from textleak.models.batches import TextExamples
from textleak.models.decoding import nearest_tokens, to_sentence
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.proof.certificate import certify
from textleak.shared.gradient import SharedGradient

_SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
_RELATIVE = {"relative_attention": True, "position_biased_input": False, "pos_att_type": ["c2p", "p2c"]}
_GROUPED = {**_SMALL, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True}
# Families beside those of conftest: configuration, tokenizer.
FAMILIES: dict[str, tuple[dict[str, object], str]] = {
    **conftest.FAMILIES,
    "deberta": ({**_SMALL, **_RELATIVE, "max_relative_positions": -1}, "wordpiece"),
    "deberta-v2": (
        {**_SMALL, **_RELATIVE, "position_buckets": 16, "norm_rel_ebd": "layer_norm"},
        "wordpiece",
    ),
    "modernbert": (_SMALL, "wordpiece"),
    "nomic_bert": (_SMALL, "wordpiece"),
    "mpnet": (_SMALL, "wordpiece"),
    "gpt_neox": (_SMALL, "gpt2"),
    "phi": ({**_SMALL, "partial_rotary_factor": 0.5}, "gpt2"),
    "gemma3_text": ({**_GROUPED, "sliding_window": 32}, "gpt2"),
    "qwen3": (_GROUPED, "gpt2"),
}
PRETRAINED = ("minilm", "smollm2")
_TRAINED_STEPS = 20
# Part of a tiny model's corruptions that a larger one gets, whose certificates take a hundred times as long.
_OF_LARGER = {"minilm": 0.5, "smollm2": 0.1}
# Query, key and value weights of the first two layers, as the families call them.
FIRST_TWO = r"(layer|h|layers)\.[01]\..*(query|key|value|c_attn|[qkv]_proj)"
SHARES = ("all", "no-embeddings", FIRST_TWO)
KINDS = ("any token", "nearest token", "last token", "two swapped", "neighbors swapped", "tails exchanged")
LARGEST_BATCH = 8
SENTENCES = (
    "the cat sat on the mat.",
    "a dog ran home.",
    "nobody told the doctor about the old letter.",
    "she wrote a book and he read it.",
    "the train to london was never on time.",
    "it is snow.",
    "will the bank account number be private?",
    "john saw mary by the river.",
    "every man and every woman had to be quick.",
    "they moved the meeting to friday morning, and nobody was told about it.",
    "red car, blue ship, green boat.",
    "what would you have read by the sea all day and all night?",
)

Rows = list[list[int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """One certificate.

    Attributes:
        model: its name.
        share: what was shared.
        kind: how the recovery was corrupted, "" for the true one.
        sentences: in the batch.
        tokens: in the batch.
        distance: of the recovery's own gradient.
        verified: what the certificate says.
        reason: why it says nothing.
        seconds: it took.
        text: the corrupted sentences, decoded.
    """

    model: str
    share: str
    kind: str
    sentences: int
    tokens: int
    distance: float | None
    verified: bool | None
    reason: str | None
    seconds: float
    text: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Whether the certificate tells the truth, or why it doesn't tell."""
        return self.verified is (self.kind == "") or (self.verified is None and bool(self.reason))


def recovery(model: TextModel, rows: Sequence[Sequence[int]], secret: Secret) -> tuple[Sentence, ...]:
    """The rows as an attack would answer with them."""
    labels = secret.labels or (None,) * len(rows)
    return tuple(to_sentence(model, row, label=label) for row, label in zip(rows, labels, strict=True))


def corrupted(model: TextModel, secret: Secret, kind: str, draw: random.Random) -> Rows | None:
    """The batch's rows with one corruption; None where this one can't be made or changes nothing."""
    rows = [list(ids) for ids in secret.ids]
    row = draw.randrange(len(rows))
    content = set(model.content_ids.tolist())
    inner = [t for t, token in enumerate(rows[row]) if token in content]
    if kind in ("two swapped", "neighbors swapped"):
        pairs = list(
            itertools.pairwise(inner) if kind == "neighbors swapped" else itertools.combinations(inner, 2)
        )
        if not pairs:
            return None
        t, u = draw.choice(pairs)
        rows[row][t], rows[row][u] = rows[row][u], rows[row][t]
    elif kind == "tails exchanged":
        if len(rows) < 2:
            return None
        other = draw.choice([b for b in range(len(rows)) if b != row])
        cut = draw.randrange(1, min(len(rows[row]), len(rows[other])))
        one, two = rows[row], rows[other]
        rows[row], rows[other] = one[:cut] + two[cut:], two[:cut] + one[cut:]
    else:
        t = inner[-1] if kind == "last token" else draw.choice(inner)
        token = rows[row][t]
        near = draw.random() < 0.5 if kind == "last token" else kind == "nearest token"
        rows[row][t] = nearest_token(model, token) if near else draw.choice(sorted(content))
    return None if _same(model, rows, secret) else rows


def nearest_token(model: TextModel, token: int) -> int:
    """The token of some text whose embedding is nearest, but not equal."""
    table_VE = model.word_embedding.weight.detach()
    excluded = frozenset(range(len(table_VE))) - frozenset(model.content_ids.tolist())
    near = nearest_tokens(table_VE[token][None], table_VE, candidates=16, excluded=excluded)
    return next((i for i in near.ids_NC[0].tolist() if not torch.equal(table_VE[i], table_VE[token])), token)


def _same(model: TextModel, rows: Rows, secret: Secret) -> bool:
    """Whether these are the secret's sentences in some order, tokens with equal embeddings not told apart."""
    table_VE = model.word_embedding.weight.detach()

    def batch(some: Sequence[Sequence[int]]) -> list[tuple[object, ...]]:
        labels = secret.labels or (0,) * len(some)
        rows = (tuple(table_VE[token].cpu().numpy().tobytes() for token in row) for row in some)
        return sorted(zip(rows, labels, strict=True))

    return batch(rows) == batch(secret.ids)


def trials(
    model: TextModel,
    sentences: Sequence[str],
    *,
    number: int,
    shares: Sequence[str] = SHARES,
    sizes: Sequence[int] = range(1, LARGEST_BATCH + 1),
    client: Client | None = None,
    each: int = 6,
    seed: int = 0,
    kept: bool = False,
) -> Iterator[Trial]:
    """Certificates of true and of `number` corrupted recoveries.

    Args:
        model: the public model.
        sentences: to draw batches from.
        number: corrupted recoveries in all.
        shares: what is shared; drawn anew for every recovery.
        sizes: of batches.
        client: that trains on them; None for one plain step.
        each: corruptions of each batch.
        seed: of everything drawn.
        kept: whether sentences are run one by one before, as a proof does, and certified by what is kept of that.
    """
    draw = random.Random(f"{seed} {Path(model.name).name}")
    # Once, not for every certificate; but what is kept is so in both precisions.
    exact = model if kept else model.double()
    done = 0
    while done < number:
        batch = draw.sample(list(sentences), draw.choice([size for size in sizes if size <= len(sentences)]))
        shared = {
            s: share(model, batch, share=s, client=client, know="nothing", seed=draw.randrange(2**31))
            for s in shares
        }
        _, secret = shared[shares[0]]
        if model.num_labels is not None:  # the same classes for every share
            shared = {
                s: share(model, batch, secret.labels, share=s, client=client, know="nothing") for s in shares
            }
        chosen = draw.choice(shares)
        yield _tried(exact, shared[chosen][0], chosen, "", secret.ids, secret, kept=kept)
        for _ in range(min(each, number - done)):
            rows, kind = None, ""
            while rows is None:
                kind = draw.choice(KINDS)
                rows = corrupted(model, secret, kind, draw)
            chosen = draw.choice(shares)
            yield _tried(exact, shared[chosen][0], chosen, kind, rows, secret, kept=kept)
            done += 1


def _tried(
    model: TextModel,
    shared: SharedGradient,
    chosen: str,
    kind: str,
    rows: Sequence[Sequence[int]],
    secret: Secret,
    *,
    kept: bool = False,
) -> Trial:
    began = time.perf_counter()
    view = view_of(shared, model)
    if kept:
        keep(view, rows)
    certificate = certify(view, recovery(model, rows, secret))
    return Trial(
        model=model.name,
        share=chosen,
        kind=kind,
        sentences=len(rows),
        tokens=sum(map(len, rows)),
        distance=certificate.gradient_distance,
        verified=certificate.verified,
        reason=certificate.reason,
        seconds=time.perf_counter() - began,
        text=tuple(model.decode(row) for row in rows) if kind else (),
    )


def keep(view: View, rows: Sequence[Sequence[int]]) -> None:
    """Run sentences, a few in a pass, and keep what a certificate would run again, as the proof of sentences does."""
    for one in (view, view.double()) if view.kept_apart else ():
        for alone in each_alone(one.text_model, list(map(tuple, rows)), [], names=one.kept_apart):
            if alone.parts is not None:
                one.known[alone.row] = alone.parts


def tiny(family: str, folder: Path, *, trained: bool) -> TextModel:
    """A family's tiny model, made in a folder: a classifier of an encoder, a causal decoder."""
    shape, kind = FAMILIES[family]
    tokenizer = conftest.toy_tokenizer(kind)
    roles = ("pad", "bos", "eos", "cls", "sep")
    written = conftest.write_network(family, tokenizer, shape, folder / family, roles=roles)
    model = load_model(str(written), weights="random", device="cpu")
    return _trained(model) if trained else model


def _trained(model: TextModel) -> TextModel:
    """The model after a few steps of Adam on the sentences."""
    network = copy.deepcopy(model.network)
    learning = model.with_network(network)
    batch, targets = learning.targets(learning.encode(SENTENCES), None, seeds.generator(0, "client"))
    examples = TextExamples(batch=batch, targets=targets)
    optimizer = torch.optim.Adam([p.requires_grad_(True) for p in network.parameters()], lr=1e-3)
    for _ in range(_TRAINED_STEPS):
        optimizer.zero_grad()
        examples.loss(learning).backward()
        optimizer.step()
    return model.with_network(network)


def suite(
    number: int, *, pretrained: Sequence[str] = PRETRAINED, seed: int = 0, kept: bool = False
) -> Iterator[Trial]:
    """Trials on every family and on pretrained models: `number` corrupted recoveries in all."""
    parts = {**dict.fromkeys(FAMILIES, 1.0), **{name: _OF_LARGER[name] for name in pretrained}}
    each = math.ceil(number / sum(parts.values()))
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, part) in enumerate(parts.items()):
            trained = index % 2 == 1
            model = load_model(name) if name in pretrained else tiny(name, Path(folder), trained=trained)
            known = f"{name} ({model.weights if name in pretrained else 'trained' if trained else 'random'})"
            shares = ("all", "no-embeddings", "attention")
            some = math.ceil(each * part)
            for trial in trials(model, SENTENCES, number=some, shares=shares, seed=seed, kept=kept):
                yield dataclasses.replace(trial, model=known)


def table(found: Sequence[Trial]) -> Iterator[str]:
    """What came of the trials, a line a model."""
    heads = ("true", "verified", "untold", "farthest", "wrong", "verified", "nearest")
    yield f"{'model':24s} " + " ".join(f"{head:>9s}" for head in heads)
    for name in [*dict.fromkeys(trial.model for trial in found), "all"]:
        some = [trial for trial in found if name in (trial.model, "all")]
        true, wrong = ([t for t in some if bool(t.kind) is kind] for kind in (False, True))
        farthest = max((t.distance or 0.0 for t in true), default=0.0)
        nearest = min((t.distance for t in wrong if t.distance is not None), default=math.inf)
        yield (
            f"{name:24s} {len(true):9d} {sum(t.verified is True for t in true):9d} "
            f"{sum(t.verified is None for t in true):9d} {farthest:9.1e} {len(wrong):9d} "
            f"{sum(t.verified is True for t in wrong):9d} {nearest:9.1e}"
        )


def main() -> int:
    """Parse, try, print; 1 where a certificate was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--number", type=int, default=2000, help="corrupted recoveries in all")
    parser.add_argument(
        "--model", action="append", help="one alias, repeatable; the tiny families and pretrained ones"
    )
    parser.add_argument(
        "--data", type=Path, help="sentences for --model: tab-separated, with a column sentence"
    )
    parser.add_argument("--share", action="append", help="repeatable; drawn for every recovery, with --model")
    parser.add_argument("--each", type=int, default=6, help="corruptions of each batch, with --model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kept", action="store_true", help="certify by what the proof of sentences keeps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every trial here too, one a line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = []
    for trial in (
        _of_models(options) if options.model else suite(options.number, seed=options.seed, kept=options.kept)
    ):
        found.append(trial)
        if options.json:
            with options.json.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(trial)) + "\n")
        if not trial.right:
            sys.stdout.write(f"WRONG {trial}\n")
            sys.stdout.flush()
    sys.stdout.write("\n".join(table(found)) + "\n")
    return int(not all(trial.right for trial in found))


def _of_models(options: argparse.Namespace) -> Iterator[Trial]:
    """Trials on the models that were named."""
    sentences: Sequence[str] = SENTENCES
    if options.data is not None:
        with options.data.open(encoding="utf-8") as file:
            sentences = [row["sentence"] for row in csv.DictReader(file, delimiter="\t")]
    for name in options.model:
        yield from trials(
            load_model(name),
            sentences,
            number=math.ceil(options.number / len(options.model)),
            shares=options.share or SHARES,
            each=options.each,
            seed=options.seed,
            kept=options.kept,
        )


if __name__ == "__main__":
    sys.exit(main())
