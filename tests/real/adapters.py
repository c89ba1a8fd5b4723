"""PEFT's LoRA with `transformers.Trainer` on SmolLM2, rank 8 on queries and values as PEFT chooses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.real.batches import SENTENCES, smollm2


def train(out: Path, **recorded: Any) -> None:
    """Four steps of one sentence; the first, the last and the whole training are recorded."""
    import peft
    from transformers import DataCollatorForLanguageModeling, Trainer, TrainingArguments

    from textleak.integrations.transformers import LeakageCallback

    model, tokenizer = smollm2()
    tokenizer.pad_token = tokenizer.eos_token
    Trainer(
        model=peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=8)),
        args=TrainingArguments(
            output_dir=str(out / "trained"),
            num_train_epochs=1,
            per_device_train_batch_size=1,
            learning_rate=2e-4,  # PEFT's own examples
            report_to=[],
            save_strategy="no",
            use_cpu=True,
        ),
        train_dataset=[tokenizer(text) for text in SENTENCES[:4]],  # type: ignore[arg-type]
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[LeakageCallback(**{"at": (1, 4), **recorded}, out=out, truth=True, public="smollm2")],
    ).train()


def train_with_gradients(out: Path) -> None:
    """The same, with the fourth step's gradient recorded: what leaves where a server takes the steps."""
    train(out, at=(4,), end=False, sends="gradient")
