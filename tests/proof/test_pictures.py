"""A proof of pictures compares each that is clearly another, while there is time."""

from __future__ import annotations

import pytest
import torch

from textleak.clients.view import Clock, view_of
from textleak.models.loading.images import load_image_model
from textleak.private.share import share
from textleak.proof import certificate
from textleak.proof.pictures import Pictures


class _Asked(Clock):
    """Time is up once it has been asked for so often."""

    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times

    @property
    def over(self) -> bool:
        self.times -= 1
        return self.times < 0


@pytest.mark.parametrize(("times", "verified"), [(0, None), (1, None), (3, None), (float("inf"), True)])
def test_time_may_be_up_between_any_two(
    times: float, verified: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_image_model("lenet", size=12, num_labels=5, device="cpu", weights_seed=0)
    pixels_BCHW = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    shared, secret = share(model, pixels_BCHW, seed=0)
    monkeypatch.setattr(certificate, "clock_of", lambda view: _Asked(times))
    told = certificate.certify(view_of(shared, model), Pictures(pixels_BCHW, secret.labels))
    assert told.verified is verified
    assert told.cut_off is (verified is None)
