"""A package of somebody else with an attack, a client and a defense, found by its entry points alone."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import warm

ROOT = Path(__file__).parents[2]

CODE = '''
import dataclasses
from typing import ClassVar

from textleak.attacks.base import Steps
from textleak.clients.base import Client
from textleak.clients.view import View
from textleak.defenses.base import Defense
from textleak.events import Phase, Progress, Recovery, Stop
from textleak.models.base import Modality
from textleak.models.decoding import to_sentence
from textleak.shared.effects import Effect
from textleak.shared.traits import Trait


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parrot:
    """Answers with one token over and over.

    Attributes:
        token: which.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset] = frozenset({Modality.TEXT})
    needs: ClassVar[frozenset] = frozenset({Trait.ONE_POINT})
    token: int = 1000

    def run(self, view: View, *, generator) -> Steps:
        yield Phase(name="parrot", detail="")
        rows = [to_sentence(view.model, [self.token] * length) for length in view.shared.known.lengths]
        yield Progress(phase="parrot", step=1, steps=1, loss=1.0, sentences=tuple(rows))
        return Recovery(sentences=tuple(rows), stop=Stop.CONVERGED, final_loss=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twice(Client):
    """Sends twice the gradient."""

    name: ClassVar[str]

    def update(self, model, batch, gradient_of, draws):
        return {name: 2 * value for name, value in gradient_of(model, batch).items()}

    def as_gradient(self, sent, model):
        return {name: value / 2 for name, value in sent.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nothing(Defense):
    """Does nothing."""

    name: ClassVar[str]

    def effects(self, step) -> tuple[Effect, ...]:
        return ()
'''
POINTS = """
[textleak.attacks]
parrot = outsider:Parrot
[textleak.clients]
twice = outsider:Twice
[textleak.defenses]
nothing = outsider:Nothing
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Where the package is installed, as pip would lay it out."""
    site = tmp_path / "site"
    (site / "outsider-1.0.dist-info").mkdir(parents=True)
    (site / "outsider.py").write_text(CODE)
    (site / "outsider-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n"
    )
    (site / "outsider-1.0.dist-info" / "entry_points.txt").write_text(POINTS)
    path = os.pathsep.join(map(str, (site, ROOT, ROOT / "tui")))
    return {
        **os.environ,
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "default",
    }


def textleak(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return warm.run(warm.Anew, "-m", "textleak.cli", *arguments, env=environment)


# Commands one after another, in one process: what each wrote, then the app's catalog.
COMMANDS = """
import json, sys
from typer.testing import CliRunner
from textleak.cli import app
from textleak_tui import catalog
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, arguments)
    print(json.dumps([done.exit_code, done.stdout, done.stderr]))
catalog.main()
"""


def test_they_run_and_are_listed_without_any_other_change(
    environment: dict[str, str], tmp_path: Path
) -> None:
    run = ("run", "--sentence", "the cat sat", "--attack", "parrot:token=1001", "--client", "twice")
    more = ("--defense", "nothing", "--weights", "random", "--out", str(tmp_path / "run"), "--json")
    commands = [(*run, *more), *((kind, "--json") for kind in ("attacks", "clients", "defenses"))]
    done = warm.run(warm.Anew, "-c", COMMANDS, json.dumps(commands), env=environment)
    assert done.returncode == 0, done.stderr
    *answers, listed = map(json.loads, done.stdout.splitlines())
    assert [code for code, _, _ in answers] == [0, 0, 0, 0], answers
    result = json.loads(answers[0][1])
    assert (result["attack"], result["client"], result["defense"]) == ("parrot", ["twice"], ["nothing"])
    names = {"attacks": "parrot", "clients": "twice", "defenses": "nothing"}
    for (kind, name), (_, stdout, _) in zip(names.items(), answers[1:], strict=True):
        assert name in stdout
        assert name in [one["name"] for one in listed[kind]]


@pytest.mark.slow
def test_a_grid_takes_them_and_the_certificate_replays_the_client(
    environment: dict[str, str], tmp_path: Path
) -> None:
    done = textleak(
        *(
            "eval",
            "--limit",
            "1",
            "--attack",
            "parrot",
            "--attack",
            "auto:time_limit=20",
            "--client",
            "twice",
        ),
        *(
            "--client",
            "one-step",
            "--defense",
            "nothing",
            "--weights",
            "random",
            "--out",
            str(tmp_path / "grid"),
            "--json",
        ),
        environment=environment,
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "grid" / "records.jsonl").read_text().splitlines()]
    assert {
        (record["cell"]["attack"].partition(":")[0], *record["cell"]["client"]) for record in records
    } == {
        ("parrot", "twice"),
        ("parrot",),
        ("auto", "twice"),
        ("auto",),
    }
    assert all(record["status"] == "done" for record in records)
    auto = [record for record in records if record["cell"]["attack"].startswith("auto")]
    assert all(record["verified"] for record in auto)
