"""A report says what its records say: figures counted by hand, pages that any text leaves whole."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.synthetic import LADDER, cell, done, failed, grid, sentence, write
from textleak import runs
from textleak.cli import app
from textleak.defenses import DEFENSES
from textleak.evaluation.answers import Records
from textleak.events import Phase, Position, Progress, Sentence, Stop, Truth
from textleak.jobs.verdict import Word
from textleak.reports import charts
from textleak.reports.again import command
from textleak.reports.analysis import Report, analyze
from textleak.reports.course import Curve, course_of
from textleak.reports.curves import draw_curve
from textleak.reports.figures import percent
from textleak.reports.pages import markdown_escaped, to_html, to_json, to_markdown, tokens_of
from textleak.reports.reading import Findings, read
from textleak.reports.series import Chart, Series
from textleak.reports.settings import (
    AXES,
    DEFAULTS,
    same_defense,
    strength_of,
    strength_order,
    value_of,
)
from textleak.reports.statistics import Interval
from textleak.reports.utility import Utility, UtilityRow, UtilityRun, write_utility
from textleak.runs.reading import TimedEvent
from textleak.shared.known import SideInformation, hides_defense

ROOT = Path(__file__).parents[2]
VOID = {"meta", "br", "img", "line", "rect", "circle", "polygon", "polyline"}


def invoke(*arguments: object, code: int = 0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
    return result


def report_of(*records, settings=None, **more) -> Report:
    findings = Findings(
        path=Path("somewhere"),
        kind="evaluation",
        records=tuple(records),
        settings=settings or {},
        versions={"textleak": "0.1.0"},
        identity="a1b2",
    )
    return analyze(findings, **more)


class Page(html.parser.HTMLParser):
    """What a browser would make of a page; fails where tags don't match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def count(self, tag: str, kind: str | None = None) -> int:
        return sum(t == tag and (kind is None or a.get("class") == kind) for t, a in self.tags)


def page_of(report: Report, **options) -> Page:
    return Page(to_html(report, **options))


# Figures


def test_means_are_over_sentences_and_batches_are_drawn_whole():
    of = cell(batch_size=2)
    report = report_of(
        done(of, 0, sentence(["a", "b"]), sentence(["c", "d"], ["c", "x"])),
        done(of, 1, sentence(["e", "f"], ["", ""])),
    )
    (one,) = report.settings
    assert one.match.mean == pytest.approx((1 + 0.5 + 0) / 3)
    assert one.exact.mean == pytest.approx(1 / 3)
    assert (one.match.count, one.match.clusters) == (3, 2)
    assert (one.batches, one.failed, one.sentences) == (2, 0, 3)
    assert one.tokens == pytest.approx((8 + 4) / 2)
    assert one.tokens_per_hidden == (pytest.approx((8 + 4) / 2 / 384, abs=1e-4), 0.0104, 0.0208)
    assert (one.verified, one.verifiable) == (0, 2)


def test_surplus_outputs_lower_the_match_as_they_do_in_the_record():
    record = done(cell(batch_size=2), 0, sentence(["a", "b"]), sentence(["c", "d"], ["c", "x"]))
    diluted = dataclasses.replace(record, surplus=("e f g h",), token_match_rate=0.375)
    assert report_of(diluted).settings[0].match.mean == pytest.approx(0.375)


def test_means_are_those_of_a_script():
    records = grid(sentences=8, sizes=(1, 3))
    report = report_of(*records)
    for one in report.settings:
        where = dict(zip(AXES, one.setting, strict=True)) | {"weights": "auto"}  # as asked for
        chosen = Records(records).where(**where)
        for figure, interval in one.figures.items():
            assert interval.mean == pytest.approx(chosen.mean(figure))


def test_seeds_are_pooled_and_the_same_sentences_are_one_draw():
    records = [
        done(cell(seed=seed), batch, sentence(["a", f"b{batch}"], ["a", "b0"]))
        for seed in (0, 1, 2)
        for batch in range(4)
    ]
    (one,) = report_of(*records).settings
    assert one.seeds == (0, 1, 2)
    assert (one.match.count, one.match.clusters) == (12, 4)


def test_the_headline_names_what_leaked_most_and_which_defense_held_best():
    report = report_of(*grid())
    assert report.headline[0].startswith("With no defense, auto recovered 100 % of the tokens")
    assert "the most of 36 settings" in report.headline[0]
    assert "20 of 20 sentences word for word" in report.headline[0]
    best = min(report.defenses[1:], key=lambda row: row.strongest.worse)
    assert best.words in report.headline[-1]
    assert percent(best.strongest.match.mean) in report.headline[-1]


def test_the_headline_says_what_the_time_limit_ended():
    whole, part = sentence(["a", "cat"]), sentence(["a", "cat"], ["x", "y"])
    late = dataclasses.replace(done(cell(defense=("sign",)), 0, part), stop=Stop.TIME.value)
    verified = dataclasses.replace(done(cell(), 0, whole), stop=Stop.TIME.value)
    report = report_of(verified, late)
    assert [one.cut_off for one in report.settings] == [0, 1]
    assert "1 of 2 batches was cut off before the attack was done: with more time, more may leak." in (
        report.headline
    )
    assert report.headline[-1].startswith("INCONCLUSIVE which defense held best: behind sign")
    assert not any("time" in line for line in report_of(done(cell(), 0, whole)).headline)


def test_no_defense_is_praised_for_what_an_attack_had_no_time_for():
    nothing = sentence(["a", "cat"], ["", ""])
    undefended = done(cell(attack="dlg"), 0, sentence(["a", "cat"]))
    late = dataclasses.replace(done(cell(attack="auto", defense=("sign",)), 0, nothing), stop=Stop.TIME.value)
    weak = done(cell(attack="dlg", defense=("sign",)), 0, nothing)
    for records in ((undefended, late, weak), (undefended, weak, late)):
        report = report_of(*records)
        assert not any("held best was" in line for line in report.headline)
        assert "INCONCLUSIVE" in report.headline[-1]
        row = report.defenses[-1]
        assert row.strongest.cut_off == 1  # of two equals, the one that more time may help
        assert (row.by, row.cut_off, row.inconclusive) == ("auto", 1, True)
        for text in (page_of(report).text, to_markdown(report)):
            assert "INCONCLUSIVE: 1 batch cut off" in text
    assert "The defense that held best was sign" in report_of(undefended, weak).headline[-1]


def test_a_defense_that_hides_the_order_alone_hides_little():
    undefended = done(cell(), 0, sentence(["a", "cat", "sat"]))
    shuffled = done(cell(defense=("sign",)), 0, sentence(["a", "cat", "sat"], ["cat", "sat", "a"]))
    report = report_of(undefended, shuffled)
    assert report.headline[-1] == "No defense held anything back."
    assert (
        "0 % of the tokens in place (one batch, so no interval), 100 % at any place"
        in (report_of(shuffled).headline[0])
    )


def test_a_token_at_another_place_is_neither_right_nor_hidden():
    shown = list(tokens_of(sentence(["the", "cat", "sat", "on"], ["cat", "the", "dog"])))
    assert [status for status, _, _ in shown] == ["elsewhere", "elsewhere", "wrong", "missing"]


def test_tokens_that_the_vocabulary_lacks_are_told_apart():
    lacking = dataclasses.replace(sentence(["a", "cat"]), exact=False, unknown_tokens=5)
    report = report_of(*(done(cell(attack=name), 0, lacking) for name in ("auto", "dlg")))
    assert "5 tokens of the sentences have no entry in the model's vocabulary" in report.headline[-1]
    assert not any("vocabulary" in line for line in report_of(done(cell(), 0, sentence(["a"]))).headline)


def test_a_model_with_random_weights_says_so_wherever_it_is_named():
    by_model = {"bert-tiny": "random", "minilm": "pretrained"}
    records = [
        dataclasses.replace(
            done(cell(model=model, defense=defense), b, sentence(["a", str(b)])), weights=weights
        )
        for model, weights in by_model.items()
        for defense in ((), ("gaussian:sigma=1",))
        for b in range(2)
    ]
    records.append(failed(cell(model="bert-tiny", attack="lamp"), 0))  # knows no weights
    report = report_of(*records)
    assert report.axes == ("model", "defense", "attack")
    assert {row.words[0] for row in report.matrix.rows} == {"bert-tiny (random)", "minilm"}
    assert {chart.title for chart in report.ladders} == {"gaussian (bert-tiny (random))", "gaussian (minilm)"}
    assert report.common["weights"] == "several (random, pretrained)"
    assert [failure.words for failure in report.failures] == ["lamp, no defense, bert-tiny (random)"]
    assert "On random weights in 2 settings: no statement about a trained model." in report.headline[0]
    for text in (page_of(report).text, to_markdown(report)):
        assert text.count("bert-tiny (random)") == text.count("bert-tiny") > 4
        assert "minilm (random)" not in text


def test_weights_that_change_on_the_way_are_two_settings():
    def batch(number: int, weights: str):
        words = sentence(["a", "b"], None if weights == "random" else ["", ""])
        return dataclasses.replace(done(cell(), number, words), weights=weights)

    for order in (("random", "pretrained"), ("pretrained", "random")):
        report = report_of(*(batch(number, weights) for number, weights in enumerate(order)))
        assert {(one.words, one.match.mean) for one in report.settings} == {
            ("minilm (random)", 1),
            ("minilm", 0),
        }
        assert report.common["weights"] == f"several ({', '.join(order)})"
        assert "On random weights in 1 setting: no statement about a trained model." in report.headline[0]


def test_versions_are_those_that_the_records_were_made_with():
    def batch(number: int, torch: str):
        return dataclasses.replace(
            done(cell(), number, sentence(["a"])), versions={"python": "3.11.7", "torch": torch}
        )

    report = report_of(batch(0, "2.12.0"), batch(1, "2.13.0"), batch(2, "2.13.0"))
    assert to_json(report)["versions"] == {"python": "3.11.7", "torch": "several (2.12.0, 2.13.0)"}
    for text in (page_of(report).text, to_markdown(report)):
        assert "python 3.11.7, torch several (2.12.0, 2.13.0)." in text
    assert to_json(report_of(failed(cell(), 0)))["versions"] == {
        "textleak": "0.1.0"
    }  # those it was begun with


def test_only_secrets_of_the_sample_are_called_made_up():
    for data, made_up in (("mails.csv", False), ("sample", True)):
        record = done(cell(data=data), 0, sentence(["pin", "4711"], secrets=[("4711", True)]))
        assert ("secret (made up)" in to_html(report_of(record))) == made_up


def test_defenses_go_from_none_to_strong_and_each_stands_beside_its_strongest_attack():
    shuffled = [LADDER[at] for at in (5, 0, 11, 8, 2, 1, 10, 3, 7, 4, 9, 6)]
    report = report_of(*grid(attacks=("dlg", "auto"), defenses=shuffled, sentences=6))
    assert [row.defense for row in report.defenses] == list(LADDER)
    for row in report.defenses:
        same = [one for one in report.settings if value_of(one.setting, "defense") == row.defense]
        assert row.strongest.match.mean == max(one.match.mean for one in same)


@pytest.mark.parametrize(
    ("defense", "kind", "levels"),
    [
        ((), "", ()),
        (("gaussian:sigma=1e-3",), "gaussian", (("sigma", 0.001),)),
        (("prune:ratio=0.9,which=random",), "prune, random", (("ratio", 0.9),)),
        (("prune:which=smallest",), "prune", (("ratio", 0.9),)),
        (("gaussian",), "gaussian", (("sigma", 0.001),)),
        (("quantize:to=int8",), "quantize", (("to", "int8"),)),
        (
            ("clip:max_norm=1", "gaussian:sigma=0.1"),
            "clip + gaussian",
            (("clip max_norm", 1), ("gaussian sigma", 0.1)),
        ),
        (("sign",), "sign", ()),
        (("!not=a,spec",), "!not=a,spec", ()),
    ],
)
def test_a_defense_has_a_kind_and_levels(defense, kind, levels):
    strength = strength_of(defense)
    assert (strength.kind, strength.levels) == (kind, levels)
    assert sorted([defense, ()], key=strength_order)[0] == ()


def test_the_defaults_of_defenses_are_those_of_their_classes():
    numbers_or_words = {
        name: {
            field.name: field.default for field in dataclasses.fields(defense) if field.default is not None
        }
        for name, defense in DEFENSES.items()
    }
    assert {name: options for name, options in numbers_or_words.items() if options} == DEFAULTS


@pytest.mark.parametrize(
    ("weak_to_strong", "categories"),
    [
        (("gaussian:sigma=0.0001", "gaussian", "gaussian:sigma=0.01"), ("0.0001", "0.001", "0.01")),
        (("laplace", "laplace:scale=1"), ("0.001", "1")),
        (("prune:ratio=0.5", "prune", "prune:ratio=0.99"), ("0.5", "0.9", "0.99")),
        (("clip:max_norm=10", "clip", "clip:max_norm=0.1"), ("10", "1", "0.1")),
        (("topk:ratio=0.5", "topk:ratio=0.1", "topk"), ("0.5", "0.1", "0.01")),
        (("quantize:to=fp16", "quantize:to=bf16", "quantize"), ("fp16", "bf16", "int8")),
        (
            ("dpsgd:noise_multiplier=0", "dpsgd", "dpsgd:max_norm=0.1,noise_multiplier=2"),
            ("1, 0", "1, 1", "0.1, 2"),
        ),
        (("dpsgd", "dpsgd:steps=9"), ("–", "9")),
    ],
)
def test_a_ladder_goes_from_weak_to_strong_with_a_label_for_each_step(weak_to_strong, categories):
    defenses = [(spec,) for spec in weak_to_strong]
    for order in (defenses, defenses[::-1]):
        report = report_of(
            *(done(cell(defense=defense), 0, sentence(["a", "b"])) for defense in ((), *order))
        )
        assert [row.defense for row in report.defenses] == [(), *defenses]
        assert [chart.categories for chart in report.ladders] == [("none", *categories)]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("gaussian", "gaussian:sigma=0.001", True),
        ("gaussian:sigma=1e-3", "gaussian:sigma=0.001", True),
        ("clip:max_norm=1", "clip:max_norm=1.0", True),
        ("prune:which=smallest", "prune:ratio=0.9", True),
        ("gaussian", "gaussian:sigma=0.01", False),
        ("gaussian", "laplace", False),
    ],
)
def test_a_defense_is_the_same_however_it_is_written(one, other, same):
    assert (same_defense([one]) == same_defense([other])) is same


def test_each_kind_of_defense_has_a_ladder_that_begins_without_one():
    report = report_of(*grid(sentences=4))
    assert [(chart.title, chart.categories) for chart in report.ladders] == [
        ("gaussian", ("none", "1e-05", "0.0001", "0.001", "0.01", "0.1")),
        ("prune", ("none", "0.5", "0.75", "0.9", "0.99")),
        ("quantize", ("none", "bf16", "int8")),
    ]
    at = {(value_of(o.setting, "attack"), value_of(o.setting, "defense")): o.match for o in report.settings}
    for series in report.ladders[0].series:
        assert series.points == tuple(at[series.name, defense] for defense in LADDER[:6])


def test_an_attack_that_is_not_told_of_the_defense_stands_beside_one_that_is():
    words = ["a", "b", "c", "d"]

    def batch(right: int, **settings: object):
        return done(cell(**settings), 0, sentence(words, [*words[:right], *[""] * (4 - right)]))

    weak, strong = ("gaussian:sigma=0.001",), ("gaussian:sigma=0.01",)
    report = report_of(
        batch(4),
        *(batch(3, defense=weak), batch(2, defense=strong)),
        *(batch(1, defense=weak, know="no-defense"), batch(0, defense=strong, know="no-defense")),
    )
    assert report.matrix.attacks == ("match", "match, not told the defense")
    assert [[one and one.match.mean for one in row.cells] for row in report.matrix.rows] == [
        [1, None],
        [0.75, 0.25],
        [0.5, 0],
    ]
    (ladder,) = report.ladders
    assert {series.name: [point.mean for point in series.points] for series in ladder.series} == {
        "match": [1, 0.75, 0.5],
        "match, not told the defense": [1, 0.25, 0],
    }
    assert [row.by for row in report.defenses] == ["match"] * 3


def test_length_and_frequency_are_counted_token_by_token():
    of = cell(attack="match")
    records = [
        done(of, 0, sentence(["the", "cat"], ["the", "x"])),
        done(of, 1, sentence(["the", "dog", "sat", "down"], ["the", "dog", "", ""])),
        done(of, 2, sentence(["the", "the"])),
        *(done(cell(attack="match", defense=("sign",)), b, sentence(["the", "cat"], ["", ""])) for b in (0,)),
    ]
    length, frequency = report_of(*records).breakdowns
    assert length.categories == ("2", "3–4")
    assert [point.mean for point in length.series[0].points] == [0.75, 0.5]
    assert length.note == "No defense."  # the defended cell isn't in it
    # "the" occurs four times, all right; cat, dog, sat and down once each, one right.
    assert frequency.categories == ("1", "4–9")
    assert [point.mean for point in frequency.series[0].points] == [0.25, 1.0]


def test_the_tiles_are_those_of_the_setting_that_the_first_sentence_names():
    halves = done(cell(attack="dlg"), 0, sentence(["a", "b"], ["a", "x"]), sentence(["c", "d"], ["c", "x"]))
    one_whole = done(cell(attack="tag"), 0, sentence(["a", "b"]), sentence(["c", "d"], ["", ""]))
    report = report_of(halves, one_whole)
    assert "tag recovered 50 % of the tokens" in report.headline[0]
    assert "50 % of sentences word for word, there" in page_of(report).text


def test_secrets_have_a_line_of_their_own():
    of, defended = cell(), cell(defense=("sign",))
    report = report_of(
        done(of, 0, sentence(["pin", "4711"], secrets=[("4711", True)])),
        done(of, 1, sentence(["pin", "0815"], ["pin", "x"], secrets=[("0815", False)])),
        done(defended, 0, sentence(["pin", "4711"], ["", ""], secrets=[("4711", False)])),
    )
    one = report.settings[0]
    assert (one.secrets_recovered, one.secrets_planted, one.secrets.mean) == (1, 2, 0.5)
    assert [(found.text, found.settings) for found in report.secrets] == [("4711", ("no defense",))]
    assert report.secrets_planted == 2
    line = "Planted secrets: 1 of 2 recovered in full in at least one setting"
    assert line in page_of(report).text
    assert line in to_markdown(report)


def test_failed_batches_are_listed_and_in_no_mean():
    of = cell()
    report = report_of(done(of, 0, sentence(["a"])), failed(of, 1, "AttackError: the loss isn't finite"))
    (one,) = report.settings
    assert (one.batches, one.failed, one.match.mean) == (1, 1, 1.0)
    assert [failure.error for failure in report.failures] == ["AttackError: the loss isn't finite"]
    for text in (page_of(report).text, to_markdown(report)):
        assert "the loss isn't finite" in text


def test_batches_that_failed_alike_are_named_together():
    of, other = cell(), cell(seed=3)
    report = report_of(
        *(failed(of, batch, "AttackError: the lengths") for batch in (0, 1, 2, 5, 7, 8)),
        failed(of, 3, "ValueError: another"),
        failed(other, 4, "ValueError: another"),
    )
    assert [(one.error, one.listed) for one in report.failures] == [
        ("AttackError: the lengths", "0–2, 5, 7, 8"),
        ("ValueError: another", "seed 0: 3; seed 3: 4"),
    ]
    assert json.loads(json.dumps(to_json(report)))["failures"][1]["batches"] == {"0": [3], "3": [4]}


def test_notes_that_differ_in_their_numbers_are_one():
    def batch(number: int, *notes: str, **settings: object):
        return dataclasses.replace(done(cell(**settings), number, sentence(["a", str(number)])), notes=notes)

    rows = "{} rows were left out: norm above {}."
    report = report_of(
        *(batch(number, rows.format(9 + number, f"{number + 1}.5e-05"), "No prior.") for number in range(3)),
        batch(0, "No prior.", attack="lamp"),
        batch(1, "Stopped at 5,000.", attack="lamp"),
    )
    assert report.notes == (
        "match, 3 batches, with other numbers in some: 9 rows were left out: norm above 1.5e-05.",
        "2 settings, 4 batches: No prior.",
        "lamp, 1 batch: Stopped at 5,000.",
    )
    assert report_of(batch(0, "No prior."), batch(1, "No prior.")).notes == ("2 batches: No prior.",)


def test_what_a_defense_held_is_judged_against_no_defense_or_another_one():
    def batches(right: int, **settings: object):
        for batch in range(3):
            words = ["a", "b", str(batch), "d"]
            yield done(cell(**settings), batch, sentence(words, [*words[:right], *[""] * (4 - right)]))

    half = list(batches(2, defense=("sign",)))
    assert report_of(*half, *batches(2)).headline[-1] == "No defense held anything back."
    assert len(report_of(*half).headline) == 1  # there is nothing to compare it with
    for other in (batches(4), batches(3, defense=("topk",))):
        assert "held best was sign: the strongest attack got 50 %" in report_of(*half, *other).headline[-1]


def test_a_defense_whose_strong_attack_failed_is_not_called_the_best():
    def batches(right: int, attack: str, *defense: str, most: int = 4):
        for batch in range(most):
            words = ["a", "b", str(batch), "d"]
            found = [*words[:right], *[""] * (4 - right)]
            yield done(cell(attack=attack, defense=defense), batch, sentence(words, found))

    open_to = [*batches(4, "auto"), *batches(1, "dlg")]
    pruned = [*batches(3, "auto", "prune"), *batches(1, "dlg", "prune")]
    broken = [failed(cell(attack="auto", defense=("sign",)), batch) for batch in range(4)]
    report = report_of(*open_to, *pruned, *broken, *batches(0, "dlg", "sign"))
    assert report.headline[-1].startswith(
        "The defense that held best was prune: the strongest attack got 75 %"
    )
    assert [(row.words, row.failed) for row in report.defenses] == [("none", 0), ("prune", 0), ("sign", 4)]
    assert "dlg (4 batches failed)" in page_of(report).text
    assert "| dlg (4 batches failed) |" in to_markdown(report)
    # One that failed here and there is the best one, and it is said.
    report = report_of(*open_to, *pruned, broken[0], *batches(0, "auto", "sign", most=3))
    assert report.headline[-1].endswith(", though 1 batch behind it failed.")
    # Nobody can say that nothing was held back either.
    report = report_of(*open_to, *batches(4, "auto", "prune"), *broken)
    assert not any("held" in line for line in report.headline)


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0, "0"),
        (1, "100"),
        (0.5, "50"),
        (0.0444, "4.4"),
        (0.9996, ">99.9"),
        (0.996, "99.6"),
        (0.0003, "<0.1"),
    ],
)
def test_only_nothing_and_all_are_rounded_to_nothing_and_all(rate, words):
    assert percent(rate) == words


def test_an_interval_without_width_is_no_promise():
    report = report_of(*(done(cell(), b, sentence(["a", str(b)])) for b in range(5)))
    text = page_of(report).text
    assert "100 (all alike)" in text
    assert "(100 to 100)" not in text
    assert "rule of three" in text


@pytest.mark.parametrize(("batches", "few"), [(1, False), (2, True), (9, True), (10, False)])
def test_intervals_over_few_batches_are_called_too_narrow(batches, few):
    of = [done(cell(), b, sentence(["a", str(b)], ["a", str(b or "")])) for b in range(batches)]
    alike = [done(cell(defense=("sign",)), b, sentence(["a", str(b)])) for b in range(3)]
    report = report_of(*of, *alike)
    for text in (page_of(report).text, to_markdown(report)):
        assert ("fewer than 10 batches are too narrow" in text) is few


# Pages


def test_a_page_needs_nothing_from_outside():
    page = page_of(report_of(*grid(sentences=4)))
    assert page.count("script") == 0
    for _, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("src", "srcset", "data", "action")
            assert name != "href" or str(value).startswith("#")
    style = (ROOT / "textleak/reports/templates/report.css").read_text("utf-8")
    assert "url(" not in style
    assert "@import" not in style
    assert any("default-src 'none'" in str(a.get("content")) for t, a in page.tags if t == "meta")
    assert "prefers-color-scheme: dark" in style


def test_every_section_is_there_for_a_grid():
    report = report_of(*grid(), failed(cell(attack="tag"), 0))
    page = page_of(report)
    for title in (
        "At a glance",
        "What each defense holds back",
        "Leakage against strength of defense",
        "What leaks more easily",
        "Secrets that were recovered in full",
        "Token by token",
        "All figures",
        "Batches that failed",
        "Reproduce",
        "How to read this",
    ):
        assert title in page.text
    assert page.count("svg") == len(report.ladders) + len(report.breakdowns)
    for status in ("right", "wrong", "missing"):
        assert page.count("li", status)
    assert all(mark in page.text for mark in ("✓", "✗", "∅"))  # readable without color


def test_examples_show_each_token_as_right_wrong_missing_or_surplus():
    report = report_of(
        done(cell(), 0, sentence(["sent", "to", "paris"], ["sent", "by", "", "now"])),
    )
    page = page_of(report)
    shown = {kind: page.count("li", kind) for kind in ("right", "wrong", "missing", "surplus")}
    assert shown == {"right": 1, "wrong": 1, "missing": 1, "surplus": 1}
    assert "sent ✓ to ✗ by paris ∅ + now" in page.text
    assert "sent ~~to~~ (by) ~~paris~~ (∅) (+ now)" in to_markdown(report)


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></body>",
    "{{ 7 * 7 }}{% raw %}",
    "'; drop table--",
    "&lt;b&gt;",
    "a|b`c*d_e[f](g)",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_gets_out_of_its_place(text, tmp_path):
    of = cell(data=text, model=text, attack=text, share=text, defense=(text,), know=text)
    records = [
        done(of, 0, sentence(["x", text], [text, "y", text], secrets=[(text, True)])),
        done(cell(), 0, sentence(["z"])),
        dataclasses.replace(failed(of, 1, text)),
    ]
    report = report_of(*records, settings={"data": [text], text: text})
    page = page_of(report)
    calm = page_of(
        report_of(
            *[_renamed(record, text, "calm") for record in records], settings={"data": ["calm"], "calm": 1}
        )
    )
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in calm.tags]
    assert text in "".join(page.words)
    markdown = re.sub(r"```.*?```", "", to_markdown(report), flags=re.DOTALL)
    assert not re.search(r"<\w|(?<!\\)\[f\]", markdown)


def _renamed(value, old: str, new: str):
    """The value with one text in place of another, wherever it stands."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {f.name: _renamed(getattr(value, f.name), old, new) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    if isinstance(value, tuple):
        return tuple(_renamed(item, old, new) for item in value)
    return value.replace(old, new) if isinstance(value, str) else value


def test_text_of_any_direction_and_width_stays_in_its_box():
    tokens = ["שלום", "العالم", "日本語テスト", "🙂", "a\u202eb", "nul\x00", "\ud800", "long" * 500]
    report = report_of(done(cell(), 0, sentence(tokens, ["שלום", "", *tokens[2:]])))
    text = to_html(report).encode("utf-8", "strict").decode()  # a lone surrogate would raise
    page = Page(text)
    assert any(tag == "ul" and a.get("dir") == "auto" for tag, a in page.tags)
    assert "שלום" in page.text
    assert "日本語テスト" in page.text
    for raw in ("\u202e", "\x00"):
        assert raw not in text
    assert "\\u202e" in page.text
    assert "long" * 150 + "…" in page.text
    assert "long" * 151 not in page.text


def test_markdown_tables_keep_their_columns():
    text = to_markdown(report_of(*grid(attacks=("a|b", "c`d"), sentences=4)))
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert len(tables) >= 5
    for table in tables:
        rows = [re.sub(r"\\\|", "", row).count("|") for row in table.splitlines()]
        assert len(set(rows)) == 1, table


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("# no heading", "\\# no heading"),
        ("- no item", "\\- no item"),
        ("1. no item", "1\\. no item"),
        ("a\nb", "a b"),
        ("1e-05", "1e-05"),
        ("0.9", "0.9"),
        ("##ing", "##ing"),
        ("## x", "\\## x"),
        ("---", "\\---"),
        ("<i>", "&lt;i&gt;"),
        ("~~x~~", "\\~\\~x\\~\\~"),
    ],
)
def test_markdown_shows_text_as_it_is(text, escaped):
    assert markdown_escaped(text) == escaped


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "No batch has been evaluated yet."),
        ([failed(cell(), 0), failed(cell(), 1)], "Every batch failed (2 of 2)"),
        (
            [done(cell(), 0, sentence(["a", "b"], ["a", ""]))],
            "50 % of the tokens in place (one batch, so no interval)",
        ),
        ([done(cell(), 0, sentence(["a"], [""]))], "recovered nothing"),
        ([done(cell(), 0, sentence([], []))], "recovered nothing"),
    ],
)
def test_little_is_said_of_little(records, words):
    report = report_of(*records)
    assert words in report.headline[0]
    assert words in page_of(report).text.replace("\N{NO-BREAK SPACE}", " ")
    assert words.split(" (")[0] in to_markdown(report)
    json.dumps(to_json(report), allow_nan=False)


def test_a_hundred_cells_stay_readable():
    defenses = [(), *((f"gaussian:sigma={k / 100}",) for k in range(1, 20))]
    report = report_of(*grid(attacks=("auto", "match", "lamp", "tag", "dlg"), defenses=defenses, sentences=8))
    assert len(report.settings) == 100
    html = to_html(report)
    page = Page(html)
    assert len(report.matrix.rows) == 20
    assert len(report.matrix.attacks) == 5
    assert len(html) < 1_000_000
    assert len(report.examples) == 40
    assert "Examples are shown of the 40 settings that leaked most." in page.text
    assert any(tag == "details" and "open" not in a for tag, a in page.tags)


def test_redacted_reports_quote_no_text():
    secret = "zanzibar"
    of = cell()
    report = report_of(
        done(of, 0, sentence(["to", secret], secrets=[(secret, True)])),
        failed(of, 1, f"ValueError: can't encode {secret}"),
        settings={"data": ["sample"], "sentences": [secret]},
    )
    for text in (
        to_html(report, redact=True),
        to_markdown(report, redact=True),
        json.dumps(to_json(report, redact=True)),
    ):
        assert secret not in text
        assert "1 of 1" in text or '"secrets_recovered": 1' in text
    assert secret in to_html(report)


# Costs


def a_utility() -> Utility:
    def row(*defense: str, accuracy: float) -> UtilityRow:
        run = UtilityRun(
            seed=0, accuracy=accuracy, accuracy_error=0.012, mcc=0.4, mcc_error=0.05, cpu_seconds=1
        )
        return UtilityRow(defense=defense, runs=(run,))

    return Utility(
        model="minilm",
        data="cola_train.tsv",
        train=2000,
        test=500,
        epochs=3,
        batch_size=32,
        learning_rate=1e-4,
        command="python -m tests.figures.utility",
        versions={},
        rows=(row(accuracy=0.75), row("gaussian:sigma=1e-3", accuracy=0.713)),
    )


def test_costs_stand_in_the_table_of_defenses_however_a_number_is_written(tmp_path):
    folder = write(tmp_path / "e", grid(defenses=LADDER[:6], sentences=4))
    write_utility(tmp_path / "costs.json", a_utility())
    invoke("report", folder, "--utility", tmp_path / "costs.json", "--out", tmp_path / "page.html")
    text = Page((tmp_path / "page.html").read_text("utf-8")).text
    assert "75.0 ± 1.2" in text
    assert "71.3 ± 1.2" in text  # sigma=1e-3 is the grid's sigma=0.001
    assert text.count("± 1.2") == 2
    assert "python -m tests.figures.utility" in text
    (tmp_path / "costs.json").write_text("{}", "utf-8")
    assert (
        "can't be read as a table"
        in invoke("report", folder, "--utility", tmp_path / "costs.json", code=2).stderr
    )


# The command


def test_report_writes_a_page_and_markdown_for_its_owner_only(tmp_path):
    folder = write(tmp_path / "e", grid(sentences=4))
    result = invoke("report", folder)
    assert result.stdout.startswith("LEAKS: With no defense, auto recovered 100 %")
    for name in ("report.html", "report.md"):
        assert str(folder / name) in result.stdout
        assert (folder / name).stat().st_mode & 0o077 == 0
    Page((folder / "report.html").read_text("utf-8"))
    plain = json.loads(invoke("report", folder, "--json").stdout)
    assert len(plain["settings"]) == 36
    assert plain["settings"][0]["figures"]["token_match_rate"]["mean"] == 1.0
    assert plain["settings"][0]["setting"]["attack"] == "auto"


def test_out_chooses_the_one_file_that_is_written(tmp_path):
    folder = write(tmp_path / "e", grid(sentences=4))
    invoke("report", folder, "--out", tmp_path / "x.md")
    invoke("report", folder, "--out", tmp_path / "x.html", "--json")
    assert (tmp_path / "x.md").read_text("utf-8").startswith("# textleak evaluation")
    assert (tmp_path / "x.html").read_text("utf-8").startswith("<!doctype html>")
    assert not (folder / "report.html").exists()
    assert (
        "neither a page nor Markdown" in invoke("report", folder, "--out", tmp_path / "x.pdf", code=2).stderr
    )
    assert "can't be written" in invoke("report", folder, "--out", tmp_path / "no" / "x.md", code=2).stderr
    assert "There is no folder" in invoke("report", tmp_path / "nowhere", code=2).stderr
    (tmp_path / "other").mkdir()
    assert "holds no evaluation" in invoke("report", tmp_path / "other", code=2).stderr


def test_a_torn_last_line_is_passed_over(tmp_path):
    folder = write(tmp_path / "e", [done(cell(), b, sentence(["a", str(b)])) for b in range(3)])
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'{"identity": "a1b2", "cell": {"da')
    assert len(read(folder).records) == 3
    invoke("report", folder)


def test_an_unfinished_evaluation_says_so_at_the_top(tmp_path):
    records = [*(done(cell(), b, sentence(["a", str(b)])) for b in range(3)), failed(cell(), 3)]
    folder = write(tmp_path / "e", records, batches=10)
    lead, *rest = analyze(read(folder)).headline
    assert lead.startswith("With no defense")
    assert rest[:2] == [
        "Unfinished: 6 of 10 batches are still to be evaluated.",
        "1 batch failed and is in no mean.",
    ]
    finished = write(tmp_path / "f", records, batches=4)
    assert not any("Unfinished" in words for words in analyze(read(finished)).headline)


def test_an_evaluation_that_has_not_begun_has_a_page(tmp_path):
    folder = write(tmp_path / "e", [])
    (folder / "records.jsonl").unlink()
    assert "No batch has been evaluated yet." in invoke("report", folder).stdout


def test_the_command_that_does_it_again_names_every_setting(tmp_path):
    settings = {
        "data": ["my file.txt"],
        "column": None,
        "limit": 20,
        "batch_size": [1, 4],
        "model": ["minilm"],
        "attack": ["match", "lamp:steps=5"],
        "limits": [20, 10],
        "defense": ["none", "clip:max_norm=1+gaussian:sigma=0.1"],
        "know": [None, "no-defense"],
        "num_labels": 2,
    }
    folder = write(tmp_path / "e", grid(sentences=4), settings)
    command = json.loads(invoke("report", folder, "--json").stdout)["command"]
    assert command == (
        "textleak eval --data 'my file.txt' --limit 20 --batch-size 1 --batch-size 4 --model minilm --attack match "
        "--attack lamp:steps=5,limit=10 --defense none --defense clip:max_norm=1+gaussian:sigma=0.1 "
        "--know default --know no-defense --threads 1 --set num_labels=2"
    )


def test_a_page_says_on_what_it_was_computed(tmp_path):
    def batch(number: int, threads: int):
        record = done(cell(), number, sentence(["a"]))
        return dataclasses.replace(record, device="cuda:0", dtype="float32", threads=threads)

    folder = write(tmp_path / "e", [batch(0, 2), batch(1, 2), failed(cell(), 2)])
    facts = json.loads((folder / "evaluation.json").read_text("utf-8"))
    facts["machine"] = {"platform": "Linux-6.1-x86_64", "processor": "x86_64", "cores": 1}
    (folder / "evaluation.json").write_text(json.dumps(facts), "utf-8")
    report = analyze(read(folder))
    words = "Computed on Linux-6.1-x86_64, 1 core; device cuda:0; dtype float32; threads 2."
    assert words in page_of(report).text
    assert markdown_escaped(words) in to_markdown(report)
    plain = to_json(report)
    assert (plain["machine"], plain["device"], plain["threads"]) == (facts["machine"], "cuda:0", "2")
    assert plain["command"].endswith("--threads 2")
    report = report_of(batch(0, 1), batch(1, 4))  # one command can't say both
    assert "Computed on device cuda:0; dtype float32; threads several (1, 4)." in page_of(report).text
    assert "--threads" not in to_json(report)["command"]


# The verdict


@pytest.mark.parametrize(
    ("recovered", "stop", "word"),
    [
        (["a", "b", "c"], Stop.CONVERGED, Word.LEAKS),
        (["a", "b", "x"], Stop.CONVERGED, Word.LEAKS),
        (["a", "x", "y"], Stop.CONVERGED, Word.PARTLY),
        (["b", "c", "a"], Stop.CONVERGED, Word.PARTLY),  # every token, none in place
        (["x", "y", "z"], Stop.CONVERGED, Word.NOT_FOUND),
        (["x", "y", "z"], Stop.TIME, Word.INCONCLUSIVE),
        (["x", "y", "z"], Stop.INTERRUPTED, Word.INCONCLUSIVE),
        (["x", "y", "z"], Stop.STOPPED, Word.INCONCLUSIVE),
    ],
)
def test_the_verdict_comes_first_and_goes_by_what_leaked_most(recovered, stop, word):
    record = done(cell(), 0, sentence(["a", "b", "c"], recovered))
    report = report_of(dataclasses.replace(record, stop=stop.value))
    assert report.verdict is word
    assert re.match(
        rf"textleak: \w+ textleak evaluation · \w+ · minilm . {word.value} With", page_of(report).text
    )
    assert f"**{word.value}: " in to_markdown(report)


def test_what_failed_is_never_called_not_found():
    nothing = done(cell(), 0, sentence(["a"], ["x"]))
    assert report_of(nothing).verdict is Word.NOT_FOUND
    assert report_of(nothing, failed(cell(), 1)).verdict is Word.INCONCLUSIVE
    assert report_of(failed(cell(), 1)).verdict is Word.INCONCLUSIVE


def test_what_rows_name_has_leaked_whatever_the_attack_found():
    nothing = done(cell(), 0, sentence(["a"], ["x"]))
    named = dataclasses.replace(nothing, named_rate=0.6)
    report = report_of(named)
    assert report.verdict is Word.PARTLY
    assert "while rows of the word embedding name 60 % of the distinct tokens" in report.headline[0]
    assert "named, %" in page_of(report).text
    assert "| named |" in to_markdown(report)
    assert "named, %" not in page_of(report_of(nothing)).text
    proved = done(cell(), 1, sentence(["a"]))
    assert report_of(named, proved).settings[0].named == pytest.approx(0.8)

    rung = cell(defense=("topk:ratio=0.1",))
    holds = [done(rung, at, sentence(["a"], ["x"])) for at in range(3)]
    assert "is the weakest rung" in report_of(proved, *holds).recommendation
    leaks = [dataclasses.replace(one, named_rate=0.2) for one in holds]
    assert "didn't keep every attack" in report_of(proved, *leaks).recommendation


def test_the_weakest_rungs_that_held_are_recommended_and_none_that_was_cut_off():
    def rung(defense: str, *recovered: str, stop: Stop = Stop.CONVERGED):
        records = [
            done(cell(defense=(defense,)), at, sentence(["a"], [token])) for at, token in enumerate(recovered)
        ]
        return [dataclasses.replace(record, stop=stop.value) for record in records]

    plain = [done(cell(), at, sentence(["a"])) for at in range(3)]
    weak, held, strong = (
        rung(f"gaussian:sigma={s}", *found) for s, found in ((0.1, "aax"), (0.2, "xxx"), (0.3, "xxx"))
    )
    late = rung("prune:ratio=0.9", "x", "x", "x", stop=Stop.TIME)
    said = report_of(*plain, *weak, *held, *strong, *late).recommendation
    assert said.startswith("gaussian:sigma=0.2 is the weakest rung measured")
    assert "prune" not in said
    assert "The one rung measured didn't keep" in report_of(*plain, *weak).recommendation
    assert "None of the 2 rungs" in report_of(*plain, *weak, *late).recommendation
    assert "textleak eval --model minilm --defense none" in report_of(*plain).recommendation


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "sees every gradient and the public model, is told the batch size"),
        ({"share": "no-embeddings"}, "without embeddings and output head"),
        ({"client": ("train-mode",)}, "of a client that trains by train-mode"),
        (
            {"know": "labels,no-defense"},
            "is told the labels, not the defense, and never sees text or tokens.",
        ),
        ({"know": "nothing"}, "is told nothing else"),
    ],
)
def test_the_threat_model_is_a_sentence(asked, said):
    assert said in report_of(done(cell(**asked), 0, sentence(["a"]))).threat


# Charts


def test_two_points_are_bars_and_three_a_line():
    two, three = (
        report_of(*(done(cell(defense=d), 0, sentence(["a"])) for d in ((), *levels))).ladders
        for levels in ([("gaussian:sigma=0.1",)], [("gaussian:sigma=0.1",), ("gaussian:sigma=0.2",)])
    )
    assert ("<rect" in charts.draw(two[0]), "<polyline" in charts.draw(two[0])) == (True, False)
    assert ("<rect" in charts.draw(three[0]), "<polyline" in charts.draw(three[0])) == (False, True)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 14])
def test_no_label_leaves_its_place(count):
    labels = [f"max_norm {at}, noise_multiplier 0.000{at} and more of the kind" for at in range(count)]
    series = Series(
        name="x", points=tuple(Interval(mean=0.5, low=None, high=None, count=1, clusters=1) for _ in labels)
    )
    drawn = str(charts.draw(Chart(title="t", axis="a", categories=tuple(labels), series=(series,))))
    band = charts.WIDTH / count
    for x, words in re.findall(r'<text class="tick" x="([\d.]+)"[^>]*"middle">([^<]*)</text>', drawn):
        half = 3 * len(words)  # at 12 units a letter is about 6 wide, and a figure 8
        assert 2 * half <= max(band, 18)
        assert float(x) - half >= 0
        assert float(x) + half <= charts.WIDTH
    for x, words in re.findall(r'<text class="tick" x="([\d.]+)"[^>]*"end">([^<]*)</text>', drawn):
        assert float(x) - 8 * len(words) >= 0


def test_a_curve_has_a_figure_at_each_end_and_ticks_around_it():
    events = [TimedEvent(t=0.0, event=Truth())]
    events += [TimedEvent(t=float(at), event=Progress(phase="p", step=at, loss=10.0**-at)) for at in range(5)]
    (curve,) = course_of(events).curves
    assert curve.points == tuple((float(at), 10.0**-at) for at in range(5))
    drawn = str(draw_curve(curve))
    assert "from 1 to 0.0001" in drawn
    assert all(f">{tick}</text>" in drawn for tick in ("1", "0.1", "0.001", "0.0001", "4.0 s"))
    assert course_of(events[:3]).curves == ()  # two points are no curve


def test_a_loss_that_rounding_puts_below_nothing_needs_no_line_below_nothing():
    drawn = str(draw_curve(Curve(title="Loss", points=((0.0, 0.9), (1.0, 0.4), (2.0, -2e-8)))))
    assert ">0</text>" in drawn
    assert ">-0.2</text>" not in drawn


def test_a_token_is_written_in_the_waterfall_where_it_came_and_nowhere_in_a_redacted_page(tmp_path):
    def held(*words: str) -> tuple[Sentence, ...]:
        positions = tuple(
            Position(position=at, id=len(word), text=word, confidence=0.5) for at, word in enumerate(words)
        )
        return (Sentence(positions=positions, text=" ".join(words)),)

    events = [
        TimedEvent(t=float(at), event=event)
        for at, event in enumerate(
            [
                Phase(name="continuous"),
                Progress(phase="continuous", step=1, sentences=held("cat", "<b>bold")),
                Progress(phase="continuous", step=2, sentences=held("cat", "sat on")),
            ]
        )
    ]
    course = course_of(events)
    (waterfall,) = course.waterfalls
    texts = [[drop.text for drop in drops] for _, _, drops in waterfall.rows]
    assert texts == [["cat", "<b>bold"], ["", "sat on"]]
    assert [phase for _, phase, _ in waterfall.rows] == ["continuous", ""]
    assert {drop.percent for _, _, drops in waterfall.rows for drop in drops} == {50}
    write(tmp_path, [done(cell(), 0, sentence("the cat", "the cat"))])
    findings = dataclasses.replace(read(tmp_path), course=course)
    page = to_html(analyze(findings))
    assert "&lt;b&gt;bold</td>" in page
    assert "bold" not in to_html(analyze(findings), redact=True).partition("</style>")[2]


def test_the_course_of_pictures_is_in_decibels():
    def gray(value: float):
        return (((((value,) * 3,) * 2,) * 2),)

    events = [TimedEvent(t=0.0, event=Truth(image=gray(0.5), labels=(0,)))]
    for at, value in enumerate((0.6, 0.51, 0.501), start=1):
        events.append(TimedEvent(t=float(at), event=Progress(phase="p", step=at, image=gray(value))))
    course = course_of(events)
    assert [round(value, 6) for _, value in course.curves[0].points] == [20, 40, 60]
    assert "from 20 dB to 60 dB" in draw_curve(course.curves[0])
    assert len(course.pictures) == 1


# One run


@pytest.fixture
def run_folder(tmp_path, toy_folder):
    """Makes the folder of a short run."""

    def made(name: str, *more: object) -> Path:
        folder = tmp_path / name
        toy = [
            "-m",
            toy_folder("bert"),
            "--weights",
            "random",
            "--threads",
            1,
            "--attack",
            "dlg",
            "--steps",
            2,
        ]
        invoke("run", *toy, "-k", 1, "--out", folder, *more)
        return folder

    return made


def test_a_run_has_a_page_too(run_folder):
    folder = run_folder("one", "-s", "the cat sat", "--defense", "gaussian:sigma=0.1")
    result = json.loads((folder / "result.json").read_text("utf-8"))
    report = analyze(read(folder))
    assert report.settings[0].match.mean == result["token_match_rate"]
    assert report.settings[0].tokens == result["tokens"]
    invoke("report", folder)
    text = Page((folder / "report.html").read_text("utf-8")).text
    begun = json.loads((folder / "run.json").read_text("utf-8"))["started"][:10]
    assert text.startswith(f"textleak: one textleak run · one · {begun} · ")
    assert f"{report.verdict.value} {result['summary']}" in text
    assert "sees every gradient, changed by gaussian:sigma=0.1, and the public model" in text
    assert "0 of 3 tokens proved without knowing the text: Noise was added" in text
    assert "CPU time" not in text
    assert "--sentence 'the cat sat'" in text
    assert "On random weights: no statement about a trained model." in text
    assert re.search(r"Computed on .*, \d+ cores?; device cpu; dtype float32; threads 1\.", text)
    assert "At a glance" not in text


@pytest.mark.parametrize("told", [[], ["no-defense"], ["lengths"], ["lengths", "no-defense"]])
def test_the_command_of_a_run_tells_the_attack_what_that_run_told_it(told, tmp_path):
    folder = runs.RunFolder.create(tmp_path / "run", name="x")
    settings = {"model": "minilm", "attack": "match", "know": told, "time_limit": 90.0}
    runs.write_json(folder.run_path, {"pid": 0, "settings": settings})
    words = shlex.split(command(read(folder.path)))
    assert words[words.index("--time-limit") + 1] == "90.0"
    know = words[words.index("--know") + 1]
    assert SideInformation.parse(know, batch_size=1) == {*told} - {"no-defense"}
    assert hides_defense(know) is ("no-defense" in told)


@pytest.mark.parametrize(("share", "word"), [("all", Word.PARTLY), ("no-embeddings", Word.INCONCLUSIVE)])
def test_a_run_without_truth_says_that_nobody_knows(share, word, run_folder, tmp_path, toy_folder):
    toy = ["-m", toy_folder("bert"), "--weights", "random", "--threads", 1, "--share", share]
    invoke("share", *toy, "-s", "the dog ran", "--out", tmp_path / "g.safetensors")
    folder = run_folder("blind", "--gradients", tmp_path / "g.safetensors")
    report = analyze(read(folder))
    assert "without the truth nobody can say" in report.headline[0]
    assert report.verdict is word
    page = page_of(report)
    assert all(found in page.text for found in report.found)
    assert "dog" not in json.dumps(to_json(report)["settings_asked_for"])


def test_a_redacted_run_has_figures_and_no_text(run_folder):
    folder = run_folder("redacted", "-s", "the cat sat", "-s", "we ran", "--know", "lengths", "--redact")
    report = analyze(read(folder))
    assert report.settings[0].sentences == 2
    assert "2 sentences scored" in page_of(report).text
    assert report.examples == ()
    assert "the cat" not in page_of(report).text
    assert "Texts were left out." in page_of(report, redact=True).text


def test_a_run_that_is_going_on_says_so(tmp_path):
    going = runs.RunFolder.create(tmp_path / "going", name="x")
    runs.write_json(going.run_path, {"pid": 0, "settings": {"model": "minilm", "attack": "match"}})
    report = analyze(read(going.path))
    assert report.headline == ("The run has no result.",)
    assert report.verdict is Word.INCONCLUSIVE
    page_of(report)


@pytest.fixture(scope="module")
def picture_run(tmp_path_factory):
    """The folder of a short run on two pictures."""
    folder = tmp_path_factory.mktemp("pictures") / "run"
    asked = ["--index", 0, "--index", 1, "--steps", 4, "--threads", 1, "--out", folder]
    invoke("image", *asked)
    return folder


def test_an_image_run_has_the_same_page_with_its_pictures(picture_run):
    result = json.loads((picture_run / "result.json").read_text("utf-8"))
    report = analyze(read(picture_run))
    page = page_of(report)
    assert f"{report.verdict.value} {result['summary']}" in page.text
    assert f"{result['psnr']:.1f} dB PSNR, mean" in page.text
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4  # two originals, two that were recovered
    assert all(image.startswith("data:image/png;base64,") for image in images)
    (policy,) = (a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.endswith("; img-src data:")
    for absent in ("All figures", "word for word, %", "tokens proved"):
        assert absent not in page.text
    words = shlex.split(command(read(picture_run)))
    assert [words[at + 1] for at, word in enumerate(words) if word == "--image"] == result["pictures"]
    assert f"| {result['images'][0]['psnr']:.1f} |" in to_markdown(report)
    assert to_json(report)["pictures"]["psnr"] == result["psnr"]


@pytest.mark.parametrize("image", [[["a"]], [[[[0.1], [0.2]], [[0.1]]]], [0.5], [[[[0.1] * 5]]]])
def test_pictures_that_are_none_are_told_so(image, tmp_path):
    folder = runs.RunFolder.create(tmp_path / "run", name="x")
    runs.write_json(folder.run_path, {"pid": 0, "settings": {"model": "lenet", "attack": "dlg"}})
    line = {"t": 1.0, "event": "progress", "phase": "p", "step": 1, "image": image}
    folder.events_path.write_text(json.dumps(line) + "\n")
    assert "can't be reported on" in invoke("report", folder.path, code=2).stderr


def test_a_redacted_page_of_pictures_shows_none(picture_run):
    report = analyze(read(picture_run))
    page = page_of(report, redact=True)
    assert page.count("img") == 0
    assert "Pictures were left out." in page.text
    assert all(name not in page.text for name in report.evaluation.settings["pictures"])


def test_image_runs_are_not_compared(picture_run):
    assert "image run" in invoke("compare", picture_run, picture_run, code=2).stderr


@pytest.mark.parametrize(
    ("psnr", "stop", "word"),
    [
        (25.0, Stop.STEPS, Word.LEAKS),
        (15.0, Stop.STEPS, Word.PARTLY),
        (5.0, Stop.STEPS, Word.INCONCLUSIVE),
        (5.0, Stop.CONVERGED, Word.NOT_FOUND),
        (None, Stop.CONVERGED, Word.INCONCLUSIVE),
    ],
)
def test_the_verdict_on_pictures_goes_by_the_one_that_came_back_best(psnr, stop, word, tmp_path):
    folder = runs.RunFolder.create(tmp_path / "run", name="x")
    runs.write_json(folder.run_path, {"pid": 0, "settings": {"model": "lenet", "attack": "dlg"}})
    images = [{"psnr": psnr, "mse": 0.1, "ssim": 0.1}, {"psnr": None if psnr is None else 1.0}]
    result = {"images": images, "psnr": psnr, "ssim": 0.1, "stop": stop.value, "sentences": []}
    runs.write_json(folder.result_path, result)
    assert analyze(read(folder.path)).verdict is word


@pytest.mark.parametrize("sentence", [{"reference": "a"}, None])
def test_a_result_of_another_form_is_told_so(sentence, tmp_path):
    folder = runs.RunFolder.create(tmp_path / "run", name="x")
    runs.write_json(folder.run_path, {"pid": 0, "settings": {"model": "minilm", "attack": "match"}})
    runs.write_json(folder.result_path, {"token_match_rate": 0.5, "sentences": [sentence]})
    told = invoke("report", folder.path, code=2).stderr
    assert f"{folder.result_path} can't be reported on." in told.replace("\n", " ")
    assert "NoneType" not in told


@pytest.mark.parametrize("command", ["report", "compare"])
def test_help_loads_nothing_heavy(command):
    code = (
        "import sys; from typer.testing import CliRunner; from textleak.cli import app;"
        f"CliRunner().invoke(app, ['{command}', '--help']);"
        "print([m for m in ('torch', 'numpy', 'scipy', 'jinja2', 'yaml') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"


def test_reports_need_no_torch(tmp_path):
    folder = write(tmp_path / "e", grid(sentences=4))
    code = (
        "import sys; from pathlib import Path; from textleak.reports.analysis import analyze;"
        "from textleak.reports.reading import read; from textleak.reports.pages import to_html;"
        f"to_html(analyze(read(Path({str(folder)!r})))); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "False"
