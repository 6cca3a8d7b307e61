"""What a loop remembers comes back bit for bit, and what is no state of its own is refused."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from barnraise.api import snapshot
from barnraise.api.snapshot import Stateful
from barnraise.errors import ConfigError, LocalError

from .fake_peer import FakePeer, beside, run_of


class Holder:
    """Remembers one value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.value = state_dict["value"]


def trained(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(2))]
    optimizer = make(parameters)
    for _ in range(steps):
        sum(parameter.square().sum() for parameter in parameters).backward()  # type: ignore[union-attr]
        optimizer.step(lambda: torch.zeros(()))  # type: ignore[arg-type]
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, amsgrad=True),
        lambda parameters: torch.optim.AdamW(parameters, lr=torch.tensor(0.1)),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
        lambda parameters: torch.optim.Adagrad([{"params": parameters[:1]}, {"params": parameters[1:], "lr": 0.2}]),
        lambda parameters: torch.optim.LBFGS(parameters),
    ],
    ids=["adamw", "tensor lr", "sgd", "groups", "lbfgs"],
)
def test_an_optimiser_goes_on_where_it_was(
    tmp_path: Path, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
) -> None:
    before, after = trained(make, 3), trained(make, 0)
    snapshot.save([before], tmp_path / "state")
    snapshot.load([after], tmp_path / "state")
    assert same(after.state_dict(), before.state_dict())


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.gauss()
    snapshot.save([], tmp_path / "state")
    expected = draw()
    assert draw() != expected
    snapshot.load([], tmp_path / "state")
    assert draw() == expected


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 0.1, float("inf"), "text", [1, (2, [])], {1: {"a": ()}, "b": None}, torch.ones(2, 0)],
    ids=str,
)
def test_plain_data_comes_back_as_it_was(tmp_path: Path, value: object) -> None:
    snapshot.save([Holder(value)], tmp_path / "state")
    found = Holder(None)
    snapshot.load([found], tmp_path / "state")
    assert same(found.value, value)


@pytest.mark.parametrize("value", [object(), {1.5: 2}, [print]], ids=["object", "float key", "function"])
def test_what_is_no_plain_data_is_refused_by_name(tmp_path: Path, value: object) -> None:
    with pytest.raises(ConfigError, match=r"state\['parts'\]\[0\]\['value'\]"):
        snapshot.save([Holder(value)], tmp_path / "state")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "another optimiser", "fewer parts"])
def test_a_snapshot_that_does_not_fit_is_an_error_that_says_what_to_do(tmp_path: Path, damage: str) -> None:
    def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters)

    path, parts = tmp_path / "state", [trained(adam, 1)]
    wanted: list[Stateful] = [trained(adam, 0)]
    snapshot.save(parts, path)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "foreign":
        from safetensors.torch import save_file

        save_file({"a": torch.ones(1)}, path)
    elif damage == "another optimiser":
        wanted = [torch.optim.Adam([nn.Parameter(torch.ones(1))])]
    else:
        wanted = [*wanted, Holder(1)]
    with pytest.raises(LocalError, match="Join with the same"):
        snapshot.load(wanted, path)


def test_a_loop_that_is_started_again_has_the_state_of_the_rounds_start(tmp_path: Path) -> None:
    def loop(peer: FakePeer, steps: int) -> tuple[torch.optim.Optimizer, Holder]:
        torch.manual_seed(3)
        model, extra = nn.Linear(2, 2), Holder(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        with beside(peer, model, optimizer, extra) as swarm:
            for _ in range(steps):
                model(torch.randn(4, 2)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
                extra.value += 1
                swarm.step()
        return optimizer, extra

    (tmp_path / "whole").mkdir()
    run = run_of(nn.Linear(2, 2))
    whole = FakePeer(tmp_path / "whole", run)
    expected, _ = loop(whole, 6)

    first = FakePeer(tmp_path, run)
    loop(first, 4)
    again = FakePeer(
        tmp_path,
        run,
        first_round=2,
        theta=first.theta,
        snapshot_in=str(tmp_path / "round-00000002.safetensors"),
    )
    found, extra = loop(again, 2)
    assert extra.value == 6
    assert same(found.state_dict(), expected.state_dict())
    assert np.array_equal(again.theta, whole.theta), "the same random numbers led to the same parameters"


def same(left: Any, right: Any) -> bool:
    """Compare trees, tensors by their bits."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and left == right
