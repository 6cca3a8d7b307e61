"""What a trainer loads before it can train: not torch's compiler, which costs 1.7 CPU seconds and 70 MB."""

import subprocess
import sys
from pathlib import Path

from barnraise import config

SCRIPT = """
import sys
import torch
from barnraise.config import ModelConfig, InnerConfig
from barnraise.model.flat import flatten
from barnraise.model.build import build
from barnraise.model.loss import loss
from barnraise.train import train
from barnraise.train.inner import Inner
tokens = torch.zeros((1, 8), dtype=torch.int64)
model = build(ModelConfig(hidden_size=8, num_layers=2, num_heads=1, max_seq_len=8), 1)
inner = Inner(flatten(model), InnerConfig())
loss(model, tokens, tokens).backward()
inner.step(1.0)
heavy = ("torch._dynamo", "torch._inductor", "sympy", "torchvision", "transformers", "trio", "libp2p")
print([name for name in heavy if name in sys.modules])
"""


def test_a_step_is_trained_without_the_compiler() -> None:
    source = str(Path(config.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert done.stdout.strip() == "[]"
