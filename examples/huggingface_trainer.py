"""A transformers Trainer in a swarm: one callback more. The model is a tiny Llama that learns to count.

python examples/huggingface_trainer.py                       # founds a run and prints how others join it
BARNRAISE_JOIN=... python examples/huggingface_trainer.py    # joins it
"""

import os

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from barnraise.api.huggingface import SwarmCallback


class Counting(Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 4096

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        numbers = (torch.arange(16) * (1 + number % 3) + number) % 32
        return {"input_ids": numbers, "labels": numbers}


class Invite(SwarmCallback):
    def on_train_begin(self, *given: object, **named: object) -> None:
        super().on_train_begin(*given, **named)
        print(f"others join with BARNRAISE_JOIN={self.swarm.invitation}", flush=True)


def main() -> None:
    config = LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    arguments = TrainingArguments(
        output_dir="out",
        max_steps=int(os.environ.get("STEPS", "60")),
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        logging_steps=20,
        dataloader_pin_memory=False,
    )
    result = Trainer(model, arguments, train_dataset=Counting(), callbacks=[Invite(sync_every=20)]).train()
    print(f"{result.global_step} steps, mean loss {result.training_loss:.3f}")


if __name__ == "__main__":
    main()
