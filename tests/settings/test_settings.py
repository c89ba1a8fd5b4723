"""Settings: who wins over whom, and what a mistyped one is told."""

from __future__ import annotations

import math
import random

import pytest

from textleak.attacks import ATTACKS
from textleak.clients import CLIENTS as CLIENT_KINDS
from textleak.clients import composed
from textleak.errors import InputError
from textleak.settings import (
    Choice,
    load_client_config,
    load_evaluation_config,
    load_run_config,
    preset_names,
    read_preset,
)
from textleak.settings.presets import CLIENTS

ONE = {"sentences": ["hello there"]}


def test_defaults_are_those_of_the_contract():
    settings = load_run_config(flags=ONE)
    assert settings.model == "bert-tiny"
    assert settings.weights == settings.task == settings.device == "auto"
    assert settings.attack.name == "auto"
    assert settings.share == "all"
    assert settings.seed == 0
    assert settings.know is settings.restarts is settings.steps is settings.fail_above is None


def test_set_wins_over_flags_over_preset_over_defaults(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("seed: 1\nshare: attention\nmodel: gpt2\nsentences: [from the preset]\n")
    settings = load_run_config(str(preset), {"seed": 2, "share": "no-embeddings"}, ["seed=3"])
    assert (settings.model, settings.share, settings.seed) == ("gpt2", "no-embeddings", 3)
    assert settings.batch() == ("from the preset",)


def test_a_flag_that_was_not_given_leaves_the_preset_alone(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("seed: 1\n")
    assert load_run_config(str(preset), {**ONE, "seed": None, "labels": []}).seed == 1


def test_dotted_keys_reach_the_options_of_the_attack():
    settings = load_run_config(
        flags={**ONE, "attack": "match", "steps": 7},
        assignments=["attack.span_proposals=false", "attack.learning_rate=1e-2", "attack.note=text"],
    )
    assert settings.attack_options() == {
        "span_proposals": False,
        "learning_rate": 0.01,
        "note": "text",
        "steps": 7,
    }


def test_options_go_with_their_attack(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("attack: {name: tag, alpha: 0.02}\n")
    assert load_run_config(str(preset), ONE).attack.options == {"alpha": 0.02}
    assert load_run_config(str(preset), {**ONE, "attack": "tag"}).attack.options == {"alpha": 0.02}
    other = load_run_config(str(preset), {**ONE, "attack": "match"})
    assert (other.attack.name, other.attack.options) == ("match", {})


def test_defenses_are_read_from_specs_and_from_mappings():
    settings = load_run_config(flags={**ONE, "defenses": ["gaussian:sigma=1e-3", "sign"]})
    assert [(d.name, d.options) for d in settings.defenses] == [("gaussian", {"sigma": 0.001}), ("sign", {})]
    assert [d.spec for d in settings.defenses] == ["gaussian:sigma=0.001", "sign"]
    by_mapping = load_run_config(flags={**ONE, "defenses": [{"name": "gaussian", "sigma": 0.5}]})
    assert by_mapping.defenses[0].options == {"sigma": 0.5}


def odd_texts() -> list[str]:
    """Texts out of all that means something in a spec or in YAML."""
    draw = random.Random(0)
    return [
        "".join(draw.choices("ab01 ,=+:'\"\\[]{}()|#&*!-.~\n\té😀", k=draw.randrange(9))) for _ in range(500)
    ]


@pytest.mark.parametrize(
    "values",
    [
        [None, True, False, 0, -3, 10**20, 1e-3, 1e-5, 1.5e-7, 1000.0, 1e300, math.inf, -math.inf],
        [
            "None",
            "null",
            "true",
            "1",
            "1e-3",
            "010",
            "1:30",
            "2024-01-01",
            "a,",
            "a,b=c",
            "a+sign",
            "\x00",
            "\u2028",
        ],
        [
            "layer.{0,1}",
            r"layer\.\d+\.attention",
            "[qk]uery",
            "query|key",
            "a b",
            "smollm2",
            "cos",
            "x" * 200 + " y",
        ],
        [[1, 2], ["a,b=1", "c"], {"a": 1, "c=d": 2}, {"x, y=": [None, True]}, [], {}, [[1.0], ["+sign"]]],
        odd_texts(),
    ],
    ids=["plain values", "texts like others", "expressions", "lists", "odd texts"],
)
def test_a_choice_is_read_again_as_it_was_written(values):
    for one, other in zip(values, [*values[1:], values[0]], strict=True):
        choice = Choice(name="freeze", options={"parameters": one, "other": other})
        again = Choice.model_validate(choice.spec)
        assert again == choice
        assert [type(value) for value in again.options.values()] == [type(one), type(other)]


def test_a_number_needs_no_dot_wherever_it_is_written(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("defenses: [{name: gaussian, sigma: 1e-3}]\nshare: '1e-3'\n")
    settings = load_run_config(str(preset), ONE)
    assert settings.defenses == load_run_config(flags={**ONE, "defenses": ["gaussian:sigma=1e-3"]}).defenses
    assert settings.share == "1e-3"
    assert Choice.model_validate("lamp:prior='1e-3'").options == {"prior": "1e-3"}


def test_ordinary_options_are_written_plain():
    for spec in (
        "gaussian:sigma=0.001",
        "gaussian:sigma=1e-05",
        "match:limit=12,budget=4000",
        "match:span_proposals=False",
        "prune:ratio=0.9,which=random",
        r"freeze:parameters=layer\.\d+\.(query|key)",
        "lamp:prior=/models/smollm2",
    ):
        assert Choice.model_validate(spec).spec == spec
    assert Choice.model_validate("dlg:smooth=null,steps=3").options == {"smooth": None, "steps": 3}
    assert Choice.model_validate("freeze:parameters=layer.{0,1}, x=1,").options == {
        "parameters": "layer.{0,1}",
        "x": 1,
    }


@pytest.mark.parametrize(
    ("assignment", "nearest"),
    [("sede=1", "seed"), ("atack.steps=1", "attack"), ("save_gradient=true", "save_gradients")],
)
def test_an_unknown_key_is_told_the_nearest(assignment, nearest):
    with pytest.raises(InputError, match=nearest) as error:
        load_run_config(flags=ONE, assignments=[assignment])
    assert assignment.partition("=")[0].partition(".")[0] in error.value.what


def test_an_unknown_setting_of_a_script_is_told_the_nearest():
    with pytest.raises(InputError, match="model") as error:
        load_run_config(flags={**ONE, "modle": "gpt2"})
    assert error.value.what == "Unknown setting 'modle'."


def test_an_unknown_key_in_a_preset_is_told_the_nearest(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("modle: gpt2\n")
    with pytest.raises(InputError, match="model"):
        load_run_config(str(preset), ONE)


def test_an_unknown_preset_is_told_the_nearest():
    with pytest.raises(InputError, match="quick") as error:
        load_run_config("qick", ONE)
    assert "'qick'" in error.value.what


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        ({"restarts": 0}, "--restarts can't be 0"),
        ({"steps": -1}, "--steps can't be -1"),
        ({"fail_above": 1.5}, "--fail-above can't be 1.5"),
        ({"weights": "pretraned"}, "--weights can't be 'pretraned'"),
        ({"task": "translation"}, "--task can't be 'translation'"),
        ({"seed": -3}, "--seed can't be -3"),
        ({"threads": 0}, "--threads can't be 0"),
        ({"time_limit": "0s"}, "--time-limit can't be"),
        ({"time_limit": "soon"}, "--time-limit can't be 'soon'"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_flag(flags, what):
    with pytest.raises(InputError) as error:
        load_run_config(flags={**ONE, **flags})
    assert what in error.value.what
    assert error.value.exit_code == 2


def test_a_run_has_exactly_one_batch(tmp_path):
    with pytest.raises(InputError, match="nothing to attack"):
        load_run_config()
    with pytest.raises(InputError, match="--sentence and --gradients"):
        load_run_config(flags={**ONE, "gradients": "g.safetensors"})
    with pytest.raises(InputError, match="without --gradients"):
        load_run_config(flags={**ONE, "truth": "g.truth.json"})
    with pytest.raises(InputError, match="--label"):
        load_run_config(flags={"gradients": "g.safetensors", "labels": [1]})


def test_naming_a_batch_sets_aside_the_preset_s(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("sentences: [one, two]\nlabels: [0, 1]\n")
    settings = load_run_config(str(preset), {"gradients": "g.safetensors"})
    assert (settings.sentences, settings.labels) == ((), ())


def test_a_byte_order_mark_is_no_part_of_the_first_sentence(tmp_path):
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbfcall me at noon\r\nmeet him\r\n")
    found = load_run_config(flags={"file": tmp_path / "lines.txt"}).batch()
    assert found == ("call me at noon", "meet him")


@pytest.mark.parametrize(
    ("written", "label"), [("2", 2), ("3.5", 3.5), ("0,1,1", (0, 1, 1)), ("-100, 3", (-100, 3))]
)
def test_a_label_is_a_class_a_number_or_several(written, label):
    assert load_run_config(flags={"sentences": ["hi"], "labels": [written]}).labels == (label,)


def test_a_setting_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "twice.yaml").write_text("seed: 1\nattack:\n  name: auto\nseed: 2\n")
    with pytest.raises(InputError, match=r"(?s)can't be read.*seed is there twice, once more in line 4"):
        load_run_config(str(tmp_path / "twice.yaml"), {}, ())
    (tmp_path / "once.yaml").write_text("seed: 1\ndefenses:\n- {name: sign}\n- {name: sign}\n")
    assert load_run_config(str(tmp_path / "once.yaml"), {"sentences": ["hi"]}, ()).seed == 1


def test_a_file_holds_one_sentence_a_line(tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("first one\n\n  second one  \n")
    assert load_run_config(flags={"file": lines}).batch() == ("first one", "second one")
    lines.write_text("\n \n")
    with pytest.raises(InputError, match="no sentence"):
        load_run_config(flags={"file": lines}).batch()
    with pytest.raises(InputError, match="can't be read"):
        load_run_config(flags={"file": tmp_path / "missing.txt"}).batch()


def test_sharing_knows_no_settings_of_an_attack(tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("attack: tag\nsteps: 3\nseed: 4\n")
    assert load_client_config(str(preset), ONE).seed == 4
    with pytest.raises(InputError, match="setting"):
        load_client_config(flags=ONE, assignments=["attack.steps=3"])


def test_a_wrong_value_is_told_by_its_flag_where_it_has_one():
    for flags, words in (
        ({"limit": 0}, "--limit can't be 0"),
        ({"num_labels": 1}, "setting num_labels can't be"),
    ):
        with pytest.raises(InputError, match=words):
            load_evaluation_config(flags=flags)


@pytest.mark.parametrize("text", ["seed", "=1", "attack..steps=1", "seed=[1"])
def test_a_malformed_assignment_is_an_error(text):
    with pytest.raises(InputError):
        load_run_config(flags=ONE, assignments=[text])


def test_a_preset_must_hold_settings(tmp_path):
    preset = tmp_path / "mine.yaml"
    for content in ("- a\n- b\n", "a: [1\n", ""):
        preset.write_text(content)
        with pytest.raises(InputError, match=r"mine\.yaml"):
            read_preset(str(preset))


def test_every_preset_that_ships_can_be_read():
    assert "quick" in preset_names()
    for name in preset_names():
        if not name.startswith("evaluations/"):
            load_run_config(name, ONE)


@pytest.mark.parametrize(
    ("written", "seconds"), [(None, None), (2, 2), ("90", 90), ("90s", 90), ("1.5m", 90), ("1h", 3600)]
)
def test_a_time_limit_is_written_with_its_unit(written, seconds):
    assert load_run_config(None, {**ONE, "time_limit": written}).time_limit == seconds


def test_set_wins_over_a_flag_by_the_longer_name_too():
    config = load_run_config(None, {"sentences": ["a"], "restarts": 2}, ["attack.restarts=3"])
    assert config.attack_options()["restarts"] == 3


def test_a_prior_is_an_option_of_the_attack_and_set_wins_over_the_flag():
    flags = {"sentences": ["a"], "attack": "lamp", "prior": "smollm2"}
    assert load_run_config(None, flags).attack_options() == {"prior": "smollm2"}
    assert load_run_config(None, flags, ["attack.prior=gpt2"]).attack_options() == {"prior": "gpt2"}
    assert load_run_config(None, ONE).attack_options() == {}


@pytest.mark.parametrize("variant", ["cos", "l1l2"])
def test_lamps_presets_are_its_two_variants(variant):
    config = load_run_config(f"lamp-{variant}", {**ONE, "prior": "smollm2"})
    assert config.attack.name == "lamp"
    assert config.know == "lengths,labels,batch-size"
    assert config.attack_options() == {"variant": variant, "prior": "smollm2"}
    built = ATTACKS.build("lamp", config.attack_options())
    assert (built.steps, built.starts, built.moves) == (2000, 500, 200)


@pytest.mark.parametrize("name", [name.rpartition("/")[2] for name in preset_names(CLIENTS)])
def test_a_preset_of_a_client_is_one_word(name):
    config = load_run_config(flags={**ONE, "client": [name]})
    built = composed([CLIENT_KINDS.build(choice.name, choice.options) for choice in config.client])
    assert len(built.kinds) == len(config.client) > 0 or name == "fedsgd"
    cell = load_evaluation_config(flags={"client": [name]}).client
    assert cell == (config.client,)


def test_a_preset_of_a_client_goes_with_other_kinds():
    names = [
        choice.name for choice in load_run_config(flags={**ONE, "client": ["hf-trainer", "autocast"]}).client
    ]
    assert names == ["train-mode", "fedavg", "autocast"]
