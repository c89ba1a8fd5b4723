"""A comparison pairs the same sentences of the same cells, and says what it couldn't pair."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.synthetic import cell, done, failed, grid, sentence, write
from textleak.cli import app
from textleak.errors import InputError
from textleak.events import Stop
from textleak.reports.compare import Comparison, compare, points
from textleak.reports.reading import Findings


def findings(name: str, *records) -> Findings:
    return Findings(path=Path(name), kind="evaluation", records=tuple(records), settings={}, versions={})


def compared(first, second) -> Comparison:
    return compare(findings("first", *first), findings("second", *second))


def rates(found: Comparison, figure: str = "token_match_rate") -> tuple[float, float, float]:
    one = found.overall.figures[figure]
    return one.first, one.second, one.difference.mean


def batches(right: list[int], *, words: int = 10, **settings: object):
    """A batch a sentence, so many of its words right."""
    for batch, count in enumerate(right):
        tokens = [f"w{batch}-{at}" for at in range(words)]
        yield done(cell(**settings), batch, sentence(tokens, [*tokens[:count], *[""] * (words - count)]))


def test_differences_are_of_the_same_sentences():
    found = compared(batches([1, 2, 3], attack="lamp"), batches([4, 6, 8], attack="match"))
    assert rates(found) == (pytest.approx(0.2), pytest.approx(0.6), pytest.approx(0.4))
    assert found.compared == {"attack": (("lamp",), ("match",))}
    assert found.overall.sentences == 3
    assert found.unpaired == ((), ())


def test_the_interval_is_the_paired_one():
    from scipy import stats

    draw = np.random.default_rng(7)
    first = draw.integers(0, 9, size=40)
    second = np.clip(first + draw.integers(0, 3, size=40), 0, 10)
    found = compared(batches(first.tolist()), batches(second.tolist(), seed=1))
    ours = found.overall.figures["token_match_rate"].difference
    paired = stats.bootstrap(
        ((second - first) / 10,), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((paired.low, paired.high), abs=0.004)
    # Two samples without their pairing would leave it open which is the better one.
    apart = stats.bootstrap(
        (second / 10, first / 10),
        lambda a, b, axis: a.mean(axis) - b.mean(axis),
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert ours.low > 0 > apart.low
    assert "leaks more" in found.headline


def test_the_other_way_round_gives_the_other_sign():
    records = list(batches([1, 2, 3])), list(batches([4, 2, 9], attack="auto"))
    there = compared(*records).overall.figures["token_match_rate"].difference
    back = compared(*reversed(records)).overall.figures["token_match_rate"].difference
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))


def test_cells_pair_where_they_agree_and_the_others_are_named():
    defenses = ("gaussian:sigma=0.001",), ("gaussian:sigma=0.01",), ("sign",)
    first = [r for d in ((), *defenses[:2]) for r in batches([5, 5], attack="lamp", defense=d)]
    second = [r for d in ((), *defenses[1:]) for r in batches([6, 9], attack="match", defense=d)]
    found = compared(first, second)
    assert [one.words for one in found.settings] == ["no defense", "gaussian:sigma=0.01"]
    assert found.unpaired == (("gaussian:sigma=0.001",), ("sign",))


def test_one_value_stands_against_each_of_the_others():
    baseline = list(batches([8, 8]))
    ladder = [r for k in (1, 2) for r in batches([8 - k, 8 - k], defense=(f"gaussian:sigma={k}",))]
    found = compared(baseline, ladder)
    assert [one.words for one in found.settings] == [
        "defense none → gaussian:sigma=1",
        "defense none → gaussian:sigma=2",
    ]
    assert [one.figures["token_match_rate"].difference.mean for one in found.settings] == pytest.approx(
        [-0.1, -0.2]
    )


def test_sentences_pair_across_batch_sizes_and_the_larger_batches_are_drawn():
    texts = [[f"a{k}", f"b{k}"] for k in range(8)]
    alone = [done(cell(), k, sentence(text)) for k, text in enumerate(texts)]
    of = cell(batch_size=4)
    together = [
        done(of, k, *(sentence(text, [text[0], ""]) for text in texts[4 * k : 4 * k + 4])) for k in (0, 1)
    ]
    one = compared(alone, together).overall.figures["token_match_rate"].difference
    assert (one.mean, one.count, one.clusters) == (-0.5, 8, 2)


def test_a_sentence_that_occurs_twice_pairs_in_turn():
    first = [done(cell(), k, sentence(["a", "b"], ["a", "x"] if k else None)) for k in (0, 1)]
    second = [done(cell(attack="auto"), k, sentence(["a", "b"])) for k in (0, 1)]
    assert rates(compared(first, second)) == (0.75, 1.0, 0.25)


def test_what_has_no_partner_is_counted():
    first = [*batches([5, 5, 5]), failed(cell(), 3)]
    second = list(batches([6, 6], attack="auto"))
    found = compared(first, second)
    assert found.overall.sentences == 2
    assert found.overall.alone == (1, 0)
    assert found.failed == (1, 0)


def test_what_was_cut_off_is_counted_on_its_side(tmp_path):
    first = list(batches([5, 5]))
    later = [dataclasses.replace(one, stop=Stop.TIME.value) for one in batches([0, 0], attack="auto")]
    assert compared(first, later).cut_off == (0, 2)
    proved = [dataclasses.replace(one, verified=True) for one in later]
    assert compared(proved, first).cut_off == (0, 0)
    folders = [write(tmp_path / name, records) for name, records in (("first", first), ("later", later))]
    printed = CliRunner().invoke(app, ["compare", *map(str, folders)]).stdout
    assert "Cut off in the second folder: 2 batches" in printed


def test_no_clear_difference_is_called_so():
    found = compared(batches([1, 9, 5, 4]), batches([9, 1, 4, 5], attack="auto"))
    assert found.headline.startswith("No clear difference")
    same = list(batches([1, 9, 5, 4]))
    assert rates(compared(same, same))[2] == 0


def test_nothing_in_common_is_an_error_that_says_what():
    with pytest.raises(InputError, match="nothing to compare") as error:
        compared(
            [r for a in ("match", "lamp") for r in batches([5], attack=a)],
            [r for a in ("auto", "dlg") for r in batches([5], attack=a)],
        )
    assert "attack (match, lamp against auto, dlg)" in error.value.why
    other = [dataclasses.replace(done(cell(), 0, sentence(["no", "such"])))]
    with pytest.raises(InputError) as error:
        compared(batches([5]), other)
    assert "no sentence is in both" in error.value.why
    with pytest.raises(InputError, match="no scored batch"):
        compared(batches([5]), [failed(cell(), 0)])


def test_settings_that_no_cell_tells_of_are_named_where_they_differ():
    first, second = (
        dataclasses.replace(
            findings(name, *batches([1, 2])), settings={"time_limit": limit, "dtype": "float32"}
        )
        for name, limit in (("first", None), ("second", 10.0))
    )
    assert compare(first, second).outside == {"time_limit": ("–", "10.0")}
    assert compare(first, first).outside == {}


def test_versions_that_differ_are_named():
    def made_with(*versions: str):
        records = batches([1, 2, 3][: len(versions)])
        for record, version in zip(records, versions, strict=True):
            yield dataclasses.replace(record, versions={"torch": version, "numpy": "2.0"})

    old, new = made_with("2.12", "2.12"), made_with("2.13", "2.13")
    assert compared(old, new).versions == {"torch": ("2.12", "2.13")}
    upgraded, new = made_with("2.12", "2.13"), made_with("2.13", "2.13")
    assert compared(upgraded, new).versions == {"torch": ("several (2.12, 2.13)", "2.13")}
    assert compared(made_with("2.12", "2.13"), made_with("2.13", "2.12")).versions == {}


def test_weights_and_devices_that_were_not_asked_for_are_named_where_they_differ(tmp_path):
    def loaded(device: str = "cpu", **weights: str):
        for model, which in weights.items():
            for record in batches([1, 2], model=model):
                yield dataclasses.replace(record, weights=which, device=device)

    found = compared(loaded(minilm="random"), loaded("cuda:0", minilm="pretrained"))
    assert found.outside == {"device": ("cpu", "cuda:0"), "loaded weights": ("random", "pretrained")}
    tiny = {"tiny": "random"}  # in the first folder only: it is in no pair
    assert compared(loaded(minilm="random", **tiny), loaded(minilm="random")).outside == {}
    swapped = compared(loaded(minilm="pretrained", **tiny), loaded(minilm="random", tiny="random"))
    assert swapped.outside == {"loaded weights of minilm": ("pretrained", "random")}
    first, second = (write(tmp_path / which, loaded(minilm=which)) for which in ("random", "pretrained"))
    printed = CliRunner().invoke(app, ["compare", str(first), str(second)]).stdout
    assert "Settings differ: loaded weights random against pretrained." in printed


@pytest.mark.parametrize(("count", "few"), [(9, True), (10, False)])
def test_intervals_over_few_batches_are_called_too_narrow(count, few, tmp_path):
    first = write(tmp_path / "first", batches([5] * count))
    second = write(tmp_path / "second", batches([*range(count)]))
    printed = CliRunner().invoke(app, ["compare", str(first), str(second)]).stdout
    assert ("fewer than 10 batches are too narrow" in printed) is few


@pytest.mark.parametrize(("change", "words"), [(0, "0"), (0.052, "+5.2"), (-0.5, "−50"), (1, "+100")])
def test_points_have_a_sign(change, words):
    assert points(change) == words


def test_the_command_prints_a_table_or_json(tmp_path):
    def invoke(*arguments: object, code: int = 0):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
        return result

    first = write(tmp_path / "first", grid(attacks=("match",)))
    second = write(tmp_path / "second", grid(attacks=("match", "auto")))
    result = invoke("compare", first, second)
    assert result.stdout.startswith("No clear difference: token match 0 points")
    assert "Only in the second folder: auto, no defense" in result.stdout
    plain = json.loads(invoke("compare", first, second, "--json").stdout)
    assert len(plain["settings"]) == 12
    assert plain["overall"]["figures"]["exact_rate"]["difference"]["mean"] == 0
    assert "There is no folder" in invoke("compare", first, tmp_path / "no", code=2).stderr
    empty = write(tmp_path / "empty", [])
    assert "no scored batch" in invoke("compare", first, empty, code=2).stderr
