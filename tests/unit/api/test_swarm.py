"""The user's own loop beside a peer that is a thread of this test."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from barnraise.api.parameters import Parameters
from barnraise.api.ranks import Ranks
from barnraise.api.swarm import Swarm
from barnraise.config import RoundConfig
from barnraise.errors import ConfigError, LocalError, Unavailable
from barnraise.link.messages import Done, Leave

from .fake_peer import FakePeer, beside, run_of

STEPS, BATCH = 2, 4


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


class Net(nn.Module):
    """Tied weights, a frozen layer, running statistics, a counter and a buffer that is not saved."""

    scratch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(requires_grad=False)
        self.head = nn.Linear(4, 3)
        self.tied = self.first
        self.register_buffer("scratch", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.frozen(self.norm(self.tied(x))))


def data(n: int = BATCH) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3), torch.randn(n, 3)


def train(swarm: Swarm, model: nn.Module, optimizer: torch.optim.Optimizer, num_steps: int) -> list[bool]:
    """Be the loop that the documentation shows; return what `step` said."""
    said = []
    for _ in range(num_steps):
        x, y = data()
        loss = functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        said.append(swarm.step(loss, samples=len(x)))
    return said


def vector(model: nn.Module) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return Parameters(model, Ranks()).read()


def test_every_second_step_exchanges_and_the_model_takes_what_was_agreed(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    peer = FakePeer(tmp_path, run_of(model), other_update=0.5)
    initial = vector(model)
    with beside(peer, model, optimizer) as swarm:
        assert (swarm.round, swarm.num_members, swarm.first_step, swarm.agreed_step) == (0, 2, 0, 0)
        assert train(swarm, model, optimizer, 5) == [False, True, False, True, False]
        assert (swarm.round, swarm.first_step, swarm.agreed_step) == (2, 4, 5)
        assert len(optimizer.state_dict()["state"]) == 6, "the optimiser's moments stay"
    assert [(done.steps, done.samples) for done in peer.dones] == [(2, 8), (2, 8), (1, 4)]
    assert all(0 < done.loss < 100 for done in peer.dones)
    assert isinstance(peer.heard[-1], Leave)
    assert np.array_equal(vector(model), peer.theta), "the last parameters are loaded on the way out"
    assert not np.array_equal(peer.theta, initial)
    assert swarm.is_over
    assert train(swarm, model, optimizer, 3) == [False] * 3
    assert peer.ended[0] == "left"


def test_the_update_is_before_minus_after(tmp_path: Path) -> None:
    model = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    peer = FakePeer(tmp_path, run_of(model))
    before = vector(model)
    with beside(peer, model, optimizer) as swarm:
        for _ in range(STEPS):
            model.weight.grad = torch.tensor([[1.0, -2.0]])
            optimizer.step()
            swarm.step()
        assert np.allclose(np.fromfile(tmp_path / "update.f32", np.float32), [2.0, -4.0])
    assert np.allclose(peer.theta, before - np.array([2.0, -4.0]))
    assert peer.dones[0].loss == 0.0
    assert peer.dones[0].samples == STEPS * BATCH, "without a word the run's batch size counts"


def test_frozen_parameters_and_counters_stay_ones_own() -> None:
    model = Net()
    names = [(tensor.name, tensor.is_buffer) for tensor in Parameters(model, Ranks()).layout]
    assert names == [
        ("first.weight", False),
        ("first.bias", False),
        ("norm.weight", False),
        ("norm.bias", False),
        ("head.weight", False),
        ("head.bias", False),
        ("norm.running_mean", True),
        ("norm.running_var", True),
    ]


def test_wrapped_models_have_the_layout_of_what_they_wrap() -> None:
    model = Net()
    plain = Parameters(model, Ranks()).layout
    assert Parameters(torch.compile(model, backend="eager"), Ranks()).layout == plain  # type: ignore[arg-type]
    model.first = torch.compile(model.first, backend="eager")  # type: ignore[assignment]
    model.tied = model.first
    assert Parameters(model, Ranks()).layout == plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_is_loaded_and_only_what_training_changed_is_sent(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Linear(16, 16).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    peer = FakePeer(tmp_path, run_of(model), other_update=1e-4)
    with beside(peer, model, optimizer) as swarm:
        for _ in range(3 * STEPS):
            swarm.step(1.0)
            assert not peer.dones or not np.fromfile(tmp_path / "update.f32", np.float32).any(), "nobody trained"
    assert model.weight.dtype == dtype
    assert len(peer.dones) == 3


def loop_with_accumulation(swarm: Swarm, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for number in range(4):
        x, y = data()
        (functional.mse_loss(model(x), y) / 2).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
            swarm.step(samples=2 * BATCH)


def loop_with_autocast(swarm: Swarm, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(STEPS):
        x, y = data()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        swarm.step(loss)


def loop_with_scaler(swarm: Swarm, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(STEPS):
        x, y = data()
        loss = functional.mse_loss(model(x), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        swarm.step(loss)


def loop_with_checkpointing(swarm: Swarm, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(STEPS):
        x, y = data()
        loss = functional.mse_loss(checkpoint(model, x, use_reentrant=False), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        swarm.step(loss)


@pytest.mark.parametrize(
    "loop", [loop_with_accumulation, loop_with_autocast, loop_with_scaler, loop_with_checkpointing]
)
def test_whatever_people_do_in_a_loop(
    tmp_path: Path, loop: Callable[[Swarm, nn.Module, torch.optim.Optimizer], None]
) -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    peer = FakePeer(tmp_path, run_of(model))
    initial = vector(model)
    with beside(peer, model, optimizer) as swarm:
        loop(swarm, model, optimizer)
        assert swarm.round == 1
    assert not np.array_equal(peer.theta, initial)
    assert np.array_equal(vector(model), peer.theta)


def test_a_compiled_model_sees_what_was_agreed(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)  # type: ignore[attr-defined]
    peer = FakePeer(tmp_path, run_of(model), other_update=1.0)
    x = torch.randn(2, 3)
    with beside(peer, compiled, optimizer) as swarm:  # type: ignore[arg-type]
        before = compiled(x)
        train(swarm, compiled, optimizer, STEPS)  # type: ignore[arg-type]
        assert torch.equal(compiled(x), model(x))
        assert not torch.allclose(compiled(x), before)


def test_a_model_changed_from_outside_brings_in_the_change(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    peer = FakePeer(tmp_path, run_of(model))
    other = copy.deepcopy(model.state_dict())
    other["weight"] += 1.0
    with beside(peer, model, optimizer) as swarm:
        model.load_state_dict(other)
        swarm.step()
        swarm.step()
        assert np.allclose(np.fromfile(tmp_path / "update.f32", np.float32), [-1, -1, -1, -1, 0, 0], atol=1e-6)


def test_what_is_not_finite_is_named_and_not_sent(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    peer = FakePeer(tmp_path, run_of(model))

    def loop() -> None:
        with beside(peer, model, optimizer) as swarm:
            for number in range(4):
                if number == 2:
                    model.weight.data[0, 0] = math.nan
                swarm.step()

    with pytest.raises(ConfigError, match="not finite after step 4 of the run"):
        loop()
    assert len(peer.dones) == 1
    assert not any(isinstance(message, Leave) for message in peer.heard)
    assert "left" not in peer.ended, "it did not wait for the round"


def test_a_loss_is_told_as_it_is_and_one_that_is_no_number_as_nothing(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    peer = FakePeer(tmp_path, run_of(model))
    with beside(peer, model, optimizer) as swarm:
        for loss in (math.nan, 1.0, -3.0, -1.0, torch.tensor(2.0), 4.0):
            swarm.step(loss)
    assert [done.loss for done in peer.dones] == [0.0, -2.0, 3.0]


@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_an_exception_of_the_loop_leaves_at_once(tmp_path: Path, error: BaseException) -> None:
    model = nn.Linear(2, 2)
    peer = FakePeer(tmp_path, run_of(model))

    def loop() -> None:
        with beside(peer, model, torch.optim.SGD(model.parameters())) as swarm:
            swarm.step()
            raise error

    with pytest.raises(type(error)):
        loop()
    assert peer.ended == ["at once"]
    assert not any(isinstance(message, Leave | Done) for message in peer.heard)


def test_a_peer_that_dies_is_an_exception_in_the_loop(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    peer = FakePeer(tmp_path, run_of(model), hangs_up_in=1)
    with pytest.raises(LocalError, match="the fake peer is gone"), beside(peer, model, optimizer) as swarm:
        train(swarm, model, optimizer, 10)
    assert len(peer.dones) == 1


def test_a_run_that_ends_ends_the_loop_with_its_last_parameters(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    peer = FakePeer(tmp_path, run_of(model), rounds=2, other_update=0.1)
    with beside(peer, model, optimizer) as swarm:
        assert train(swarm, model, optimizer, 4) == [False, True, False, True]
        assert swarm.is_over
        assert not swarm.step(), "there is nothing to bring in any more"
    assert np.array_equal(vector(model), peer.theta)
    assert not any(isinstance(message, Leave) for message in peer.heard)


def test_leaving_right_after_an_exchange_tells_the_others_that_nothing_comes(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    peer = FakePeer(tmp_path, run_of(model), num_connected=2)
    with beside(peer, model, optimizer) as swarm:
        assert [swarm.step() for _ in range(STEPS)] == [False, True]
    assert [(done.steps, done.samples) for done in peer.dones] == [(2, 8), (0, 1)]
    assert not np.fromfile(tmp_path / "update.f32", np.float32).any()


def test_who_is_alone_and_brings_nothing_just_goes(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    peer = FakePeer(tmp_path, run_of(model))
    with beside(peer, model, torch.optim.SGD(model.parameters(), lr=0.1)) as swarm:
        assert [swarm.step() for _ in range(STEPS)] == [False, True]
    assert len(peer.dones) == 1
    assert not any(isinstance(message, Leave) for message in peer.heard)


def test_another_model_than_the_runs_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    peer = FakePeer(tmp_path, run_of(nn.Linear(2, 3)))
    with pytest.raises(ConfigError, match="Build the model as the run's founder does"):
        beside(peer, model, torch.optim.SGD(model.parameters())).start()
    assert peer.ended == ["at once"]


def test_rounds_by_time_end_with_the_first_step_after_it(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    peer = FakePeer(tmp_path, run_of(model, round=RoundConfig(rounds=5, steps=1 << 20, seconds=1e-9)))
    with beside(peer, model, torch.optim.SGD(model.parameters())) as swarm:
        assert [swarm.step() for _ in range(3)] == [True] * 3
        with pytest.raises(ConfigError, match="known number of steps"):
            next(swarm.batches(TensorDataset(torch.zeros(4))))
        with pytest.raises(ConfigError, match="known number of steps"):
            swarm.scheduler(torch.optim.SGD(model.parameters()))


def test_fedavg_starts_its_optimiser_afresh_in_each_round(tmp_path: Path) -> None:
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    peer = FakePeer(tmp_path, run_of(model, strategy="fedavg"))
    with beside(peer, model, optimizer) as swarm:
        train(swarm, model, optimizer, STEPS)
        assert not optimizer.state
        train(swarm, model, optimizer, 1)
        assert len(optimizer.state) == 6


def test_a_schedule_follows_the_runs_step(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    peer = FakePeer(tmp_path, run_of(model), first_round=3)
    rates = []
    with beside(peer, model, optimizer) as swarm:
        schedule = swarm.scheduler(optimizer, warmup_steps=8, total_steps=16, final_fraction=0.5)
        for _ in range(12):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
            swarm.step()
    assert rates[:2] == pytest.approx([7 / 8, 1.0]), "step 6 and 7 of the run"
    assert rates[2:] == pytest.approx([0.5 + 0.25 * (1 + math.cos(math.pi * min(n, 8) / 8)) for n in range(10)])


def test_a_schedule_needs_an_end(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    peer = FakePeer(tmp_path, run_of(model, round=RoundConfig(rounds=1 << 20)))
    with beside(peer, model, optimizer) as swarm, pytest.raises(ConfigError, match="no end"):
        swarm.scheduler(optimizer)


def test_batches_are_the_samples_that_the_run_gives_out(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    dataset = TensorDataset(torch.arange(32))
    peer = FakePeer(tmp_path, run_of(model), rounds=4)
    seen: list[int] = []
    with beside(peer, model, optimizer) as swarm:
        for (batch,) in swarm.batches(dataset):
            assert len(batch) == BATCH
            seen += batch.tolist()
            swarm.step()
    # Two peers share the stream: this one had the first half of each 16 samples, so 32 of two epochs of 32.
    assert len(seen) == 32
    assert len(set(seen[:16])) == len(set(seen[16:])) == 16
    assert seen[:16] != sorted(seen[:16])
    assert seen[:16] != seen[16:]


def test_batches_may_be_parts_of_a_step_and_never_more(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    dataset = TensorDataset(torch.arange(32))
    peer = FakePeer(tmp_path, run_of(model), rounds=2)
    with beside(peer, model, optimizer) as swarm:
        for number, (batch,) in enumerate(swarm.batches(dataset, BATCH // 2)):
            assert len(batch) == BATCH // 2
            if number % 2:
                swarm.step()
    assert swarm.is_over


def test_more_batches_than_steps_use_up_is_an_error(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    peer = FakePeer(tmp_path, run_of(model))
    dataset = TensorDataset(torch.arange(32))

    def loop() -> None:
        with beside(peer, model, torch.optim.SGD(model.parameters())) as swarm:
            for number, _ in enumerate(swarm.batches(dataset)):
                if number % 2:
                    swarm.step()

    with pytest.raises(ConfigError, match="used up"):
        loop()


def test_waiting_for_peers(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    peer = FakePeer(tmp_path, run_of(model), num_connected=2)
    with beside(peer, model, torch.optim.SGD(model.parameters())) as swarm:
        swarm.wait_for_peers(2)
        with pytest.raises(Unavailable, match="2 of 3 peers"):
            swarm.wait_for_peers(3, timeout_s=0.1)


def test_a_swarm_that_was_not_started_says_so(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    swarm = beside(FakePeer(tmp_path, run_of(model)), model, torch.optim.SGD(model.parameters()))
    with pytest.raises(ConfigError, match=r"with barnraise\.join"):
        swarm.step()
    swarm.abort()


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Linear(2, 2).requires_grad_(requires_grad=False), "Unfreeze"),
        (nn.LazyLinear(2), "Send one batch"),
        (nn.Linear(2, 2, device="meta"), "Materialise"),
        (nn.Linear(2, 2, dtype=torch.complex64), "cannot be averaged"),
    ],
)
def test_models_that_cannot_be_averaged_are_refused(model: nn.Module, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Parameters(model, Ranks())
