"""Is a wrong recovery ever certified? `python -m tests.figures.corruptions --data FILE.tsv` tries a thousand of them.

Each batch's true recovery must be verified and each corrupted one must not: a token changed (to any other, to its
nearest neighbor, or the last of a sentence), two tokens swapped, two sentences' tails exchanged. What changes nothing
is left out: the same sentences in another order, tokens whose embeddings are equal.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

import textleak
from textleak.clients.view import view_of
from textleak.events import Sentence
from textleak.models import TextModel
from textleak.models.decoding import nearest_tokens, to_sentence
from textleak.private.secrets import Secret
from textleak.private.share import share
from textleak.proof.certificate import certify
from textleak.shared.gradient import SharedGradient

MODELS = ("minilm", "bert-base", "gpt2", "smollm2")
# Query, key and value weights of the first two layers, as the families call them.
FIRST_TWO = r"(layer|h|layers)\.[01]\..*(query|key|value|c_attn|[qkv]_proj)"
SHARES = ("all", "no-embeddings", FIRST_TWO)
KINDS = ("any token", "nearest token", "last token", "two swapped", "tails exchanged")
LARGEST_BATCH = 8

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
    seconds: float
    text: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Whether the certificate tells the truth."""
        return self.verified is (self.kind == "")


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
    if kind == "two swapped":
        if len(inner) < 2:
            return None
        t, u = draw.sample(inner, 2)
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
        rows[row][t] = _nearest(model, token) if near else draw.choice(sorted(content))
    return None if _same(model, rows, secret) else rows


def _nearest(model: TextModel, token: int) -> int:
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
    each: int = 6,
    seed: int = 0,
) -> Iterator[Trial]:
    """Certificates of true and of `number` corrupted recoveries.

    Args:
        model: the public model.
        sentences: to draw batches of 1 to 8 from.
        number: corrupted recoveries in all.
        shares: what is shared; drawn anew for every recovery.
        each: corruptions of each batch.
        seed: of everything drawn.
    """
    draw = random.Random(f"{seed} {model.name}")
    exact = model.double()  # once, not for every certificate
    done = 0
    while done < number:
        batch = draw.sample(list(sentences), draw.randint(1, min(LARGEST_BATCH, len(sentences))))
        shared = {s: share(model, batch, share=s, know="nothing", seed=draw.randrange(2**31)) for s in shares}
        _, secret = shared[shares[0]]
        if model.num_labels is not None:  # the same classes for every share
            shared = {s: share(model, batch, secret.labels, share=s, know="nothing") for s in shares}
        chosen = draw.choice(shares)
        yield _tried(exact, shared[chosen][0], chosen, "", secret.ids, secret)
        for _ in range(min(each, number - done)):
            rows, kind = None, ""
            while rows is None:
                kind = draw.choice(KINDS)
                rows = corrupted(model, secret, kind, draw)
            chosen = draw.choice(shares)
            yield _tried(exact, shared[chosen][0], chosen, kind, rows, secret)
            done += 1


def _tried(
    model: TextModel,
    shared: SharedGradient,
    chosen: str,
    kind: str,
    rows: Sequence[Sequence[int]],
    secret: Secret,
) -> Trial:
    began = time.perf_counter()
    certificate = certify(view_of(shared, model), recovery(model, rows, secret))
    return Trial(
        model=model.name,
        share=chosen,
        kind=kind,
        sentences=len(rows),
        tokens=sum(map(len, rows)),
        distance=certificate.gradient_distance,
        verified=certificate.verified,
        seconds=time.perf_counter() - began,
        text=tuple(model.decode(row) for row in rows) if kind else (),
    )


def main() -> int:
    """Parse, try, print; 1 where a certificate was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="tab-separated, with a column sentence")
    parser.add_argument("--number", type=int, default=1000, help="corrupted recoveries in all")
    parser.add_argument(
        "--model", action="append", help="repeatable; minilm, bert-base, gpt2, smollm2 by default"
    )
    parser.add_argument("--share", action="append", help="repeatable; drawn for every recovery")
    parser.add_argument("--each", type=int, default=6, help="corruptions of each batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write every trial here too, one a line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with options.data.open(encoding="utf-8") as file:
        sentences = [row["sentence"] for row in csv.DictReader(file, delimiter="\t")]
    names = options.model or MODELS
    found: list[Trial] = []
    for index, name in enumerate(names):
        number = options.number // len(names) + (index < options.number % len(names))
        model = textleak.load_model(name)
        shares = options.share or SHARES
        some = []
        for trial in trials(
            model, sentences, number=number, shares=shares, each=options.each, seed=options.seed
        ):
            some.append(trial)
            if options.json:
                with options.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(dataclasses.asdict(trial)) + "\n")
            if not trial.right:
                sys.stdout.write(f"WRONG {trial}\n")
        for share_ in shares:
            sys.stdout.write(_line(f"{name} ({model.weights})", share_, some) + "\n")
        sys.stdout.flush()
        found += some
    wrong = sum(not trial.right for trial in found)
    sys.stdout.write(
        f"{sum(bool(t.kind) for t in found)} corrupted recoveries, {sum(bool(t.kind and t.verified) for t in found)} "
        f"verified; {sum(not t.kind for t in found)} true ones, "
        f"{sum(bool(not t.kind and t.verified) for t in found)} verified\n"
    )
    return int(wrong > 0)


def _line(name: str, share_: str, found: Sequence[Trial]) -> str:
    true = [t.distance for t in found if t.share == share_ and not t.kind and t.distance is not None]
    wrong = [t.distance for t in found if t.share == share_ and t.kind and t.distance is not None]
    return (
        f"{name:24s} {share_[:16]:16s} true: {len(true)}, distance at most {max(true, default=0):.1e}; "
        f"corrupted: {len(wrong)}, at least {min(wrong, default=0):.1e}"
    )


if __name__ == "__main__":
    sys.exit(main())
