"""A Lightning Trainer in a swarm: one callback more. The module fits a sine.

python examples/lightning_trainer.py                       # founds a run and prints how others join it
BARNRAISE_JOIN=... python examples/lightning_trainer.py    # joins it
"""

import os

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from barnraise.api.lightning import SwarmCallback


class Sine(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: list[torch.Tensor], number: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


class Invite(SwarmCallback):
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        print(f"others join with BARNRAISE_JOIN={self.swarm.invitation}", flush=True)


def main() -> None:
    x = torch.linspace(-3, 3, 2048)[:, None]
    loader = DataLoader(TensorDataset(x, torch.sin(x)), batch_size=32, shuffle=True)
    module = Sine()
    trainer = Trainer(
        max_steps=int(os.environ.get("STEPS", "200")),
        callbacks=[Invite(sync_every=25)],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader)
    loss = nn.functional.mse_loss(module.net(x), torch.sin(x)).item()
    print(f"{trainer.global_step} steps, loss {loss:.4f}")


if __name__ == "__main__":
    main()
