"""How the app is built: no file of it imports in a circle, and none needs the command line."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import textleak_tui

HOME = Path(textleak_tui.__file__).parent
PACKAGE = HOME.name


def modules() -> dict[str, Path]:
    """Each module of the app by its name."""
    found = {}
    for path in HOME.rglob("*.py"):
        parts = (PACKAGE, *path.relative_to(HOME).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """All that a module imports, also in its functions and for types only."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_no_file_of_the_app_imports_in_a_circle() -> None:
    known = modules()
    graph = {name: {one for one in imported(path) if one in known} for name, path in known.items()}
    # `textleak_tui.widgets` names what its files hold: they are in no circle with it, unless they import from it.
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index(f"{PACKAGE}.app") > order.index(f"{PACKAGE}.screens.base")
    assert not any(
        one.startswith(f"{PACKAGE}.app") for name in graph if "screens" in name for one in graph[name]
    )


def test_the_app_knows_no_command_line() -> None:
    for name, path in modules().items():
        assert not [one for one in imported(path) if one.startswith("textleak.cli")], name
        assert "textleak.cli" not in path.read_text("utf-8"), name
