"""The suites: gradient files, run folders and command lines that somebody has changed, each from a seed."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tests.adapters import adapted
from tests.conftest import write_toy
from tests.hostile import trial, values
from tests.hostile.trial import Tally
from tests.synthetic import cell, done, failed, sentence, write
from textleak import runs
from textleak.clients import CLIENTS, composed
from textleak.defenses import DEFENSES
from textleak.errors import TextleakError
from textleak.models import loading
from textleak.models.loading.text import TextRequest
from textleak.private.share import share
from textleak_tui import export
from textleak_tui.listing import read_row
from textleak_tui.recording import Recording

FILES, FOLDERS, LINES, CHECKPOINTS = 1500, 1500, 500, 200
SECONDS_TO_ATTACK = 0.5


@contextlib.contextmanager
def models_kept() -> Iterator[None]:
    """Load each model once, and give each attack little time: what is tried is what is done with a file."""
    from textleak.attacks import base

    before, kept, begin = loading.text.load, {}, base.begin

    @functools.wraps(before)
    def load(request: TextRequest) -> Any:
        if request not in kept:
            kept[request] = before(request)
        return kept[request]

    loading.text.load = load
    base.begin = functools.partial(begin, time_limit=SECONDS_TO_ATTACK)
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        loading.text.load, base.begin = before, begin
        torch.set_num_threads(threads)


# Gradient files


def gradient_files(folder: Path) -> list[tuple[Path, Path]]:
    """Whole ones of several kinds, each with its model."""
    found = []
    for family, options in (
        ("bert", {}),
        ("bert", {"share": "no-embeddings"}),
        ("bert", {"defenses": [DEFENSES.build("gaussian", {"sigma": 1e-3})]}),
        ("bert", {"client": composed([CLIENTS.build("fedavg", {"steps": 2})])}),
        ("gpt2", {}),
    ):
        place = folder / family if (folder / family).exists() else write_toy(family, folder)
        model = loading.text.load(TextRequest(name=str(place), weights="random"))
        for batch in (["the cat sat"], ["the cat sat", "the dog ran home"]):
            shared, secret = share(model, batch, know="lengths,batch-size", **options)
            path = folder / f"{len(found)}.safetensors"
            shared.save(path)
            secret.save(path.with_suffix(".truth.json"))
            found.append((path, place))
    return found


def _filled(value: float) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.full_like(tensor, value)


TENSORS: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN": _filled(float("nan")),
    "infinity": _filled(float("inf")),
    "the largest float": _filled(torch.finfo(torch.float32).max),
    "half of it": _filled(1.7e38),
    "a denormal": _filled(1e-45),
    "zeros": torch.zeros_like,
    "ones": torch.ones_like,
    "times 1e30": lambda tensor: (tensor.double() * 1e30).clamp(-3e38, 3e38).to(tensor),
    "times 1e-30": lambda tensor: tensor * 1e-30,
    "negated": torch.neg,
    "noise": lambda tensor: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)).to(tensor),
    "float64": Tensor.double,
    "largest float64": lambda tensor: torch.full(tensor.shape, 1.7e308, dtype=torch.float64),
    "float16": Tensor.half,
    "bfloat16": Tensor.bfloat16,
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "integers": Tensor.int,
    "booleans": Tensor.bool,
    "flat": Tensor.flatten,
    "many dimensions": lambda tensor: tensor.reshape(*[1] * 60, *tensor.shape),
    "turned": lambda tensor: tensor.flip(0),
    "one spike": lambda tensor: torch.zeros_like(tensor).index_fill_(0, torch.tensor([0]), 3e38),
    "one value alone": lambda tensor: tensor * (torch.arange(tensor.numel()).view_as(tensor) == 0),
}


def changed_file(source: Path, target: Path, rng: random.Random) -> str:
    """Write a changed copy of a gradient file; what was done in words."""
    kind = rng.choice(("bytes", "header", "metadata", "metadata", "tensors", "tensors"))
    if kind == "bytes":
        content, words = values.torn(source.read_bytes(), rng)
        target.write_bytes(content)
        return f"bytes {words}"
    if kind == "header":
        content = source.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header, words = values.changed(json.loads(content[8 : 8 + size]), rng)
        new = values.written(header)
        target.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])
        return f"header {words}"
    with safe_open(source, framework="pt") as file:
        header = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    if kind == "metadata":
        key = rng.choice(sorted(header))
        try:
            value, words = values.changed({key: json.loads(header[key])}, rng)
        except ValueError:
            value, words = values.changed({key: header[key]}, rng)
        header.pop(key)
        for name, new in value.items():
            text = new if isinstance(new, str) else values.written(new).decode()
            header[name.encode("utf-8", "replace").decode()] = text.encode("utf-8", "replace").decode()
        words = f"metadata {words}"
    else:
        change = rng.choice(sorted(TENSORS))
        names = rng.choice((sorted(tensors), rng.sample(sorted(tensors), 1), rng.sample(sorted(tensors), 3)))
        tensors |= {name: TENSORS[change](tensors[name]).contiguous() for name in names}
        words = f"{change} in {'all' if len(names) > 3 else names}"
    save_file(tensors, target, header)
    return words


def try_files(folder: Path, count: int, seed: int) -> Tally:
    """Attack changed gradient files."""
    tally, target, out = Tally(), folder / "changed.safetensors", folder / "out"
    with models_kept():
        sources = gradient_files(folder)
        for attack in ("embedding", "auto"):  # what they need is loaded once, and no case's fault
            source, model = sources[0]
            trial.whole(
                ["run", "-m", str(model), "--gradients", str(source), "-a", attack, "--out", str(out)]
            )
            shutil.rmtree(out)
        for number in range(count):
            rng = random.Random(f"file {seed} {number}")
            source, model = rng.choice(sources)
            words = changed_file(source, target, rng)
            attack = rng.choice(("auto", "embedding", "span", "match"))
            # How long an attack looks for an answer is asked for; what a file says is not to make it longer.
            options = ["--set", "attack.time_limit=0.5"] if attack in ("auto", "match") else []
            options += ["--set", "attack.steps=3", "-k", "2"] if attack == "match" else []
            truth = ["--truth", str(source.with_suffix(".truth.json"))] if rng.random() < 0.3 else []
            arguments = ["run", "-m", str(model), "--gradients", str(target), "-a", attack, *options, *truth]
            case = f"{number}: {source.stem}, {words}, {attack}"
            trial.command([*arguments, "--out", str(out), "--threads", "1"], case, tally)
            shutil.rmtree(out, ignore_errors=True)
    return tally


# Run folders


def folders(folder: Path) -> list[Path]:
    """Whole ones: of two runs and an evaluation."""
    model = write_toy("bert", folder)
    made = []
    for name, extra in (("run", []), ("redacted", ["--redact"])):
        made.append(folder / name)
        arguments = [
            "run",
            "-m",
            str(model),
            "-s",
            "the cat sat",
            "-a",
            "embedding",
            "--threads",
            "1",
            *extra,
        ]
        trial.whole([*arguments, "--out", str(made[-1])])
    of = cell(defense=("gaussian:sigma=0.001",), client=("fedavg:steps=2",))
    records = [
        done(of, b, sentence(["the", "cat"], ["the", x], secrets=[("cat", True)])) for b, x in enumerate("ab")
    ]
    settings = {"model": ["bert"], "attack": ["match"], "seed": [0], "data": ["sample"]}
    return [*made, write(folder / "evaluation", [*records, failed(of, 2)], settings, batches=3)]


def _odd(path: Path, rng: random.Random) -> str:
    """Put something else in a file's place."""
    kind = rng.choice(("pipe", "folder", "loop", "gone", "unreadable link"))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "unreadable link":
        path.symlink_to("/nowhere/at/all")
    return kind


def changed_folder(path: Path, rng: random.Random) -> str:
    """Change a file in a folder; what was done in words."""
    files = sorted(one for one in path.iterdir() if one.is_file() and one.suffix != ".lock")
    if not files:
        return "nothing left"
    file = rng.choice(files)
    kind = rng.choice(("values",) * 6 + ("bytes", "odd"))
    if kind == "odd":
        return f"{file.name}: {_odd(file, rng)}"
    lines = file.read_bytes().splitlines() if file.suffix == ".jsonl" else [file.read_bytes()]
    at = rng.randrange(len(lines)) if lines else 0
    try:
        value, words = values.changed(json.loads(lines[at]), rng)
    except (ValueError, LookupError, RecursionError):  # it was changed before, or there is nothing in it
        kind = "bytes"
    if kind == "bytes":
        content, words = values.torn(file.read_bytes(), rng)
        file.write_bytes(content)
        return f"{file.name}: {words}"
    lines[at] = values.written(value)
    file.write_bytes(b"\n".join(lines) + b"\n")
    return f"{file.name} line {at}: {words}"


def look(path: Path) -> None:
    """What the app does with a folder."""
    read_row(path)
    recording = Recording(path)
    while not recording.whole:
        recording.read()
    for place in range(len(recording)):
        recording.state(place)
    recording.standing()
    export.summary(path, recording.state())
    json.dumps(export.run_json(path, recording.state()), default=str)


def try_folders(folder: Path, count: int, seed: int) -> Tally:
    """Report on, compare, list and replay changed folders."""
    tally, changed = Tally(), folder / "changed"
    sources = folders(folder)
    for number in range(count):
        rng = random.Random(f"folder {seed} {number}")
        source = rng.choice(sources)
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(source, changed)
        words = [changed_folder(changed, rng) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
        case = f"{number}: {source.name}, {'; '.join(words)}"
        way = rng.choice(("report", "json", "compare", "app", "app", "list"))
        if way == "report":
            trial.command(["report", str(changed)], case, tally)
        elif way == "json":
            trial.command(["report", str(changed), "--json"], case, tally)
        elif way == "compare":
            trial.command(["compare", str(source), str(changed)], case, tally)
        elif way == "list":
            trial.call(
                lambda: [runs.read_run(path) for path in runs.list_runs(folder)],
                (TextleakError,),
                case,
                tally,
            )
        else:
            trial.call(functools.partial(look, changed), (TextleakError,), case, tally)
    shutil.rmtree(changed, ignore_errors=True)
    return tally


# Command lines


@dataclasses.dataclass(frozen=True)
class _Words:
    """What command lines are made of."""

    folder: Path

    def flags(self, command: str) -> list[str]:
        import typer.main

        from textleak.cli import app

        group: Any = typer.main.get_command(app)
        options = [option for one in group.commands[command].params for option in one.opts]
        return sorted(option for option in options if option.startswith("-"))

    def value(self, rng: random.Random) -> str:
        odd = [str(value)[:20_000].replace("\x00", "") for value in values.VALUES]
        usual = [
            *("bert-tiny", "the cat sat", "sample", "embedding", "random", "cpu", "1", "gaussian:sigma=1e-3"),
            *("lengths", "all", "attention", "fedavg:steps=2", "auto", "float64", "lenet", "nothing", "squared-l2"),
            *(str(self.folder), str(self.folder / "absent"), str(self.folder / "bert"), "seed=1", "x=y", "."),
            *("attack.steps=2", "[" * 2000, "a.b.c=1", "attack={}", "defenses=[[]]", "!!python/object:os.system"),
            *("&a [*a]", "/", "~x/y", "(" * 500, "(a+)+$", "gaussian:sigma=nan", "clip:max_norm=-1"),
            *("prune:ratio=2", "cuda:99", os.fsdecode(b"\xff")),
        ]  # fmt: skip
        return rng.choice(odd if rng.random() < 0.4 else usual)


# With which a command would do its work on something small.
_BASE: dict[str, tuple[str, ...]] = {
    "run": ("-s", "the cat sat", "-a", "embedding", "--threads", "1"),
    "share": ("-s", "the cat sat", "--threads", "1"),
    "eval": ("--dry-run",),
    "image": ("--steps", "1", "--set", "size=8", "--threads", "1"),
}


def line(folder: Path, rng: random.Random) -> list[str]:
    """A command line that somebody might type, or might not."""
    words = _Words(folder)
    commands = [
        "run",
        "run",
        "run",
        "share",
        "eval",
        "image",
        "report",
        "compare",
        "models",
        "attacks",
        "clients",
        "defenses",
    ]
    command = rng.choice(commands)
    model = ["-m", str(folder / "bert"), "--weights", "random"] if command in ("run", "share") else []
    found = [command, *_BASE.get(command, ()), *model]
    if command == "share":
        found += ["--out", str(folder / "shared")]
    flags, base = words.flags(command), len(found)
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.75:
            found += [rng.choice(flags), words.value(rng)]
        elif kind < 0.85:
            found.append(words.value(rng))
        elif kind < 0.95 and len(found) > base:  # what keeps the work small stays
            del found[rng.randrange(base, len(found))]
        else:
            found[rng.choice((0, *range(base, len(found))))] = words.value(rng)
    return found


def try_lines(folder: Path, count: int, seed: int) -> Tally:
    """Run command lines that were made at random."""
    tally = Tally()
    model = str(write_toy("bert", folder))
    trial.whole(["run", "-m", model, "-s", "the cat sat", "-a", "embedding"])
    trial.whole(["image", "--steps", "1"])
    before = Path.cwd()
    place = folder / "here"  # what has a name without a folder is written here
    place.mkdir()
    os.chdir(place)
    try:
        for number in range(count):
            arguments = line(folder, random.Random(f"line {seed} {number}"))
            case = f"{number}: {' '.join(repr(one[:60]) for one in arguments)}"
            trial.command(arguments, case, tally, codes=frozenset({0, 2, 3}))
    finally:
        os.chdir(before)
    return tally


# Checkpoints and adapters


def checkpoints(folder: Path) -> list[tuple[Path, list[str]]]:
    """Whole trainings of several kinds, each in a folder, with what an audit is told of it."""
    import peft

    place = write_toy("bert", folder)
    model = loading.text.load(TextRequest(name=str(place), weights="random", task="classification"))
    network = copy.deepcopy(model.network)
    made = []

    def saved(name: str, save: Callable[[Path], object], *told: str) -> None:
        for when, move in (("a", 0.0), ("b", 1e-3)):
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(move)
            save(folder / name / when)
        made.append((folder / name, list(told)))

    def whole(path: Path) -> None:
        network.save_pretrained(path)
        model.tokenizer.save_pretrained(path)

    def sharded(path: Path) -> None:
        network.save_pretrained(path, max_shard_size="20KB")
        model.tokenizer.save_pretrained(path)

    def pickled(path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        torch.save({"state_dict": network.state_dict(), "epoch": 1}, path.with_suffix(".pt"))

    saved("whole", whole)
    saved("sharded", sharded)
    saved("pickled", pickled, "-m", str(folder / "whole" / "a"))
    network = adapted(network, peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))
    saved("adapter", lambda path: network.save_pretrained(path), "-m", str(folder / "whole" / "a"))
    return made


class _Runs:
    """A pickle that runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("RAN",)


def changed_checkpoint(path: Path, rng: random.Random) -> str:
    """Change a file of a checkpoint; what was done in words."""
    files = sorted(one for one in path.rglob("*") if one.is_file() and one.name != "README.md")
    file = rng.choice([one for one in files if "token" not in one.name] or files)
    kind = rng.choice(("bytes", "odd", "values", "values", "values", "code"))
    name = file.relative_to(path)
    if kind == "odd":
        return f"{name}: {_odd(file, rng)}"
    if kind == "code":
        target = file.with_suffix(".pt") if file.suffix == ".pt" else file.parent / "pytorch_model.bin"
        torch.save({"classifier.bias": _Runs()}, target)
        if target != file and file.suffix == ".safetensors":
            file.unlink()
        return f"{target.name}: a pickle that runs code"
    change = {".json": _changed_json, ".safetensors": _changed_tensors}.get(file.suffix)
    if kind == "values" and change is not None:
        with contextlib.suppress(ValueError, RecursionError, SafetensorError):  # it was torn before
            return f"{name}: {change(file, rng)}"
    content, words = values.torn(file.read_bytes(), rng)
    file.write_bytes(content)
    return f"{name}: {words}"


def _changed_json(file: Path, rng: random.Random) -> str:
    value, words = values.changed(json.loads(file.read_bytes()), rng)
    file.write_bytes(values.written(value))
    return words


def _changed_tensors(file: Path, rng: random.Random) -> str:
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no dict
    change, name = rng.choice(sorted(TENSORS)), rng.choice(sorted(tensors))
    tensors[name] = TENSORS[change](tensors[name]).contiguous()
    save_file(tensors, file, {"format": "pt"})
    return f"{change} in {name}"


def try_checkpoints(folder: Path, count: int, seed: int) -> Tally:
    """Audit changed checkpoints and adapters; nothing in them is run."""
    tally, changed, out = Tally(), folder / "changed", folder / "out"
    sources = checkpoints(folder)
    options = [
        "--client",
        "fedavg:lr=0.01,steps=1",
        "--time-limit",
        "0.5s",
        "--threads",
        "1",
        "--out",
        str(out),
    ]
    here = Path.cwd()
    os.chdir(folder)  # where code that runs would leave its mark
    try:
        for number in range(count):
            rng = random.Random(f"checkpoint {seed} {number}")
            source, told = rng.choice(sources)
            shutil.rmtree(changed, ignore_errors=True)
            shutil.copytree(source, changed)
            words = [changed_checkpoint(changed, rng) for _ in range(rng.choice((1, 1, 2)))]
            case = f"{number}: {source.name}, {'; '.join(words)}"
            ending = ".pt" if source.name == "pickled" else ""
            pair = ["--before", str(changed / f"a{ending}"), "--after", str(changed / f"b{ending}")]
            if rng.random() < 0.2:  # as an update by itself
                pair = [pair[3], "-m", str(folder / "whole" / "a")]
                told = []
            trial.command(["audit", *pair, *told, *options], case, tally)
            if Path("RAN").exists():
                Path("RAN").rmdir()
                tally.bad("code was run", case, "")
            shutil.rmtree(out, ignore_errors=True)
    finally:
        os.chdir(here)
    return tally


SUITES: dict[str, tuple[Callable[[Path, int, int], Tally], int]] = {
    "gradient files": (try_files, FILES),
    "run folders": (try_folders, FOLDERS),
    "command lines": (try_lines, LINES),
    "checkpoints": (try_checkpoints, CHECKPOINTS),
}
