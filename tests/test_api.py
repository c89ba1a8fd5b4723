"""A script says what it wants in the command line's own words, and sees what it has at a glance."""

from __future__ import annotations

import dataclasses
import doctest
import io
import json
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

import textleak
from tests.conftest import ToyModel
from tests.synthetic import cell, done, sentence
from textleak import api, schemas
from textleak.attacks import ATTACKS
from textleak.errors import InputError
from textleak.evaluation.answers import Records
from textleak.evaluation.records import Record, to_json
from textleak.scoring.chips import chips
from textleak.settings import EvaluationConfig, RunConfig
from textleak.settings.audit import AuditConfig
from textleak.settings.given import AttackOptions, AuditSettings, EvaluationSettings, RunSettings
from textleak.view.bars import watched


def test_attacks_defenses_and_clients_are_named_as_on_the_command_line(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    shared, secret = textleak.share(
        model, "the cat", defenses=["gaussian:sigma=1e-9", "sign"], client="accumulate:steps=1", seed=0
    )
    assert secret.sentences == ("the cat",)
    assert [defense.name for defense in shared.defenses] == ["gaussian", "sign"]
    assert shared.defenses[0].options["sigma"] == 1e-9
    assert shared.client.spec.startswith("accumulate")
    plain, _ = textleak.share(model, "the cat", defenses="sign", seed=0)
    assert [defense.name for defense in plain.defenses] == ["sign"]
    steps = textleak.attack(plain, model, "dlg:steps=3", steps=2)
    assert next(steps).name
    for text, words in (("dlg:stps=3", "steps"), ("dgl", "dlg")):
        with pytest.raises(InputError, match=words):
            textleak.recover(plain, model, text)


def test_the_default_attack_reads_off_what_can_be_read_off(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    shared, secret = textleak.share(model, "the cat sat", seed=0)
    recovery = textleak.recover(shared, model, seed=0)
    assert recovery.channel == "embedding"
    assert textleak.score(recovery, secret, model).token_match_rate == 1


def test_a_shared_gradient_is_told_in_a_line_without_its_numbers(toy_model: ToyModel) -> None:
    shared, _ = textleak.share(toy_model("bert"), ["the cat", "a dog"], defenses=["sign"], seed=0)
    said = repr(shared)
    assert "\n" not in said
    assert len(said) < 250
    for words in ("classification", "share all", "client one-step", "defenses sign", "told batch-size"):
        assert words in said
    assert shared._repr_html_().startswith("<table>")


def test_every_example_of_what_is_exported_runs() -> None:
    finder, runner, shared = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(), {}
    places: list[tuple[Any, str]] = [
        (api, "api"),
        *((getattr(textleak, name), name) for name in textleak.__all__),
    ]
    for one, name in places:
        (example,) = finder.find(one, name, globs=shared)
        assert example.examples, name  # each has one
        example.globs = shared  # each goes on from what the module's own made
        runner.run(example, clear_globs=False)
    assert runner.failures == 0


def test_settings_and_options_have_a_type_each() -> None:
    for typed, kind in (
        (RunSettings, RunConfig),
        (AuditSettings, AuditConfig),
        (EvaluationSettings, EvaluationConfig),
    ):
        assert set(typed.__annotations__) == set(kind.model_fields)
    options = {field.name for name in ATTACKS for field in dataclasses.fields(ATTACKS[name])}
    assert set(AttackOptions.__annotations__) == options


def test_an_attack_can_be_given_ready_made(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    shared, _ = textleak.share(model, "the cat", seed=0)
    made = ATTACKS.build("dlg", {"steps": 2, "restarts": 1})
    assert textleak.recover(shared, model, made, seed=0).steps == 2
    assert textleak.recover(shared, model, made, seed=0, steps=1).steps == 1


def test_a_bar_tells_how_far_an_attack_is(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    shared, _ = textleak.share(model, "the cat", seed=0)
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    steps = textleak.attack(shared, model, "dlg:steps=3,restarts=1", seed=0)
    assert watched(steps, console=console).steps == 3
    assert "continuous" in screen.getvalue()


def test_an_answer_is_shown_as_tokens_by_what_is_known_of_them(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    shared, _ = textleak.share(model, "the cat sat", seed=0)
    recovery = textleak.recover(shared, model, seed=0)
    assert (recovery.proof, recovery.verified) == ("gradient", True)
    assert recovery._repr_html_().count("✓") == 3
    guessed = textleak.recover(shared, model, "dlg:steps=1,restarts=1", seed=0)
    assert (guessed.proof, guessed.verified) == (None, False)
    assert "✓" not in guessed._repr_html_()


def test_records_are_shown_as_a_table_of_cells_and_what_leaked_most() -> None:
    records = Records(
        done(cell(defense=defense), 0, sentence(["the", "cat"], ["the", "<b>"]))
        for defense in ((), ("sign",))
    )
    page = records._repr_html_()
    assert page.count("<tr>") == 3
    assert "<td>sign</td>" in page
    assert "✓ the" in page
    assert "<b>" not in page
    plain = to_json(records[0])
    TypeAdapter(Record).validate_python(plain)
    assert set(plain) == set(schemas.schema("record")["properties"])


@pytest.mark.parametrize("kind", schemas.KINDS)
def test_every_document_has_a_published_schema_that_nothing_may_be_added_to(kind: str) -> None:
    found = schemas.schema(kind)
    assert found["$schema"] == schemas.DIALECT
    assert found["additionalProperties"] is False
    assert all(one["additionalProperties"] is False for one in found.get("$defs", {}).values())
    assert found["properties"]
    json.dumps(found)
    with pytest.raises(InputError, match="Did you mean"):
        schemas.schema(f"{kind}s")


def test_a_run_says_its_version_and_its_verdict() -> None:
    result = textleak.run(model="bert-tiny", weights="random", sentences="the cat sat", seed=0)
    assert result["schema_version"] == 1
    fits = TypeAdapter(schemas.KINDS["run"])
    fits.validate_python(result)
    with pytest.raises(ValidationError, match="another"):
        fits.validate_python({**result, "another": 1})
    assert result["summary"].startswith("All of the text leaked")
    assert result["summary"].endswith("On random weights: no statement about a trained model.")


def test_scores_are_shown_as_tokens_in_a_notebook(toy_model: ToyModel) -> None:
    model = toy_model("bert")
    shared, secret = textleak.share(model, "the cat sat", seed=0)
    page = textleak.score(textleak.recover(shared, model, seed=0), secret, model)._repr_html_()
    assert page.count("✓") == 3
    assert "token match rate 1.00" in page


def test_a_token_of_others_is_no_markup_in_a_notebook() -> None:
    page = chips(["<b>", "cat", "sat", "on"], ["<b>", "sat", "<i>"])
    assert "<b>" not in page
    assert "<i>" not in page
    assert all(sign in page for sign in "✓~✗∅")
