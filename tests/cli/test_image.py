"""`textleak image`: one command from a picture to its recovery, with records, strips and words for bad input."""

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.published import fitting
from textleak.cli import app
from textleak.events import Progress, Truth
from textleak.runs import RunFolder, read_events, read_run

QUICK = ("--threads", "1", "--device", "cpu", "--set", "size=12", "--set", "num_labels=5")


@pytest.fixture(autouse=True)
def runs_in_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTLEAK_RUNS", str(tmp_path / "runs"))


def image(*arguments: str):
    return CliRunner().invoke(app, ["image", *arguments])


def result_of(*arguments: str):
    answer = image(*arguments, "--json")
    assert answer.exit_code == 0, answer.stderr
    return fitting("image", json.loads(answer.stdout))


def test_without_arguments_a_sample_picture_comes_back():
    result = result_of(*QUICK)
    assert result["model"] == "lenet"
    assert result["attack"] == "dlg"
    assert result["pictures"] == ["00-sunset.png"]
    assert result["psnr"] >= 35
    (one,) = result["images"]
    assert one["label"] == one["recovered_label"]
    assert 0 < one["ssim"] <= 1
    assert result["mse"] == one["mse"] < 1e-3
    assert result["verified"] is True
    assert result["stop"].startswith("The recovered pictures' own gradient")


def test_the_run_folder_holds_records_pictures_a_strip_and_a_gif(tmp_path):
    out = tmp_path / "run"
    answer = image(*QUICK, "--index", "3", "--steps", "60", "--out", str(out))
    assert answer.exit_code == 0, answer.stderr
    assert "03-house.png: 64 x 64 pixels resized to 12 x 12." in answer.stderr
    assert "PSNR" in answer.stdout
    assert read_run(out).outcome == "done"
    events = [timed.event for timed in read_events(out)]
    truths = [event for event in events if isinstance(event, Truth)]
    shown = [event for event in events if isinstance(event, Progress) and event.image]
    assert len(truths) == 1
    assert len(truths[0].image[0]) == len(shown[-1].image[0]) == 12
    assert shown[-1].labels
    for name in ("strip.png", "grid.png", "recovery.gif", "recovered-0.png", "original-0.png"):
        with Image.open(out / name) as written:
            written.load()


def test_redacted_runs_keep_figures_and_no_picture(tmp_path):
    out = tmp_path / "run"
    answer = image(*QUICK, "--steps", "20", "--redact", "--out", str(out), "--json")
    assert answer.exit_code == 0, answer.stderr
    result = json.loads(answer.stdout)
    assert result["psnr"] > 0
    assert result["images"][0]["label"] is None
    assert "pictures" not in result
    assert {path.name for path in out.iterdir()} == {"run.json", "events.jsonl", "result.json"}
    for timed in read_events(out):
        assert not isinstance(timed.event, Truth)
        assert not getattr(timed.event, "image", ())
    assert "sunset" not in RunFolder(path=out).run_path.read_text()


def test_a_folder_of_pictures_is_a_data_set_with_classes(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}").mkdir()
        Image.new("RGB", (12, 12), (80 * number, 90, 120)).save(tmp_path / f"{number}" / "a.png")
    result = result_of(*QUICK, "--dataset", str(tmp_path), "--index", "2", "--steps", "5")
    assert result["images"][0]["label"] == 2


def test_several_pictures_are_one_batch_with_their_labels(tmp_path):
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (12, 12), (80 * number, 90, 120)).save(paths[-1])
    options = [word for path in paths for word in ("--image", str(path))]
    result = result_of(*QUICK, *options, "--label", "1", "--label", "4", "--steps", "5", "--attack", "cosine")
    assert result["batch_size"] == 2
    assert [one["label"] for one in result["images"]] == [1, 4]


def test_a_batch_beyond_what_the_gradient_determines_is_said():
    answer = image(*QUICK, *("--index", "0") * 30, "--steps", "2")
    assert answer.exit_code == 0, answer.stderr
    assert "can determine at most" in answer.stderr
    assert "can determine at most" in answer.stdout


def test_defenses_are_applied_and_recorded():
    result = result_of(*QUICK, "--defense", "gaussian:sigma=0.1", "--steps", "20")
    assert result["defense"] == ["gaussian:sigma=0.1"]
    assert result["verified"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image", "nothing.png"), "no picture file"),
        (("--index", "20"), "out of range"),
        (("--dataset", "cifar1000"), "Did you mean cifar100"),
        (("--model", "lenett"), "lenet"),
        (("--attack", "match"), "recovers text"),
        (("--label", "100"), "out of range"),
        (("--label", "1", "--label", "2"), "2 labels for 1 picture"),
        (("--index", "0", "--index", "1", "--attack", "idlg"), "this batch has 2"),
        (("--set", "attack.spreads=1"), "spread"),
        (("--know", "nothing"), "batch size is not known"),
        (("--steps", "0"), "--steps"),
        (("--image", "a.png", "--index", "1"), "either of files"),
    ],
)
def test_bad_input_is_an_error_in_words(options, words):
    answer = image("--threads", "1", *options)
    assert answer.exit_code == 2, answer.output
    assert words in " ".join(answer.stderr.split())
