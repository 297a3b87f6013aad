"""BYOL in a LightningModule.

    python lightning_loop.py

Needs ``pip install "byol_wrap[examples]" "lightning>=2.6.4"``.
"""

import argparse
from collections.abc import Sequence

import lightning
import torch
from digits import accuracy, small_learner, training_loader
from torch import Tensor


class LitBYOL(lightning.LightningModule):
    """Nothing but the loss and the optimizer: attach() does the rest, on accumulation as well."""

    def __init__(self) -> None:
        super().__init__()
        self.learner = small_learner()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """The loss of a batch of (images, labels)."""
        loss = self.learner(batch[0])
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, which updates the target after each of its steps."""
        optimizer = torch.optim.AdamW(self.learner.parameters(), lr=2e-3)
        self.learner.attach(optimizer)
        return optimizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on digits, and say what it was worth."""
    parser = argparse.ArgumentParser(description="BYOL in a LightningModule.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--accelerator", default="auto")
    args = parser.parse_args(arguments)

    lightning.seed_everything(0)
    module = LitBYOL()
    before = accuracy(module.learner)
    trainer = lightning.Trainer(
        max_epochs=args.epochs,
        accelerator=args.accelerator,
        devices=1,
        accumulate_grad_batches=2,
        gradient_clip_val=5.0,
        logger=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, training_loader())
    print(f"{int(module.learner.step)} updates of the target")
    print(f"nearest neighbours: {before:.1f} % before, {accuracy(module.learner):.1f} % after")


if __name__ == "__main__":
    main()
