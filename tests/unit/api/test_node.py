"""A node's rounds beside a peer that is a thread of this test; and one node with a real peer, alone."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from barnraise.api import configs
from barnraise.api import node as module
from barnraise.api import trainer as trainers
from barnraise.api.configs import NetworkConfig, TransformerConfig
from barnraise.api.node import Node, RoundReport, cross_entropy, rounds_of, size_of
from barnraise.api.parameters import Parameters
from barnraise.api.ranks import Ranks
from barnraise.api.trainer import Trainer
from barnraise.config import PeerConfig, RunConfig, run_config
from barnraise.errors import ConfigError
from barnraise.model.lfm2 import LFM2
from barnraise.swarm.workspace import root_of

from .fake_peer import FakePeer, beside, run_of

STEPS = 2


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1)


def classifier(dropout: float = 0.5) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 4))


def dataset_of(size: int = 64) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(torch.randn(size, 3, generator=generator), torch.arange(size) % 4)


def batches_of(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(4, 3), torch.arange(4)) for _ in range(count)]


def node_of(
    peer_directory: Path, rounds: int = 3, node: Node | None = None, other: float = 0.01
) -> tuple[Node, FakePeer]:
    """Return a node whose swarm has been started."""
    node = node or Node(classifier(), learning_rate=0.01)
    peer = FakePeer(peer_directory, run_of(node.model), other_update=other, rounds=rounds)
    node.attach(beside(peer, node.model, node.optimizer))
    return node.start().start(), peer


def vector(model: nn.Module) -> bytes:
    return Parameters(model, Ranks()).read().tobytes()


def test_a_round_is_training_and_then_an_exchange(tmp_path: Path) -> None:
    node, peer = node_of(tmp_path)
    with node:
        before = vector(node.model)
        report = node.execute_training_round(batches_of(5))
        assert dataclasses.replace(report, loss=0.0) == RoundReport(round=0, steps=STEPS, samples=8, loss=0.0)
        assert 0 < report.loss < 10
        assert not peer.dones, "nothing is handed in before it is asked for"
        trained = vector(node.model)
        assert trained != before
        assert node.participate_in_sync()
        assert vector(node.model) != trained
        assert node.swarm.round == 1
        assert (peer.dones[0].steps, peer.dones[0].samples) == (STEPS, 8)
        assert peer.dones[0].loss == pytest.approx(report.loss)


def test_the_two_calls_take_turns(tmp_path: Path) -> None:
    node, _ = node_of(tmp_path)
    with node:
        with pytest.raises(ConfigError, match="Call execute_training_round first"):
            node.participate_in_sync()
        node.execute_training_round(batches_of(STEPS))
        with pytest.raises(ConfigError, match=r"call participate_in_sync\(\) first"):
            node.execute_training_round(batches_of(STEPS))
        node.participate_in_sync()
        with pytest.raises(ConfigError, match="round 1 has 2 steps, and there were 1 batches"):
            node.execute_training_round(batches_of(1))


def test_a_run_that_is_over_has_no_rounds(tmp_path: Path) -> None:
    node, _ = node_of(tmp_path, rounds=1)
    with node:
        node.execute_training_round(batches_of(STEPS))
        assert not node.participate_in_sync()
        with pytest.raises(ConfigError, match="the run is over"):
            node.execute_training_round(batches_of(STEPS))


def test_train_goes_to_the_runs_end_and_tells_what_came_out(tmp_path: Path) -> None:
    node, peer = node_of(tmp_path, rounds=3)
    told: list[RoundReport] = []
    with node:
        result = node.train(dataset_of(), epochs=1, batch_size=999, sync_every=999, on_round=told.append)
    assert len(result.losses) == result.rounds == len(peer.dones) == 3
    assert result.losses == tuple(report.loss for report in told)
    assert result.samples == 3 * STEPS * 4
    assert result.theta == root_of(np.frombuffer(vector(node.model), np.float32))
    assert result.theta == root_of(peer.theta)


def test_news_in_the_midst_of_a_round_drop_it(tmp_path: Path) -> None:
    node, peer = node_of(tmp_path)
    with node:
        peer._say(peer.begin(7))
        report = node.execute_training_round(batches_of(STEPS))
        assert report.is_superseded
        assert report.steps == 1
        assert node.swarm.round == 7
        assert not node.validate_computation()
        node.swarm.abort()  # the fake peer does not expect to be left in a round that it made up


# ---- validation -------------------------------------------------------------------------------------------------


def test_a_round_that_is_trained_again_comes_to_the_same_bits(tmp_path: Path) -> None:
    node, _ = node_of(tmp_path)
    with node:
        assert "no round" in node.validate_computation().reason
        for _ in range(3):
            node.execute_training_round(batches_of(STEPS))
            validation = node.validate_computation()
            assert validation, validation.reason
            assert validation.is_valid is True
            if not node.participate_in_sync():
                break
            assert node.validate_computation(), "also when the model has moved on"


def test_validation_leaves_everything_as_it_was(tmp_path: Path) -> None:
    node, peer = node_of(tmp_path)
    with node:
        node.execute_training_round(batches_of(STEPS))
        node.participate_in_sync()
        node.model.eval()
        before = vector(node.model), torch.get_rng_state(), repr(node.optimizer.state_dict()), node.swarm.agreed_step
        assert node.validate_computation()
        assert vector(node.model) == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        assert repr(node.optimizer.state_dict()) == before[2]
        assert node.swarm.agreed_step == before[3]
        assert not node.model.training
        assert len(peer.dones) == 1


def test_what_is_not_deterministic_is_found_out(tmp_path: Path) -> None:
    draw = random.Random(1)

    def noisy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return cross_entropy(model, batch) * draw.random()

    node, _ = node_of(tmp_path, node=Node(classifier(), learning_rate=0.01, loss=noisy))
    with node:
        node.execute_training_round(batches_of(STEPS))
        validation = node.validate_computation()
        assert not validation
        assert "2 steps led to parameters" in validation.reason
        assert "once more, to" in validation.reason


def test_a_batch_that_was_changed_is_found_out(tmp_path: Path) -> None:
    node, _ = node_of(tmp_path)
    batches = batches_of(STEPS)
    with node:
        node.execute_training_round(batches)
        batches[1][0][2, 1] += 0.5
        assert not node.validate_computation()


def test_without_a_replay_there_is_nothing_to_validate(tmp_path: Path) -> None:
    node, _ = node_of(tmp_path, node=Node(classifier(), keep_replay=False))
    with node:
        node.execute_training_round(batches_of(STEPS))
        assert not node.validate_computation()


# ---- parts ------------------------------------------------------------------------------------------------------


def test_a_node_is_in_one_network(tmp_path: Path) -> None:
    node, peer = node_of(tmp_path)
    with pytest.raises(ConfigError, match="in a network already"):
        node.attach(beside(peer, node.model, node.optimizer))
    with pytest.raises(ConfigError, match="in a network already"):
        node.join_network()
    node.stop()
    node.stop()
    with pytest.raises(ConfigError, match="in no network"):
        _ = node.invitation


def test_a_node_that_never_started_just_goes(tmp_path: Path) -> None:
    node = Node(classifier())
    peer = FakePeer(tmp_path, run_of(node.model))
    with node:
        node.attach(beside(peer, node.model, node.optimizer))
    assert peer.ended == ["at once"]


def test_a_loop_that_fails_leaves_at_once(tmp_path: Path) -> None:
    node, peer = node_of(tmp_path)
    with pytest.raises(ZeroDivisionError), node:
        raise ZeroDivisionError
    assert peer.ended == ["at once"]


def test_the_default_loss_takes_classes_tokens_and_pairs_of_them() -> None:
    logits = torch.randn(2, 3, 5)
    model = nn.Sequential(nn.Identity())
    model.register_parameter("anchor", nn.Parameter(torch.zeros(1)))
    targets = torch.tensor([[0, 1, 2], [3, 4, 0]])
    expected = nn.functional.cross_entropy(logits.view(6, 5), targets.view(6))
    assert torch.equal(cross_entropy(model, (logits, targets)), expected)
    assert torch.equal(
        cross_entropy(model, [logits[:, 0], targets[:, 0]]), nn.functional.cross_entropy(logits[:, 0], targets[:, 0])
    )
    tokens = torch.randint(0, 256, (2, 9))
    lfm2 = LFM2(TransformerConfig(hidden_size=16, num_layers=1, num_heads=2).model_config(), seed=1)
    foretold = nn.functional.cross_entropy(lfm2(tokens[:, :-1]).view(16, 256), tokens[:, 1:].reshape(16))
    assert torch.equal(cross_entropy(lfm2, tokens), foretold)


def test_a_batch_counts_its_first_tensor() -> None:
    tensor = torch.zeros(7, 2)
    assert size_of(tensor) == size_of([tensor, torch.zeros(3)]) == size_of({"x": tensor}) == size_of(((tensor,),)) == 7


@pytest.mark.parametrize(
    ("numbers", "rounds"),
    [((1, 8, 2, 1), 4), ((1, 8, 2, 2), 2), ((3, 8, 2, 1), 12), ((1, 64, 5, 9), 1), ((1, 9, 2, 1), 4)],
)
def test_rounds_are_what_the_peers_together_need(numbers: tuple[int, int, int, int], rounds: int) -> None:
    assert rounds_of(dataset_of(64), *numbers) == rounds


@pytest.mark.parametrize("name", ["epochs", "batch_size", "sync_every"])
def test_a_number_below_one_is_refused(name: str) -> None:
    numbers = {"epochs": 1, "batch_size": 8, "sync_every": 2, name: 0}
    with pytest.raises(ConfigError, match=f"{name} is 0"):
        Node(classifier()).train(dataset_of(), **numbers)
    with pytest.raises(ConfigError, match=r"len\(dataset\) is 0"):
        Node(classifier()).train(dataset_of(0))


def test_the_small_configs_are_parts_of_the_large_ones() -> None:
    settings = NetworkConfig(max_peers=10, mdns=True).peer_settings()
    PeerConfig(data_dir=Path(), cluster_key_file=Path(), **settings)
    defaults = {item.name: item.default for item in dataclasses.fields(PeerConfig)}
    assert NetworkConfig().peer_settings() == {name: defaults[name] for name in settings}
    shape = TransformerConfig(vocab_size=300, max_seq_len=16, hidden_size=32, num_layers=2, num_heads=2, dropout=0.1)
    assert dataclasses.asdict(shape).items() <= dataclasses.asdict(shape.model_config()).items()
    assert TransformerConfig().model_config() == RunConfig().model
    run_config({"model": dataclasses.asdict(shape.model_config())}, "test")
    assert isinstance(Node(shape).model, LFM2)


# ---- with a real peer -------------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_a_node_alone_trains_with_a_real_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_docstring: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"model": classifier(), "dataset": dataset_of(), "NetworkConfig": NetworkConfig}
    run_docstring(module.Node, Node=Node, **names)


@pytest.mark.e2e
def test_a_trainer_alone_trains_with_a_real_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_docstring: Callable[..., None]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"model": classifier(), "dataset": dataset_of(), "NetworkConfig": NetworkConfig}
    run_docstring(trainers.Trainer, Trainer=Trainer, **names)


@pytest.mark.parametrize("thing", ["NetworkConfig", "TransformerConfig"])
def test_the_examples_of_the_configs(thing: str, run_docstring: Callable[..., None]) -> None:
    run_docstring(getattr(configs, thing), **{thing: getattr(configs, thing)})
