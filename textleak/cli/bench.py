"""`textleak bench`: candidates a second, against gradients formed one at a time and against what the machine can do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from textleak.cli import common, flags

if TYPE_CHECKING:
    from torch import Tensor

    from textleak.matching import Leaves, Objective
    from textleak.matching.limit import Work
    from textleak.models import TextModel

OBJECTIVES = ("squared-l2", "cosine", "cosine-global", "tag")
DTYPES = ("float32", "float64", "bfloat16")


@common.guarded
def command(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="TEXT",
            help="Alias, hub id, folder or .gguf file; repeatable.",
            show_default="minilm, bert-tiny",
        ),
    ] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option(
            "--tokens", metavar="INT", help="Tokens T of the sentence; repeatable.", show_default="14"
        ),
    ] = None,
    restarts: Annotated[
        list[int] | None,
        typer.Option("--restarts", "-k", metavar="INT", help="Candidates K; repeatable.", show_default="16"),
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", metavar="TEXT", help=" | ".join(OBJECTIVES))
    ] = "squared-l2",
    weights: flags.Weights = "random",
    task: flags.Task = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            "--dtype", metavar="TEXT", help=f"{' | '.join(DTYPES)}; repeatable.", show_default="float32"
        ),
    ] = None,
    device: flags.Device = None,
    threads: flags.Threads = None,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="INT", help="Alternating measurements.", min=1)
    ] = 5,
    seed: flags.Seed = None,
    json_: flags.Json = False,
) -> None:
    """Measure the engine: gradients of K candidates at once (factored) against one by one (formed).

    And against the limit: the time that the products alone would take on this machine.
    """
    from textleak.errors import InputError, unknown_name
    from textleak.jobs.parts import set_threads
    from textleak.models import load_model

    lengths, counts = tokens or [14], restarts or [16]
    for name, values in (("--tokens", lengths), ("--restarts", counts)):
        for value in values:
            if value < 1:
                raise InputError(f"{name} can't be {value}.", why="There must be at least one.")
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)
    set_threads(threads)
    rows = []
    for name, precision in itertools.product(model or ["minilm", "bert-tiny"], dtype or ["float32"]):
        public = load_model(
            name, weights=weights or "random", task=task or "auto", device=device or "auto", dtype=precision
        )
        for length in lengths:
            for count in counts:
                case = text_case(public, tokens=length, candidates=count, seed=seed or 0)
                with common.stderr().status(f"{name}: K = {count}, T = {length}"):
                    rows.append(measure(case, tokens=length, objective=objective, repeats=repeats))
    if json_:
        common.print_json(rows)
    else:
        _show(rows)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextCase:
    """A sentence's shared gradient, and K dummies to match it with.

    Attributes:
        model: the public model.
        gradients: of every parameter but the word embedding, which dummy embeddings leave no trace in.
        leaves: dummies "inputs" (K, 1, T, E), "mask" and "weights", and "label_logits" (K, 1, 1, C) or, for
            language models, the tokens as "labels" (K, 1, T).
        optimized: names of the leaves to differentiate by.
    """

    model: TextModel
    gradients: dict[str, Tensor]
    leaves: dict[str, Tensor]
    optimized: tuple[str, ...]

    def losses(self, leaves: Leaves) -> Tensor:
        """The model function: losses (K,)."""
        from textleak.models import Targets

        labels = leaves["label_logits"].softmax(-1) if "label_logits" in leaves else leaves["labels"]
        targets = Targets(labels=labels, weights=leaves["weights"])
        return self.model.loss(leaves["inputs"], leaves["mask"], targets)

    @property
    def beside(self) -> Work:
        """What a candidate takes beside the matched layers: attention, and a vocabulary's head that isn't matched."""
        from textleak.matching.limit import layer_work, product_work
        from textleak.matching.linear import fewer

        tokens, config = self.leaves["mask"].shape[-1], self.model.network.config.get_text_config()
        heads: int = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        work: Work = 2 * config.num_hidden_layers * product_work(tokens**2 * heads * size)
        head = self.model.head
        matched = {id(self.model.parameters[name]) for name in self.gradients}
        if self.model.task != "classification" and head is not None and id(head.weight) not in matched:
            weights_KT = self.leaves["weights"].flatten(1)
            asked = int(weights_KT.count_nonzero())
            live = asked / len(weights_KT) if fewer(asked, weights_KT.numel()) else tokens
            work += layer_work(tokens, live, self.model.vocab_size * config.hidden_size)
        return work


def text_case(model: TextModel, *, tokens: int, candidates: int, seed: int) -> TextCase:
    """A sentence of random tokens, its gradient, and dummies as far from it as a first guess is.

    Args:
        model: the public model.
        tokens: T, the tokenizer's own special ones counted.
        candidates: K.
        seed: draws all of it.

    Raises:
        InputError: no such sentence can be.
    """
    import torch

    from textleak.errors import InputError
    from textleak.models import Batch
    from textleak.models.batches import TextExamples
    from textleak.models.gradient import formed_gradient

    generator = torch.Generator().manual_seed(seed)
    around = len(model.prefix_ids) + len(model.suffix_ids)
    if not around < tokens <= model.max_length:
        raise InputError(
            f"--tokens {tokens} can't be measured.",
            why=f"A sentence for {model.name} has {around + 1} to {model.max_length} tokens.",
        )
    content = model.content_ids.cpu()
    drawn = content[torch.randint(len(content), (tokens - around,), generator=generator)].tolist()
    ids_BT = torch.tensor([[*model.prefix_ids, *drawn, *model.suffix_ids]], device=model.device)
    batch = Batch(ids_BT=ids_BT, mask_BT=torch.ones_like(ids_BT))
    read, targets = model.targets(batch, None, generator)
    table = model.word_embedding.weight
    names = [name for name, parameter in model.parameters.items() if parameter is not table]
    gradients = formed_gradient(model, TextExamples(batch=read, targets=targets), names)
    K = candidates
    noise = torch.randn((K, 1, tokens, model.embedding_size), generator=generator)
    leaves = {
        "inputs": noise.to(table) * table.detach().float().std().to(table),
        "mask": batch.mask_BT.expand(K, 1, tokens).contiguous(),
        "weights": targets.weights.expand(K, *targets.weights.shape).contiguous(),
    }
    if model.task == "classification":
        leaves["label_logits"] = torch.randn((K, 1, 1, model.classes), generator=generator).to(
            device=model.device, dtype=model.loss_dtype
        )
        return TextCase(model=model, gradients=gradients, leaves=leaves, optimized=("inputs", "label_logits"))
    leaves["labels"] = targets.labels.expand(K, *targets.labels.shape).contiguous()
    return TextCase(model=model, gradients=gradients, leaves=leaves, optimized=("inputs",))


def _objective(name: str) -> Objective:
    from textleak.matching import TAG, CosineGlobal, CosinePerTensor, SquaredL2

    found: dict[str, Objective] = {
        "squared-l2": SquaredL2(),
        "cosine": CosinePerTensor(),
        "cosine-global": CosineGlobal(),
        "tag": TAG(),
    }
    return found[name]


def measure(case: TextCase, *, tokens: int, objective: str, repeats: int) -> dict[str, Any]:
    """One row of `bench --json`."""
    from textleak.matching.bench import Candidates, benchmark

    candidates = Candidates(
        model_function=case.losses, leaves=case.leaves, wrt=case.optimized, beside=case.beside
    )
    row = benchmark(case.model.network, candidates, case.gradients, _objective(objective), repeats=repeats)
    return {
        "model": case.model.name,
        "hidden_size": case.model.hidden_size,
        "tokens": tokens,
        "objective": objective,
        **dataclasses.asdict(row),
    }


def _show(rows: Sequence[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(
        "model",
        "dtype",
        "D",
        "K",
        "T",
        "objective",
        "factored/s",
        "formed/s",
        "speedup",
        "memory",
        "difference",
        "step / limit",
        "evaluations/s",
        "evaluation / limit",
        "products",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for row in rows:
        table.add_row(
            row["model"],
            row["dtype"],
            str(row["hidden_size"]),
            str(row["candidates"]),
            str(row["tokens"]),
            row["objective"],
            f"{row['factored_candidates_per_second']:.1f}",
            f"{row['formed_candidates_per_second']:.2f}",
            f"{row['speedup']:.1f} ± {row['spread']:.1f}",
            f"1/{1 / row['memory_ratio']:.1f}" if row["memory_ratio"] else "?",
            f"{row['max_relative_difference']:.1e}",
            f"{row['step_share']:.2f} of {row['step_flops'] / 1e9:.3g} GFLOP",
            f"{row['evaluations_per_second']:.1f}",
            f"{row['evaluation_share']:.2f} of {row['evaluation_flops'] / 1e9:.3g} GFLOP",
            f"{row['product_flops_per_second'] / 1e9:.0f} GFLOP/s",
        )
    common.stdout().print(table)
