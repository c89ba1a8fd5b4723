"""Flags that commands share. Those of settings default to None, "not given", so that a preset can say otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="TEXT",
        help="Alias (bert-base, bert-tiny, gpt2, …), hub id, folder, or folder and .gguf file.",
        show_default="bert-tiny",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="TEXT",
        help="auto | pretrained | random. auto: pretrained if in the cache, an installed package or the hub; "
        "else random, with a warning.",
        show_default="auto",
    ),
]
Sentences = Annotated[
    list[str] | None,
    typer.Option(
        "--sentence", "-s", metavar="TEXT", help="A private sentence; repeat it for one batch of several."
    ),
]
File = Annotated[
    Path | None, typer.Option("--file", metavar="PATH", help="A text file, one sentence a line.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="INT",
        help="A sentence's class, repeated with --sentence; else drawn from the seed. What another loss takes: 3.5 "
        "(regression), 0,1,1 (one answer a class, one class a token), 2,4 (an answer's first and last token).",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="TEXT",
        help="auto | classification | causal-lm | masked-lm | regression | multi-label | token-classification | "
        "question-answering",
        show_default="auto",
    ),
]
Share = Annotated[
    str | None,
    typer.Option(
        "--share",
        metavar="TEXT",
        help="all | no-embeddings (without every embedding, the output head and what is tied to them) | "
        "attention (query, key, value) | a regular expression on parameter names.",
        show_default="all",
    ),
]
Clients = Annotated[
    list[str] | None,
    typer.Option(
        "--client",
        metavar="SPEC",
        help="How the client trains: name[:key=value,...] or a preset; repeat it, kinds are composed in order.",
        show_default="one-step",
    ),
]
Defenses = Annotated[
    list[str] | None,
    typer.Option(
        "--defense", metavar="SPEC", help="name[:key=value,...]; repeat it, they are applied in order."
    ),
]
Know = Annotated[
    str | None,
    typer.Option(
        "--know",
        metavar="WORDS",
        help="What the server is told beside the gradient: lengths, labels, batch-size (with commas), or nothing. "
        "no-defense and no-client keep from it what was done to the gradient, and how the client trains.",
        show_default="batch-size; lengths of one sentence",
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="INT", help="Weights, client, defense and attack draw from it.", show_default="0"
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="TEXT", help="auto | cpu | cuda[:N] | mps", show_default="auto"),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="INT", help="CPU threads.", show_default="the cores at hand"),
]
Config = Annotated[
    str | None, typer.Option("--config", "-c", metavar="TEXT", help="Preset name or path to a YAML file.")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Any setting, also an attack's own (attack.KEY=VALUE); repeat it. Wins over everything.",
    ),
]
Gradients = Annotated[
    Path | None,
    typer.Option(
        "--gradients",
        metavar="FILE",
        help="Attack the gradient in a file instead; --model names its model, unless that is an alias.",
    ),
]
TruthFile = Annotated[
    Path | None,
    typer.Option("--truth", metavar="FILE", help="Score it against this file; without it scores are null."),
]
Layers = Annotated[
    int | None,
    typer.Option(
        "--layers",
        metavar="N",
        help="Read only the first N layers of a decoder's folder, and of the gradient what is theirs; `span` proves "
        "tokens without the others.",
        show_default="all",
    ),
]
Images = Annotated[
    list[Path] | None,
    typer.Option("--image", "-i", metavar="FILE", help="A private picture; repeat it for one batch."),
]
Indices = Annotated[
    list[int] | None,
    typer.Option("--index", metavar="INT", help="Picture number in --dataset; repeat it.", show_default="0"),
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        metavar="TEXT",
        help="cifar100 | cifar10 | mnist (local cache or hub) | a folder of pictures.",
        show_default="sample pictures that ship with textleak",
    ),
]
Restarts = Annotated[
    int | None,
    typer.Option(
        "--restarts", "-k", metavar="INT", help="Candidates attacked at once.", show_default="the attack's"
    ),
]


def time_limit(default: str, of: str = "") -> typer.models.OptionInfo:
    """How long an attack may take; `of` says which, where there are several."""
    info: typer.models.OptionInfo = typer.Option(
        "--time-limit",
        metavar="TIME",
        help=f"{of}90s, 10m, 1h: the best answer by then counts; its proof may take as long again, a minute at least.",
        show_default=default,
    )
    return info


TimeLimit = Annotated[str | None, time_limit("none but the attack's")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Run folder.", show_default="a new one under $TEXTLEAK_RUNS"),
]
SaveGradients = Annotated[
    bool, typer.Option("--save-gradients", help="Keep the shared gradient in the run folder.")
]
FailAbove = Annotated[
    float | None,
    typer.Option(
        "--fail-above", metavar="FLOAT", help="Exit 3 when the token match rate is above it (for CI)."
    ),
]
Redact = Annotated[bool, typer.Option("--redact", help="No text in any record, nor on the screen.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, progress on stderr.")]
