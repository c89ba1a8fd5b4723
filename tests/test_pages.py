"""The pages: blocks of code run, commands are commands, links lead somewhere, the first page is short."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from textleak.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for pattern in (
        "README.md",
        ".github/*.md",
        "configs/**/*.md",
        "tests/**/*.md",
        "textleak/**/*.md",
        "tui/**/*.md",
    )
    for path in ROOT.glob(pattern)
)
BLOCK = re.compile(r"^(?P<before>[^\n]*)\n\n?```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)\s]+)\)")
# Why a block isn't run, in the line before it.
NOT_RUN = "<!-- not run:"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(kind: str) -> Iterator[object]:
    for page in PAGES:
        for number, found in enumerate(BLOCK.finditer(page.read_text("utf-8"))):
            if found["kind"] == kind:
                run = not found["before"].startswith(NOT_RUN)
                marks = [pytest.mark.pretrained] if "minilm" in found["code"] and kind == "python" else []
                yield pytest.param(found["code"], run, id=f"{name_of(page)}-{number}", marks=marks)


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a block of shell, without comments and what stands for anything."""
    joined = re.sub(r"\[[^]\n]* [^]\n]*\]|\$\w+", "", code.replace("\\\n", " "))
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        one: list[str] = []
        for word in [*words, ";"]:
            apart = word in (";", "&&", "|")
            if not apart:
                one.append(word.removesuffix(";"))
            if apart or word.endswith(";"):
                if one:
                    yield one
                one = []


def test_the_first_page_is_short():
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert len(lines) <= 200


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in anchors(target), f"{link}: there is no such heading"


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("code", "run"), list(blocks("sh")))
def test_commands_are_commands(code, run):
    """Every option is one, with a value of its kind; nothing is carried out."""
    group = typer.main.get_command(app)
    for words in commands(code):
        if words[0] == "textleak":
            words = [word for word in words[1:] if word not in ("...", "[options]")]
            command = group.commands.get(words[0]) if words else group
            assert command is not None, f"there is no command {words[0]}"
            if run:
                command.make_context(words[0], words[1:]).close()
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]) is not None, f"there is no module {words[2]}"


@pytest.mark.slow
@pytest.mark.parametrize(("code", "run"), list(blocks("python")))
def test_scripts_run(code, run, tmp_path, monkeypatch, capsys):
    """Scripts run to their end; what a script defines as a test is called."""
    monkeypatch.chdir(tmp_path)
    script = compile(code, "a page", "exec")
    if not run:
        return
    names: dict[str, object] = {"__name__": "page"}
    exec(script, names)
    for name, value in list(names.items()):
        if name.startswith("test_") and callable(value):
            value()
