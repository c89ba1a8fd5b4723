"""A script says what it wants in the command line's own words, and sees what it has at a glance."""

from __future__ import annotations

import pytest

import textleak
from tests.conftest import ToyModel
from textleak.errors import InputError
from textleak.scoring.chips import chips


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


def test_a_run_says_its_version_and_its_verdict() -> None:
    result = textleak.run(model="bert-tiny", weights="random", sentences="the cat sat", seed=0)
    assert result["schema_version"] == 1
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
