"""A DP-SGD step of Opacus is recorded as what leaves: clipped, noised, and told as the defense that it is."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

import textleak
from tests.conftest import ToyModel
from textleak.models import load_model
from textleak.shared.gradient import SharedGradient

opacus = pytest.importorskip("opacus", reason="needs opacus")
pytestmark = pytest.mark.filterwarnings("ignore")  # Opacus's own


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_the_recorded_gradient_is_the_private_one(noise: float, toy_model: ToyModel, tmp_path: Path):
    model = toy_model("bert")
    network = copy.deepcopy(model.network).requires_grad_(True).train()
    batch = model.encode(("the cat sat", "a dog ran home"))
    rows = [(ids, mask, torch.tensor(0)) for ids, mask in zip(batch.ids_BT, batch.mask_BT, strict=True)]
    loader = torch.utils.data.DataLoader(rows, batch_size=2)  # type: ignore[arg-type, var-annotated]
    private, optimizer, loader = opacus.PrivacyEngine().make_private(
        module=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        data_loader=loader,
        noise_multiplier=noise,
        max_grad_norm=0.01,
        poisson_sampling=False,
    )
    with textleak.record(
        private, model.tokenizer, optimizer=optimizer, out=tmp_path, sends="gradient", end=False, truth=True
    ) as tape:
        for ids, mask, labels in loader:
            optimizer.zero_grad()
            places = torch.arange(ids.shape[1]).expand_as(ids)  # Opacus wants each sample's own
            private(input_ids=ids, attention_mask=mask, position_ids=places, labels=labels).loss.backward()
            optimizer.step()
    (recording,) = tape.recordings
    assert recording.client == ("train-mode",)
    assert recording.defenses[0].startswith(
        "dpsgd:max_norm=0.01,noise_multiplier=" if noise != 1 else "dpsgd"
    )
    shared = SharedGradient.load(recording.file)
    assert load_model(recording.model, device="cpu").fingerprint == shared.model.fingerprint
    assert shared.gradients.keys() == dict(network.named_parameters()).keys()
    assert shared.noise_sigma == pytest.approx(noise * 0.01 / 2)
    entries = torch.cat([gradient.flatten() for gradient in shared.gradients.values()])
    if noise:
        assert float(entries.std()) == pytest.approx(shared.noise_sigma, rel=0.05)
    else:
        assert float(entries.norm()) <= 0.01 * (1 + 1e-4)  # the mean of two of that norm at most
