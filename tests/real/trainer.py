"""`transformers.Trainer` on MiniLM: default arguments, one epoch of four steps of two sentences."""

from __future__ import annotations

from pathlib import Path

from tests.real.batches import LABELS, SENTENCES, minilm


def train(out: Path, **arguments: object) -> None:
    """Train, with the first step and the whole training recorded."""
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    from textleak.integrations.transformers import LeakageCallback

    model, tokenizer = minilm()
    rows = [{**tokenizer(text), "labels": label} for text, label in zip(SENTENCES, LABELS, strict=True)]
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out / "trained"),
            num_train_epochs=1,
            per_device_train_batch_size=2,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            **arguments,  # type: ignore[arg-type]
        ),
        train_dataset=rows,  # type: ignore[arg-type]
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[LeakageCallback(at=(1,), out=out, truth=True)],
    ).train()


def train_in_bf16(out: Path) -> None:
    """The same under autocast."""
    train(out, bf16=True)
