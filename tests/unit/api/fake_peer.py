"""A peer that lives in a thread of this process: it speaks `link.messages` with the user's loop, and nothing else."""

import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from barnraise import config as configuration
from barnraise.api.conversation import Conversation
from barnraise.api.parameters import Parameters
from barnraise.api.place import Place
from barnraise.api.ranks import Ranks
from barnraise.api.snapshot import Stateful
from barnraise.api.swarm import Swarm
from barnraise.config import DataConfig, InnerConfig, ModelConfig, PeerConfig, RoundConfig, RunConfig
from barnraise.errors import BarnraiseError, LocalError
from barnraise.link import messages
from barnraise.link.messages import Begin, Done, Finished, Hello, Initialise, Initialised, Leave, Progress, Segment
from barnraise.train.session import Session

Float32 = npt.NDArray[np.float32]
PATIENCE_S = 20.0


def run_of(model: nn.Module, **changes: Any) -> RunConfig:
    """Return the configuration of a run of a user's model: two steps a round, four samples a step."""
    fields: dict[str, Any] = {
        "data": DataConfig(kind="own"),
        "model": ModelConfig(architecture="custom", layout=Parameters(model, Ranks()).digest),
        "inner": InnerConfig(batch_size=4),
        "round": RoundConfig(rounds=5, steps=2),
    }
    return RunConfig(**(fields | changes))


@dataclass
class FakePeer:
    """Stands where a `Companion` does."""

    directory: Path
    run: RunConfig
    other_update: float = 0.0
    """What the rest of the swarm brings: this, for every parameter; the step is the mean of both."""
    rounds: int = 1_000_000
    begins: list[Begin] = field(default_factory=list)
    dones: list[Done] = field(default_factory=list)
    heard: list[messages.FromTrainer] = field(default_factory=list)
    theta: Float32 = field(default_factory=lambda: np.empty(0, np.float32))
    ended: list[str] = field(default_factory=list)
    first_round: int = 0
    snapshot_in: str = ""
    num_connected: int = 1
    hangs_up_in: int = -1
    """Round in which it dies without a word."""

    def __post_init__(self) -> None:
        configuration.save(self.run, self.directory / "run.toml")
        settings = PeerConfig(data_dir=self.directory, cluster_key_file=self.directory / "cluster.key")
        self.place = Place(path=self.directory, run_file=self.directory / "run.toml", settings=settings, founded=False)
        self.peer_id = "fake"
        self.committed = None
        self._ours, self._theirs = socket.socketpair()
        self._ours.settimeout(PATIENCE_S)
        self._thread = threading.Thread(target=self._live, daemon=True)
        self.failure: BaseException | None = None

    # ---- what a Companion offers ----

    def connect(self) -> Session:
        self._thread.start()
        return Session(self._theirs)

    def wait(self, until: Callable[[], bool], timeout_s: float) -> bool:
        return until()

    def why_it_ended(self) -> BarnraiseError:
        return LocalError("the fake peer is gone")

    def wait_for_end(self, timeout_s: float) -> bool:
        self.ended.append("left")
        return True

    def kill(self) -> None:
        self.ended.append("killed")
        self._ours.shutdown(socket.SHUT_RDWR)

    def leave_at_once(self) -> None:
        self.ended.append("at once")
        if self._thread.ident is not None:
            self._thread.join(PATIENCE_S)
        self._ours.close()
        self._theirs.close()
        assert self.failure is None, self.failure

    # ---- the thread ----

    def _live(self) -> None:
        try:
            with self._ours.makefile("rb") as stream:
                self._stream = stream
                self._converse()
        except (EOFError, OSError):
            pass  # it hung up, or was killed
        except BaseException as error:
            self.failure = error

    def _converse(self) -> None:
        hello = self._receive()
        assert isinstance(hello, Hello)
        if not len(self.theta):
            self._say(Initialise(path=str(self.directory / "initial.f32")))
            assert isinstance(self._receive(), Initialised)
            self.theta = np.fromfile(self.directory / "initial.f32", np.float32)
        for number in range(self.first_round, self.rounds):
            if not self._round(number):
                break
        self._say(Finished(round=number, theta_path=self._write(self.theta, "final.f32")))
        while True:
            self._receive()

    def _round(self, number: int) -> bool:
        if number == self.hangs_up_in:
            self._ours.shutdown(socket.SHUT_RDWR)
            raise EOFError
        begin = self.begin(number)
        self.begins.append(begin)
        self._say(begin)
        while not isinstance(message := self._receive(), Done | Leave):
            assert isinstance(message, Progress)
        if isinstance(message, Leave):
            return False
        assert (message.round, message.order) == (begin.round, begin.order)
        self.dones.append(message)
        update = np.fromfile(begin.update_path, np.float32)
        assert np.isfinite(update).all()
        self.theta = self.theta - (update + np.float32(self.other_update)) / np.float32(
            1 if not self.other_update else 2
        )
        return True

    def begin(self, number: int) -> Begin:
        steps, size = self.run.round.steps, self.run.inner.batch_size
        return Begin(
            round=number,
            fragment=0,
            order=number + 1,
            theta_path=self._write(self.theta, f"theta-{number % 2}.f32"),
            update_path=str(self.directory / "update.f32"),
            segments=(Segment(2 * number * steps * size, steps * size),),
            steps=steps,
            first_step=number * steps,
            total_steps=self.run.round.rounds * steps,
            seconds=self.run.round.seconds,
            num_members=2,
            snapshot_in=self.snapshot_in,
            snapshot_out=str(self.directory / f"round-{number + 1:08d}.safetensors"),
            evaluate=Segment(0, 0),
        )

    def _write(self, vector: Float32, name: str) -> str:
        vector.astype(np.float32).tofile(self.directory / name)
        return str(self.directory / name)

    def _say(self, message: messages.FromPeer) -> None:
        self._ours.sendall(messages.frame(message))

    def _receive(self) -> messages.FromTrainer:
        prefix = self._stream.read(4)
        if len(prefix) < 4:
            raise EOFError
        message = messages.from_trainer(self._stream.read(messages.body_length(prefix)))
        self.heard.append(message)
        return message


def beside(
    peer: FakePeer, model: nn.Module, optimizer: torch.optim.Optimizer, *stateful: Stateful, leave_s: float = PATIENCE_S
) -> Swarm:
    """Return the swarm of a loop whose peer is a fake."""
    ranks = Ranks()
    conversation = Conversation(
        parameters=Parameters(model, ranks),
        optimizer=optimizer,
        stateful=(optimizer, *stateful),
        ranks=ranks,
        companion=peer,  # type: ignore[arg-type]  # it offers what is used of one
    )
    return Swarm(conversation, leave_s)
