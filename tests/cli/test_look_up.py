"""What the command line tells about itself: help pages, listings, and whether this machine is ready."""

from __future__ import annotations

import json
import re

import pytest
import typer.main
from rich.cells import cell_len
from typer.testing import CliRunner

from textleak.cli import app, doctor, panels


def said(*arguments: str, columns: int = 80, code: int = 0) -> str:
    done = CliRunner().invoke(
        app, list(arguments), env={"COLUMNS": str(columns), "TERMINAL_WIDTH": str(columns)}
    )
    assert done.exit_code == code, done.stderr
    return done.stdout


def commands() -> dict[str, object]:
    return typer.main.get_command(app).commands


def test_options_of_a_run_stand_in_panels_and_none_is_left_over():
    page = said("run", "--help")
    places = [page.index(f"─ {panel} ─") for panel in panels.ORDER]
    assert places == sorted(places)
    assert "─ Options ─" not in page
    assert "<bool>" not in page
    assert max(cell_len(line) for line in page.splitlines()) <= 80


def test_help_pages_end_in_examples_and_exit_codes():
    for name in ("run", "audit", "image", "eval", "share", "report"):
        page = said(name, "--help", columns=200)
        assert f"textleak {name}" in page.partition("Examples:")[2], name
        assert "Exit codes: 0 done" in page, name


def test_examples_of_help_pages_are_commands():
    import shlex

    for epilog in panels.EPILOGS.values():
        for line in epilog.splitlines():
            if line.startswith("  textleak"):
                name, *words = shlex.split(line)[1:]
                commands()[name].make_context(name, words).close()


def test_commands_are_listed_in_groups():
    page = said("--help")
    for group in (panels.AUDIT, panels.READ, panels.MAKE, panels.LOOK_UP):
        assert f"─ {group} ─" in page
    assert "─ Commands ─" not in page
    assert "--install-completion" in page


@pytest.mark.parametrize("name", sorted(commands()))
def test_no_help_page_names_a_private_type_or_another_page(name):
    page = said(name, "--help")
    assert not re.search(r"\b_[A-Z]\w+", page)
    assert "As for run" not in page


@pytest.mark.parametrize("listing", ["attacks", "clients", "defenses", "settings", "models"])
@pytest.mark.parametrize("columns", [80, 120])
def test_listings_fit_the_terminal_and_have_no_blanks_at_their_ends(listing, columns):
    lines = said(listing, columns=columns).splitlines()
    assert max(cell_len(line) for line in lines) <= columns
    assert not any(line.endswith(" ") for line in lines)
    assert not any(re.search(r"\b_[A-Z]\w+", line) for line in lines)


@pytest.mark.parametrize("registry", ["attacks", "clients", "defenses"])
def test_no_option_takes_what_only_this_code_has_a_name_for(registry):
    for one in json.loads(said(registry, "--json")):
        for option in one["options"]:
            assert not re.search(r"\b_\w|Annotated|typing", f"{option['type']} {option['takes']}"), option


def test_attacks_are_listed_by_when_to_use_them():
    page = said("attacks", columns=140)
    for heading in ("use when", "needs", "paper", "reads"):
        assert heading in page
    assert "Geiping et al. 2020" in page


def test_settings_are_those_that_set_takes():
    from textleak.settings import EvaluationConfig, ImageConfig, RunConfig

    found = json.loads(said("settings", "--json"))
    for of, kind in (("run", RunConfig), ("image", ImageConfig), ("eval", EvaluationConfig)):
        listed = {one["name"] for one in found if one["of"] == of}
        assert listed == set(kind.model_fields)
        assert all(one["doc"] for one in found if one["of"] in ("run", "image") and one["name"] != "dtype")
    assert {one["name"] for one in json.loads(said("settings", "know", "--json"))} == {"know"}
    assert CliRunner().invoke(app, ["settings", "knw"]).exit_code == 2


def test_a_preset_of_clients_is_looked_up_as_a_kind_is():
    page = said("clients", "hf-trainer")
    assert "--client train-mode" in page
    assert json.loads(said("clients", "fedsgd", "--json")) == {"name": "fedsgd", "kinds": ["one-step"]}


def test_doctor_says_what_to_do_where_a_machine_is_not_ready():
    fine, broken = {"ok": True}, {"ok": False}
    assert doctor._to_do(fine, folder="runs", writable=True) == []
    assert doctor._to_do(broken, folder="runs", writable=True)[0].startswith(
        "Install another release of torch"
    )
    assert "Make runs writable" in doctor._to_do(fine, folder="runs", writable=False)[0]


def test_the_schema_of_what_is_printed_is_printed():
    from textleak.schemas import KINDS, schema

    for kind in KINDS:
        assert json.loads(said("settings", "--schema", kind)) == schema(kind)
    said("settings", "--schema", "runs", code=2)
