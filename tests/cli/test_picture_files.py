"""Pictures' gradients go through files as text's do: `share --image` writes what `image --gradients` attacks."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.published import fitting
from textleak.cli import app
from textleak.private.secrets import ImageSecret
from textleak.shared.gradient import SharedGradient

QUICK = ("--threads", "1", "--device", "cpu")
SMALL = ("--set", "size=12", "--set", "num_labels=5")


@pytest.fixture(autouse=True)
def runs_in_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTLEAK_RUNS", str(tmp_path / "runs"))


def said(command: str, *arguments: str):
    return CliRunner().invoke(app, [command, *QUICK, *arguments])


def result_of(command: str, *arguments: str):
    answer = said(command, *arguments, "--json")
    assert answer.exit_code == 0, answer.stderr
    return fitting(command, json.loads(answer.stdout))


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A gradient file of one small picture, the truth beside it."""
    picture, out = tmp_path / "a.png", tmp_path / "a.safetensors"
    Image.linear_gradient("L").resize((12, 12)).convert("RGB").save(picture)
    facts = result_of("share", *SMALL, "--image", str(picture), "--label", "3", "--out", str(out))
    assert (facts["batch_size"], facts["picture_shape"]) == (1, [3, 12, 12])
    return out


def truth_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.truth.json")


def words_of(answer) -> str:
    return " ".join(answer.stderr.split())


def test_a_picture_comes_back_from_its_file_and_is_scored_by_the_truth(shared):
    result = result_of("image", "--gradients", str(shared), "--truth", str(truth_of(shared)))
    assert (result["model"], result["picture_shape"], result["gradients"]) == (
        "lenet",
        [3, 12, 12],
        str(shared),
    )
    assert result["psnr"] >= 35
    assert (result["images"][0]["label"], result["images"][0]["recovered_label"]) == (3, 3)
    assert result["verified"] is True


def test_without_the_truth_scores_are_null_and_the_certificate_speaks(shared, tmp_path):
    out = tmp_path / "run"
    result = result_of("image", "--gradients", str(shared), "--out", str(out))
    assert result["verified"] is True
    assert [result[figure] for figure in ("psnr", "mse", "ssim", "lpips")] == [None] * 4
    (one,) = result["images"]
    assert (one["label"], one["recovered_label"]) == (None, 3)
    written = {path.name for path in out.iterdir()}
    assert {"strip.png", "grid.png", "recovery.gif", "recovered-0.png"} <= written
    assert "original-0.png" not in written


def test_an_answer_without_the_truth_is_told_in_words(shared):
    answer = said("image", "--gradients", str(shared), "--steps", "3")
    assert answer.exit_code == 0, answer.stderr
    assert "without the truth nobody can say" in answer.stdout


def test_the_same_attack_runs_on_the_pictures_and_on_their_file(tmp_path):
    out = tmp_path / "b.safetensors"
    result_of("share", *SMALL, "--index", "2", "--out", str(out))
    here = result_of("image", *SMALL, "--index", "2", "--steps", "20")
    there = result_of("image", "--gradients", str(out), "--truth", str(truth_of(out)), "--steps", "20")
    # A file's tensors are in another order, so that sums are rounded otherwise.
    assert there["final_loss"] == pytest.approx(here["final_loss"], rel=1e-4)
    assert there["psnr"] == pytest.approx(here["psnr"], rel=1e-3)


def test_the_truth_file_holds_the_pictures_as_they_were(shared):
    secret = ImageSecret.load(truth_of(shared))
    assert secret.labels == (3,)
    assert secret.pictures_BCHW.shape == (1, 3, 12, 12)
    assert torch.equal(secret.pictures_BCHW, (secret.pictures_BCHW * 255).round() / 255)
    assert truth_of(shared).stat().st_mode & 0o077 == 0


def test_a_defended_picture_says_what_was_done_to_it(tmp_path):
    out = tmp_path / "c.safetensors"
    result_of("share", *SMALL, "--index", "0", "--defense", "gaussian:sigma=0.1", "--out", str(out))
    result = result_of("image", "--gradients", str(out), "--steps", "5")
    assert result["defense"] == ["gaussian:sigma=0.1"]
    assert result["verified"] is None
    hidden = result_of("image", "--gradients", str(out), "--steps", "5", "--know", "no-defense")
    assert (hidden["defense"], hidden["know"]) == (["gaussian:sigma=0.1"], ["batch-size", "no-defense"])
    assert hidden["verified"] is False


def test_each_command_refuses_the_other_s_file(shared, tmp_path):
    text = tmp_path / "text.safetensors"
    result_of("share", "-s", "a cat", "--weights", "random", "--out", str(text))
    of_text, of_pictures = said("image", "--gradients", str(text)), said("run", "--gradients", str(shared))
    assert (of_text.exit_code, of_pictures.exit_code) == (2, 2)
    assert "is a gradient of text, not of pictures" in words_of(of_text)
    assert f"textleak run --gradients {text}" in words_of(of_text)
    assert "is a gradient of pictures, not of text" in words_of(of_pictures)
    swapped = said("image", "--gradients", str(shared), "--truth", str(truth_of(text)))
    assert swapped.exit_code == 2
    assert "can't be read as a truth file of pictures" in words_of(swapped)


def test_a_truth_of_other_pictures_is_refused(shared, tmp_path):
    other = tmp_path / "other.safetensors"
    result_of("share", "--set", "size=16", "--set", "num_labels=5", "--index", "0", "--out", str(other))
    answer = said("image", "--gradients", str(shared), "--truth", str(truth_of(other)))
    assert answer.exit_code == 2
    assert "doesn't fit" in words_of(answer)


def test_a_file_has_no_model_built_that_fills_the_memory(shared, tmp_path):
    found = SharedGradient.load(shared)
    vast = dataclasses.replace(found.model, picture=(3, 1024, 1024), num_labels=100_000)
    dataclasses.replace(found, model=vast).save(tmp_path / "vast.safetensors")
    answer = said("image", "--gradients", str(tmp_path / "vast.safetensors"))
    assert answer.exit_code == 2
    assert "would fill the memory" in words_of(answer)


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        ("image", ("--index", "1"), "--index and --gradients were given together"),
        ("image", ("--label", "1"), "--label was given with --gradients"),
        ("image", ("--share", "attention"), "--share was given with --gradients"),
        ("image", ("--defense", "sign"), "--defense was given with --gradients"),
        ("image", ("--know", "labels"), "--know labels can't be told"),
        ("image", ("--set", "num_labels=7"), "another model"),
    ],
)
def test_what_a_file_fixes_can_t_be_given_too(shared, command, options, words):
    answer = said(command, "--gradients", str(shared), *options)
    assert answer.exit_code == 2, answer.output
    assert words in words_of(answer)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image", "a.png", "-s", "a cat"), "--sentence was given with --image"),
        (("--index", "0", "--task", "causal-lm"), "--task was given with --index"),
        (("--index", "0", "--model", "bert-tiny"), "bert-tiny"),
        (("--image", "nothing.png"), "no picture file"),
        (("--index", "0", "--defense", "sing"), "sing"),
    ],
)
def test_a_batch_is_of_text_or_of_pictures(options, words, tmp_path):
    answer = said("share", *options, "--out", str(tmp_path / "g.safetensors"))
    assert answer.exit_code == 2, answer.output
    assert words in words_of(answer)
    assert not (tmp_path / "g.safetensors").exists()
    assert not list(tmp_path.glob("*.truth.json"))


def test_a_truth_without_a_gradient_is_refused():
    answer = said("image", "--truth", "t.json")
    assert answer.exit_code == 2
    assert "--truth t.json was given without --gradients" in words_of(answer)


def test_share_says_what_it_did_to_a_picture(tmp_path):
    picture = tmp_path / "a.png"
    Image.linear_gradient("L").resize((30, 20)).convert("RGB").save(picture)
    answer = said(
        "share", *SMALL, "--image", str(picture), "--out", str(tmp_path / "a.safetensors"), "--json"
    )
    assert "a.png: 30 x 20 pixels resized to 12 x 12" in words_of(answer)
    assert list(json.loads(answer.stdout)["conversions"]) == ["a.png"]
