"""PSNR, MSE and SSIM of pictures equal torchmetrics', and pictures are compared with those they stand for."""

import sys
import types
import warnings

import pytest
import torch

from textleak.scoring import perceptual
from textleak.scoring.pixels import assign_pictures, mse, psnr, score_pictures, ssim

GENERATOR = torch.Generator().manual_seed(0)
PAIRS = [
    (torch.rand(3, 32, 32, generator=GENERATOR), torch.rand(3, 32, 32, generator=GENERATOR)),
    (torch.full((1, 28, 28), 0.3), torch.linspace(0, 1, 28 * 28).view(1, 28, 28)),
    (
        torch.linspace(0, 1, 3 * 40 * 33).view(3, 40, 33),
        torch.linspace(0.1, 0.9, 3 * 40 * 33).view(3, 40, 33),
    ),
]


@pytest.mark.parametrize(("reference", "recovered"), PAIRS)
def test_the_figures_equal_torchmetrics(reference, recovered):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = pytest.importorskip("torchmetrics.functional.image", reason="torchmetrics is not installed")
    own = reference[None].double(), recovered[None].double()
    theirs = image.structural_similarity_index_measure(own[1], own[0], data_range=1.0)
    assert ssim(reference, recovered) == pytest.approx(float(theirs), abs=1e-6)
    theirs = image.peak_signal_noise_ratio(own[1], own[0], data_range=1.0)
    assert psnr(reference, recovered) == pytest.approx(float(theirs), abs=1e-5)
    assert mse(reference, recovered) == pytest.approx(float((own[0] - own[1]).square().mean()))


def test_an_exact_picture_has_a_psnr_of_100_and_a_similarity_of_1():
    picture = PAIRS[0][0]
    assert psnr(picture, picture.clone()) == 100.0
    assert ssim(picture, picture.clone()) == pytest.approx(1.0)
    assert psnr(picture, picture + 1e-7) == 100.0


def test_a_tenth_off_everywhere_is_20_db():
    assert psnr(torch.full((3, 8, 8), 0.5), torch.full((3, 8, 8), 0.6)) == pytest.approx(20.0, abs=1e-4)


def test_a_picture_smaller_than_the_window_has_a_similarity():
    picture = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1))
    assert ssim(picture, picture) == pytest.approx(1.0)
    assert ssim(picture, 1 - picture) < 0.5


def test_pictures_are_assigned_to_the_originals_they_are_nearest_to():
    references = [torch.full((1, 4, 4), value) for value in (0.1, 0.5, 0.9)]
    recovered = [references[2] + 0.01, references[0] - 0.01]
    assert assign_pictures(references, recovered) == (1, None, 0)


def test_a_batch_is_scored_in_the_order_of_the_originals_with_their_labels():
    references = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    scores = score_pictures(references, [7, 9], references.flip(0), [9, 3])
    assert [one.psnr for one in scores.images] == [100.0, 100.0]
    assert [(one.label, one.recovered_label) for one in scores.images] == [(7, 3), (9, 9)]
    assert scores.psnr == 100.0


def test_a_missing_picture_counts_as_nothing():
    references = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    scores = score_pictures(references, [7, 9], references[:1], [7])
    assert scores.psnr == 50.0
    assert scores.images[1].recovered_label is None
    assert score_pictures(references, [7, 9], references[:0], []).psnr == 0.0


def test_lpips_is_left_out_where_it_is_not_at_hand_and_nothing_is_fetched(monkeypatch):
    monkeypatch.setattr(perceptual, "why_missing", lambda: "the package lpips is not installed")
    scores = score_pictures(torch.rand(1, 3, 8, 8), [1], torch.rand(1, 3, 8, 8), [1])
    assert scores.lpips is None
    assert scores.to_json()["images"][0]["lpips"] is None


def test_what_lpips_lacks_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    assert "lpips is not installed" in perceptual.why_missing()
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert str(tmp_path) in perceptual.why_missing()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / perceptual._WEIGHTS).write_bytes(b"")
    assert perceptual.why_missing() == ""


def test_lpips_is_asked_in_three_channels_from_minus_1_to_1(monkeypatch):
    class Mean(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            assert (net, verbose) == ("alex", False)

        def forward(self, a, b):
            assert a.shape == b.shape == (1, 3, 8, 8)
            assert float(a.min()) == float(a.max()) == -1.0
            return (a - b).abs().mean()

    monkeypatch.setitem(sys.modules, "lpips", types.SimpleNamespace(LPIPS=Mean))
    monkeypatch.setattr(perceptual, "why_missing", lambda: "")
    perceptual._network.cache_clear()
    scores = score_pictures(torch.zeros(1, 1, 8, 8), [1], torch.ones(1, 1, 8, 8), [1])
    perceptual._network.cache_clear()
    assert scores.lpips == scores.images[0].lpips == pytest.approx(2.0)
