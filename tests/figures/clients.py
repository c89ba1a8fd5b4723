"""What leaks from kinds of clients: a row for each client and batch size, over the first batches of a file.

    python -m tests.figures.clients --data FILE.tsv --client train-mode --batch-size 1 --batch-size 4

Takes sentences (column sentence) in batches, has the client train on each, attacks what it sends, and counts what came
back. Everything that an attack sees goes through a gradient file and back. A client of several kinds is written with a
plus: `train-mode+fedavg:lr=0.01`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from scipy.stats import binomtest

import textleak
from textleak import scoring, seeds
from textleak.attacks import ATTACKS
from textleak.attacks.base import begin, to_end
from textleak.attacks.replaying import LIKELY, SURE
from textleak.clients.base import Client
from textleak.errors import InputError
from textleak.events import Recovery
from textleak.jobs.parts import chosen_client
from textleak.models import TextModel
from textleak.private.secrets import Secret
from textleak.settings import Choice, parse_assignment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """What came back of one batch.

    Attributes:
        match: token match rate.
        all_right: sentences whose every token is right.
        tokens: of the batch, without those that the tokenizer adds.
        proved: tokens that the recovery says are proved.
        wrong: proved ones that stand at such a place in no sentence of the batch.
        labels: sentences whose class is right.
        likely: tokens that the recovery says are likely, not proved; `likely_wrong` of them stand at such a place in no
            sentence of the batch.
        sure: of the likely ones those that fit far better than any other in their places, and `sure_wrong` of them.
        likely_sentences: sentences that came back with such tokens; `likely_exact` of them are a sentence of the batch
            word for word, `likely_false` have less than half of one in place.
        seconds: CPU time of the attack.
        why: why it stopped, or why the attack refused.
    """

    match: float
    all_right: int
    tokens: int
    proved: int
    wrong: int
    labels: int
    seconds: float
    why: str
    likely: int = 0
    likely_wrong: int = 0
    sure: int = 0
    sure_wrong: int = 0
    likely_sentences: int = 0
    likely_exact: int = 0
    likely_false: int = 0


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="tab-separated, column sentence")
    parser.add_argument("--client", action="append", metavar="SPEC", help="repeatable; one-step by default")
    parser.add_argument("--batch-size", action="append", type=int, help="repeatable; 1 by default")
    parser.add_argument("--limit", type=int, default=20, help="batches")
    parser.add_argument("--skip", type=int, default=0, help="batches left out at the beginning")
    parser.add_argument("--most-words", type=int, default=None, help="leave longer sentences out")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--task", default="auto")
    parser.add_argument("--share", default="no-embeddings")
    parser.add_argument("--know", default=None)
    parser.add_argument("--attack", default="auto")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="of the attack")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--each", action="store_true", help="print every batch too")
    parser.add_argument("--json", type=Path, help="write every batch here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = textleak.load_model(
        options.model,
        weights=options.weights,
        task=options.task,
        weights_seed=seeds.derive(options.seed, "weights"),
    )
    with options.data.open(encoding="utf-8") as file:
        rows = [row["sentence"] for row in csv.DictReader(file, delimiter="\t")]
    sentences = [one for one in rows if options.most_words is None or len(one.split()) <= options.most_words]
    written = {}
    for spec in options.client or ["one-step"]:
        for size in options.batch_size or [1]:
            batches = []
            for batch in measured(options, model, client_of(spec), sentences, size):
                batches.append(batch)
                if options.each:
                    sys.stdout.write(f"  {len(batches) - 1:3d} {dataclasses.asdict(batch)}\n")
                    sys.stdout.flush()
            sys.stdout.write(row(f"{spec}, B = {size}", batches, size) + "\n")
            sys.stdout.flush()
            written[f"{spec} {size}"] = [dataclasses.asdict(batch) for batch in batches]
    if options.json:
        options.json.write_text(json.dumps(written, indent=1), "utf-8")


def client_of(spec: str) -> Client:
    """The client of kinds that are joined by a plus."""
    choices = [Choice.model_validate(part) for part in spec.split("+")]
    return chosen_client(choices)


def measured(
    options: argparse.Namespace, model: TextModel, client: Client, sentences: Sequence[str], size: int
) -> Iterator[Batch]:
    """One batch after the other."""
    attack = ATTACKS.build(options.attack, dict(map(parse_assignment, options.set)))
    for index in range(options.skip, min(options.skip + options.limit, len(sentences) // size)):
        seed = seeds.of_batch(options.seed, index)
        shared, secret = textleak.share(
            model,
            sentences[index * size : (index + 1) * size],
            client=client,
            share=options.share,
            know=options.know,
            seed=seed,
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "gradient.safetensors"
            shared.save(path)
            shared = textleak.SharedGradient.load(path)
        began = time.process_time()
        try:
            recovery = to_end(begin(attack, shared, model, seed=seed))
        except InputError as error:
            yield refused(model, secret, time.process_time() - began, str(error).splitlines()[0])
        else:
            yield answered(model, secret, recovery, time.process_time() - began)


def refused(model: TextModel, secret: Secret, seconds: float, why: str) -> Batch:
    """A batch that the attack gave no answer to."""
    tokens = own_tokens(model, secret)
    return Batch(match=0, all_right=0, tokens=tokens, proved=0, wrong=0, labels=0, seconds=seconds, why=why)


def answered(model: TextModel, secret: Secret, recovery: Recovery, seconds: float) -> Batch:
    """The figures of one answer."""
    scores = scoring.score(recovery, secret, model)
    labels = sum(one.label is not None and one.label == one.recovered_label for one in scores.sentences)
    own = [p for s in recovery.sentences for p in s.positions if p.id >= 0 and not p.special]
    claimed = Counter((p.position, p.id) for p in own if p.proved)
    likely = Counter((p.position, p.id) for p in own if not p.proved and p.channel in LIKELY)
    sure = Counter(
        (p.position, p.id) for p in own if not p.proved and p.channel in LIKELY and p.confidence >= SURE
    )
    said = Counter(s.text for s in recovery.sentences if any(p.channel in LIKELY for p in s.positions))
    rates = sorted((one.token_match_rate for one in scores.sentences if one.recovered in said), reverse=True)
    exact = sum(one.exact for one in scores.sentences if one.recovered in said)
    true = Counter((at, token) for ids in secret.ids for at, token in enumerate(ids))
    return Batch(
        match=scores.token_match_rate,
        all_right=sum(one.exact for one in scores.sentences),
        tokens=own_tokens(model, secret),
        proved=recovery.proved_tokens,
        wrong=(claimed - true).total(),
        labels=labels,
        seconds=seconds,
        why=recovery.stop.name,
        likely=likely.total(),
        likely_wrong=(likely - true).total(),
        sure=sure.total(),
        sure_wrong=(sure - true).total(),
        likely_sentences=said.total(),
        likely_exact=exact,
        likely_false=said.total() - sum(rate >= 0.5 for rate in rates),
    )


def own_tokens(model: TextModel, secret: Secret) -> int:
    """Tokens of a batch without those that the tokenizer adds."""
    around = len(model.prefix_ids) + len(model.suffix_ids)
    return sum(len(ids) - around for ids in secret.ids)


def row(name: str, batches: Sequence[Batch], size: int) -> str:
    """All batches' figures as a line."""
    if not batches:
        return f"{name}: no batch"
    seconds = [batch.seconds for batch in batches]
    return (
        f"{name}: {len(batches) * size} sentences, "
        f"match {statistics.fmean(batch.match for batch in batches):.3f}, "
        f"all right {sum(batch.all_right for batch in batches) / len(batches) / size:.3f}, "
        f"proved {sum(batch.proved for batch in batches)} of {sum(batch.tokens for batch in batches)} tokens, "
        f"wrong ones {sum(batch.wrong for batch in batches)}, "
        f"labels {sum(batch.labels for batch in batches)}, "
        f"median {statistics.median(seconds):.1f} CPU-s a batch (most {max(seconds):.1f})"
        f"{_of_the_likely(batches)}"
    )


def _of_the_likely(batches: Sequence[Batch]) -> str:
    """How often what was called likely was wrong, with the interval of 95 % that sentences give; "" of none."""
    tokens, wrong = sum(one.likely for one in batches), sum(one.likely_wrong for one in batches)
    sentences, false = (
        sum(one.likely_sentences for one in batches),
        sum(one.likely_false for one in batches),
    )
    if not sentences:
        return ""
    exact = sum(one.likely_exact for one in batches)
    sure, sure_wrong = sum(one.sure for one in batches), sum(one.sure_wrong for one in batches)
    surest = f", of {sure} sure ones {share(sure_wrong, sure)}" if sure else ""
    return (
        f"; likely {tokens} tokens, wrong {share(wrong, tokens)}{surest}; {sentences} likely sentences, "
        f"not word for word {share(sentences - exact, sentences)}, less than half right {share(false, sentences)}"
    )


def share(part: int, whole: int) -> str:
    """A share with Wilson's interval of 95 %, as if all were drawn by themselves."""
    low, high = binomtest(part, whole).proportion_ci(method="wilson")
    return f"{part} of {whole} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()
