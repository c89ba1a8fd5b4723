"""Two checkpoints that a loop saved, nothing of ours in it: MiniLM, one step of SGD on one sentence."""

from __future__ import annotations

from pathlib import Path

from tests.real.batches import LABELS, SENTENCES, minilm


def train(out: Path) -> None:
    """Save, step, save."""
    import torch

    from textleak.private.secrets import Secret

    model, tokenizer = minilm()
    model.save_pretrained(out / "before")
    tokenizer.save_pretrained(out / "before")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = tokenizer([SENTENCES[0]], return_tensors="pt")
    model.eval()(**batch, labels=torch.tensor(LABELS[:1])).loss.backward()
    optimizer.step()
    model.save_pretrained(out / "after")
    ids = tuple(batch["input_ids"][0].tolist())
    Secret(sentences=SENTENCES[:1], ids=(ids,), labels=LABELS[:1]).save(out / "checkpoints.truth.json")
