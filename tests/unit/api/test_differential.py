"""Parameters in step: buffers are covered, a restarted receiver is caught up with, a stranger changes nothing."""

import copy as copies
from collections.abc import Callable

import pytest
import torch
from torch import nn

from barnraise import ParameterReceiver, ParameterSender
from barnraise.codec.codec import Malformed
from barnraise.codec.delta import Applied, Gap
from barnraise.errors import ConfigError


def module(width: int = 40) -> nn.Module:
    """Return a module with buffers, its weights from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, 3))


def trained(model: nn.Module) -> None:
    """Change a few parameters and buffers."""
    with torch.no_grad():
        model[0].weight[3] += 0.01
        model[1].running_mean[0] = 7


def are_alike(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_its_docstring(run_docstring: Callable[..., None]) -> None:
    names = {"model": module(), "copy": module(), "torch": torch, "ParameterReceiver": ParameterReceiver}
    run_docstring(ParameterSender, ParameterSender=ParameterSender, **names)


def test_parameters_and_buffers_follow() -> None:
    model = module()
    copy = copies.deepcopy(model)
    for value in copy.parameters():
        nn.init.zeros_(value)
    sender, receiver = ParameterSender(model, threshold=0), ParameterReceiver(copy)
    sizes = []
    for _ in range(3):
        message = sender.message()
        sizes.append(len(message))
        sender.answered(receiver.apply(message))
        assert are_alike(model, copy)
        trained(model)
    assert max(sizes[1:]) < sizes[0] / 5


def test_a_receiver_that_was_restarted_is_sent_the_whole() -> None:
    model, copy = module(), module()
    sender = ParameterSender(model)
    sender.answered(ParameterReceiver(copy).apply(sender.message()))
    trained(model)
    receiver = ParameterReceiver(copy)
    answer = receiver.apply(sender.message())
    assert isinstance(answer, Gap)
    assert not are_alike(model, copy)
    sender.answered(answer)
    assert isinstance(receiver.apply(sender.message()), Applied)
    assert are_alike(model, copy)


def test_another_module_is_refused() -> None:
    with pytest.raises(ConfigError, match="other names or shapes"):
        ParameterReceiver(module(39)).apply(ParameterSender(module()).message())


def test_a_stranger_changes_nothing() -> None:
    model, copy = module(), module()
    message = bytearray(ParameterSender(model).message())
    message[-1] ^= 255
    before = copies.deepcopy(copy)
    with pytest.raises(Malformed):
        ParameterReceiver(copy).apply(bytes(message))
    assert are_alike(before, copy)
