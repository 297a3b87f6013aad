"""BYOL in the Trainer of Hugging Face's transformers.

    python transformers_trainer.py

Needs ``pip install "byol_wrap[examples]" transformers accelerate``.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from digits import accuracy, small_learner, training_set
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed


class SelfSupervisedTrainer(Trainer):
    """A Trainer whose model returns the loss itself."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, **_: Any
    ) -> Any:
        """The loss of a batch."""
        loss = model(**inputs)
        return (loss, {"loss": loss}) if return_outputs else loss


def images_alone(examples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """A batch of (image, label) as the learner takes it."""
    return {"images": torch.stack([image for image, _ in examples])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on digits, and say what it was worth."""
    parser = argparse.ArgumentParser(description="BYOL in the Trainer of transformers.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args(arguments)

    set_seed(0)
    learner = small_learner()
    optimizer = torch.optim.AdamW(learner.parameters(), lr=2e-3)
    learner.attach(optimizer)
    before = accuracy(learner)
    trainer = SelfSupervisedTrainer(
        learner,
        TrainingArguments(
            per_device_train_batch_size=64,
            gradient_accumulation_steps=2,
            num_train_epochs=args.epochs,
            max_grad_norm=5.0,
            lr_scheduler_type="constant",
            dataloader_drop_last=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            use_cpu=args.cpu,
        ),
        data_collator=images_alone,
        train_dataset=training_set(),
        optimizers=(optimizer, None),
    )
    result = trainer.train()
    print(f"loss {result.training_loss:.3f}, {int(learner.step)} updates of the target")
    print(f"nearest neighbours: {before:.1f} % before, {accuracy(learner):.1f} % after")


if __name__ == "__main__":
    main()
