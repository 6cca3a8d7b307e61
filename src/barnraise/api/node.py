"""A model, its optimiser and its place in a swarm as one object, with a training loop; `join` for those who have one.

A round of a node is two calls: `Node.execute_training_round` trains on this node alone, `Node.participate_in_sync`
exchanges with the others. `Node.train` makes them until the run is over.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self

from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer
from torch.utils.data import Dataset

from barnraise.api import swarm as swarms
from barnraise.api.configs import NetworkConfig, TransformerConfig
from barnraise.api.parameters import Parameters
from barnraise.api.ranks import Ranks
from barnraise.api.replay import Loss, Replay, Validation, train_step
from barnraise.api.swarm import Swarm
from barnraise.errors import ConfigError
from barnraise.ids import Digest
from barnraise.model.build import build
from barnraise.outer.strategy import strategy_of
from barnraise.swarm.workspace import root_of

SYNC_EVERY: Final = 5
LEARNING_RATE: Final = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundReport:
    """What a round of training came to on this node."""

    round: int
    steps: int
    samples: int
    loss: float
    """Mean of the steps'; nan where there was none."""
    is_superseded: bool = False
    """The others went on meanwhile: what was trained is dropped, and the model is the newest agreed one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """What `Node.train` came to."""

    losses: tuple[float, ...]
    """Of each round that this node brought in, on its own data."""
    rounds: int
    """The run's rounds so far, those before this node came among them."""
    samples: int
    """That this node trained on."""
    members: tuple[str, ...]
    """Peers of the last agreed round, this one among them."""
    theta: Digest
    """Hash of the parameters that the model has now: the same on every node that stayed to the end."""


class Node:
    """One peer: a model that is trained together with others.

    >>> with Node(model, NetworkConfig(), learning_rate=0.01) as node:
    ...     result = node.train(dataset, epochs=1, batch_size=8, sync_every=2)
    >>> result.rounds
    4
    """

    def __init__(
        self,
        model: nn.Module | TransformerConfig,
        network: NetworkConfig | None = None,
        optimizer: Optimizer | None = None,
        learning_rate: float = LEARNING_RATE,
        *,
        loss: Loss | None = None,
        keep_replay: bool = True,
    ) -> None:
        """Make a node; nothing is started yet.

        Args:
            model: any module, on its device; or the shape of a built-in one to make.
            network: how to meet the others; None: a run of this machine alone, until others join.
            optimizer: of the model's parameters; None: AdamW.
            learning_rate: of that AdamW.
            loss: ``(model, batch) -> mean loss``; None: `cross_entropy`.
            keep_replay: keep what `validate_computation` needs: a second copy of model and optimiser state, and the
                round's batches.
        """
        self.model: nn.Module = build(model.model_config(), seed=1) if isinstance(model, TransformerConfig) else model
        self.network = network or NetworkConfig()
        self.optimizer = optimizer or AdamW(self.model.parameters(), lr=learning_rate)
        self._loss = loss or cross_entropy
        self._keep_replay = keep_replay
        self._swarm: Swarm | None = None
        self._is_started = False
        self._pending: tuple[Tensor, int] | None = None
        """Loss and samples of the round's last step, which are handed in with the exchange."""
        self._replay: Replay | None = None

    # ---- the life of it ---------------------------------------------------------------------------------------

    def join_network(self, *, sync_every: int = SYNC_EVERY, batch_size: int = 32, rounds: int | None = None) -> Swarm:
        """Found a run or join one; `start` waits for the others.

        Args:
            sync_every: steps between two exchanges. This and the next two are a founder's; who joins takes the run's.
            batch_size: samples of a step.
            rounds: exchanges until the run is over; None: it has no end.

        Returns:
            The swarm, with the invitation for others and more besides.

        Raises:
            ConfigError: this node is in a network already, or a value is wrong.
            BarnraiseError: the run cannot be reached.
        """
        if self._swarm is not None:
            raise ConfigError("this node is in a network already. Make another node for another run.")
        network = self.network
        joined = swarms.join(
            self.model,
            self.optimizer,
            run=network.run,
            sync_every=sync_every,
            rounds=rounds,
            batch_size=batch_size,
            min_peers=network.min_peers,
            strategy=network.strategy,
            directory=network.directory,
            peer=network.peer_settings(),
        )
        self.attach(joined)
        return joined

    def start(self) -> Self:
        """Meet the others and load the parameters that they agree on; wait until there is something to train.

        Joins the network with the default rules, if that was not done. Does nothing the second time.

        Raises:
            BarnraiseError: the run cannot be reached, is another model's, or the peer ended.
        """
        if self._swarm is None:
            self.join_network()
        if not self._is_started:
            self.swarm.start()
            self._is_started = True
        return self

    def attach(self, swarm: Swarm) -> None:
        """Take a swarm that `barnraise.join` has made of this node's model and optimiser, for its other options."""
        if self._swarm is not None:
            raise ConfigError("this node is in a network already. Make another node for another run.")
        self._swarm = swarm

    def stop(self) -> None:
        """Finish the round with the others and leave; the model has the parameters that were agreed last."""
        swarm, self._swarm = self._swarm, None
        self._pending = None
        if swarm is not None and self._is_started:
            swarm.leave()
        elif swarm is not None:
            swarm.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        elif self._swarm is not None:
            self._swarm.abort()

    @property
    def swarm(self) -> Swarm:
        """The node's swarm. Raises `ConfigError` before `join_network`."""
        if self._swarm is None:
            raise ConfigError("this node is in no network. Call join_network() or train() first.")
        return self._swarm

    @property
    def invitation(self) -> str:
        """The word by which others join; it holds the cluster's secret. Raises like `swarm`."""
        return self.swarm.invitation

    # ---- training ---------------------------------------------------------------------------------------------

    def train(
        self,
        dataset: Dataset[Any],
        epochs: int = 1,
        batch_size: int = 32,
        sync_every: int = SYNC_EVERY,
        on_round: Callable[[RoundReport], None] | None = None,
    ) -> TrainResult:
        """Train until the run is over, together with whoever is in it.

        A founder plans as many rounds as ``min_peers`` peers need for so many passes over the dataset; whoever joins
        stays to the same end, and the numbers of the run hold for it, not those given here.

        Args:
            dataset: the same on every node, with a length and items by number.
            epochs: passes over it, of all nodes together.
            batch_size: samples of a step.
            sync_every: steps between two exchanges.
            on_round: told of each round that was brought in.

        Raises:
            ConfigError: a value is wrong, or the parameters are not finite any more.
            BarnraiseError: the run cannot be reached, or the peer ended.
        """
        if self._swarm is None:
            rounds = rounds_of(dataset, epochs, batch_size, sync_every, self.network.min_peers)
            self.join_network(sync_every=sync_every, batch_size=batch_size, rounds=rounds)
        self.start()
        losses, samples = [], 0
        batches = self.swarm.batches(dataset)
        while not self.swarm.is_over:
            report = self.execute_training_round(batches)
            if report.is_superseded:
                continue
            self.participate_in_sync()
            losses.append(report.loss)
            samples += report.samples
            if on_round is not None:
                on_round(report)
        return self._result(tuple(losses), samples)

    def execute_training_round(self, batches: Iterable[Any]) -> RoundReport:
        """Train this round's steps, on this node alone; `participate_in_sync` is next.

        Args:
            batches: at least as many as the round has steps; no more are taken.

        Raises:
            ConfigError: there are too few batches, the run is over, or the last round was not brought in.
        """
        swarm = self.start().swarm
        if self._pending is not None or swarm.is_over:
            reason = "the run is over" if swarm.is_over else "call participate_in_sync() first"
            raise ConfigError(f"there is no round to train: {reason}.")
        round_, steps = swarm.round, strategy_of(swarm.config).steps(swarm.config)
        self._replay = Replay(self.model, self.optimizer, self._loss) if self._keep_replay else None
        losses: list[Tensor] = []
        samples = 0
        for batch in islice(batches, steps):
            loss, count = self._train_step(batch)
            losses.append(loss)
            samples += count
            if len(losses) == steps:
                self._pending = loss, count
            elif swarm.step(loss, samples=count):
                self._replay = None
                return _report(round_, losses, samples, is_superseded=True)
        if self._pending is None:
            raise ConfigError(f"round {round_} has {steps} steps, and there were {len(losses)} batches. Give it more.")
        if self._replay is not None:
            self._replay.finish()
        return _report(round_, losses, samples)

    def participate_in_sync(self) -> bool:
        """Bring in what the round has trained, and load what the members agree on.

        Returns:
            Whether the run goes on.

        Raises:
            ConfigError: no round was trained, or the parameters are not finite any more: nothing was sent.
        """
        if self._pending is None:
            raise ConfigError("nothing was trained since the last sync. Call execute_training_round first.")
        (loss, samples), self._pending = self._pending, None
        self.swarm.step(loss, samples=samples)
        return not self.swarm.is_over

    def validate_computation(self) -> Validation:
        """Train the last round again, from the same parameters, optimiser state, random numbers and batches.

        Model and optimiser are afterwards as they were before. Two trainings agree bit for bit where every operation
        is deterministic, which on CPUs is the rule, and on GPUs takes ``torch.use_deterministic_algorithms``.

        Returns:
            Truthy if the update has the same bits; else its ``reason`` says what differs.
        """
        if self._replay is None:
            return Validation(is_valid=False, reason="no round of this node is at hand")
        return self._replay.compare()

    def _train_step(self, batch: Any) -> tuple[Tensor, int]:
        loss = train_step(self.model, self.optimizer, self._loss, batch)
        if self._replay is not None:
            self._replay.add(batch)
        return loss, size_of(batch)

    def _result(self, losses: tuple[float, ...], samples: int) -> TrainResult:
        metrics = self.swarm.metrics
        return TrainResult(
            losses=losses,
            rounds=metrics["round"] + 1 if metrics else len(losses),
            samples=samples,
            members=tuple(metrics.get("members", ())),
            theta=root_of(Parameters(self.model, Ranks()).read()),
        )


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Return the mean cross-entropy, in nats, of a batch on the model's device.

    Args:
        model: maps inputs to logits, the classes last: float[batch, classes] or float[batch, length, classes].
        batch: ``(inputs, targets)``, targets int64[batch] or int64[batch, length]; or tokens alone, int64[batch,
            length + 1], whose next ones are to be foretold.
    """
    device = next(model.parameters()).device
    inputs, targets = batch if isinstance(batch, tuple | list) else (batch[:, :-1], batch[:, 1:])
    logits = model(inputs.to(device)).float()
    return functional.cross_entropy(logits.reshape(-1, logits.size(-1)), targets.to(device).reshape(-1))


def size_of(batch: Any) -> int:
    """Return the number of samples of a batch: the length of its first tensor."""
    while isinstance(batch, tuple | list):
        batch = batch[0]
    if isinstance(batch, dict):
        return size_of(next(iter(batch.values())))
    return len(batch)


def rounds_of(dataset: Dataset[Any], epochs: int, batch_size: int, sync_every: int, num_peers: int) -> int:
    """Return how many rounds so many peers need for so many passes over a dataset, rounded up.

    Raises:
        ConfigError: a number is below 1, or the dataset is empty.
    """
    size = len(dataset)  # type: ignore[arg-type]  # torch's Dataset does not declare it, map-style ones have it
    numbers = {"epochs": epochs, "batch_size": batch_size, "sync_every": sync_every, "len(dataset)": size}
    for name, number in numbers.items():
        if number < 1:
            raise ConfigError(f"{name} is {number}; it must be at least 1")
    return math.ceil(epochs * size / (batch_size * sync_every * max(1, num_peers)))


def _report(round_: int, losses: list[Tensor], samples: int, *, is_superseded: bool = False) -> RoundReport:
    mean = sum(float(loss) for loss in losses) / len(losses) if losses else math.nan
    return RoundReport(round=round_, steps=len(losses), samples=samples, loss=mean, is_superseded=is_superseded)
