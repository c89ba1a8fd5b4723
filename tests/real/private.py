"""One DP-SGD step of Opacus on MiniLM: two sentences, noise multiplier 1, norms clipped to 1."""

from __future__ import annotations

from pathlib import Path

from tests.real.batches import LABELS, SENTENCES, minilm


def train(out: Path) -> None:
    """Take the step, with the gradient recorded that its optimizer is given."""
    import torch
    from opacus import PrivacyEngine

    import textleak

    model, tokenizer = minilm()
    read = tokenizer(list(SENTENCES[:2]), padding=True, return_tensors="pt")
    rows = torch.utils.data.TensorDataset(read["input_ids"], read["attention_mask"], torch.tensor(LABELS[:2]))
    model.train()
    private, optimizer, loader = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
        data_loader=torch.utils.data.DataLoader(rows, batch_size=2),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    with textleak.record(
        private, tokenizer, optimizer=optimizer, out=out, sends="gradient", end=False, truth=True
    ):
        for ids, mask, labels in loader:
            places = torch.arange(ids.shape[1]).expand_as(ids)  # Opacus wants each sample's own
            private(input_ids=ids, attention_mask=mask, position_ids=places, labels=labels).loss.backward()
            optimizer.step()
