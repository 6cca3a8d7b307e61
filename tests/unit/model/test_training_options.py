"""Dropout, gradient checkpointing and autocast, on the built-in model."""

import pytest
import torch
from torch import Tensor, nn

from barnraise.config import ModelConfig
from barnraise.model.build import build
from barnraise.model.flat import flatten
from barnraise.model.initialise import uniform
from barnraise.model.loss import loss

TOKENS = torch.arange(24).view(2, 12)


def model(**changes: float) -> nn.Module:
    shape = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_seq_len": 12}
    made = build(ModelConfig(**(shape | changes)), 1)  # type: ignore[arg-type]
    flat = flatten(made)
    flat.load(uniform(3, "all", (flat.values.numel(),), 0.2))
    return made


def gradients(made: nn.Module) -> Tensor:
    torch.manual_seed(5)
    loss(made, TOKENS, TOKENS).backward()  # type: ignore[no-untyped-call]
    return torch.cat([parameter.grad.reshape(-1) for parameter in made.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_gives_the_same_gradients(dropout: float) -> None:
    plain = gradients(model(dropout=dropout))
    again = gradients(model(dropout=dropout, gradient_checkpointing=True))
    assert plain.any()
    assert torch.equal(again, plain)


def test_checkpointing_keeps_less() -> None:
    kept = []
    for checkpointing in (False, True):
        sizes: list[int] = []
        made = model(gradient_checkpointing=checkpointing)

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss(made, TOKENS, TOKENS)
        kept.append(sum(sizes))
    assert kept[1] < kept[0] / 2


def test_dropout_is_for_training_alone() -> None:
    made = model(dropout=0.5)
    exact = model()(TOKENS)
    torch.manual_seed(1)
    first, second = made(TOKENS), made(TOKENS)
    assert not torch.equal(first, second)
    assert torch.equal(made.eval()(TOKENS), exact)


def test_autocast_multiplies_in_bfloat16_and_loses_little() -> None:
    made = model()
    exact = loss(made, TOKENS, TOKENS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = made(TOKENS)
        found = loss(made, TOKENS, TOKENS)
    assert logits.dtype == torch.bfloat16
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=2e-2)
    assert found.item() != exact.item()
    found.backward()  # type: ignore[no-untyped-call]
    assert {parameter.grad.dtype for parameter in made.parameters() if parameter.grad is not None} == {torch.float32}
