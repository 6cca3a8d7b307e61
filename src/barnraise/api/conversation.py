"""What a user's loop and its peer say to each other over `link.messages`: work comes in, updates go out.

The trainer's end of the same conversation that `train.train` holds, for a model and an optimiser that are somebody
else's. Of several ranks all go through it together; the first alone holds the socket.
"""

import contextlib
import logging
import math
import os
import threading
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from barnraise.api import snapshot
from barnraise.api.companion import Companion
from barnraise.api.parameters import Float32, Parameters
from barnraise.api.ranks import Ranks
from barnraise.api.snapshot import Stateful
from barnraise.config import RunConfig, run_config
from barnraise.errors import ConfigError, LocalError
from barnraise.link import messages
from barnraise.link.messages import Begin, Done, Finished, Hello, Initialise, Initialised, Leave, Progress, Stop
from barnraise.outer.strategy import strategy_of
from barnraise.train import vectors
from barnraise.train.session import PeerGone, Session

MAX_LOSS: Final = 1e6
NOT_STARTED: Final = "the swarm was not started. Use it as `with barnraise.join(...) as swarm:`."

log = logging.getLogger("barnraise")


@dataclass(kw_only=True, slots=True)
class Tally:
    """What this rank did since its work began."""

    began_at: float = field(default_factory=time.monotonic)
    steps: int = 0
    samples: int = 0
    num_losses: int = 0
    loss: Tensor | float = 0.0
    """Sum; on the model's device, so that a GPU need not be waited for at each step."""

    def add(self, loss: Tensor | float | None, samples: int) -> None:
        """Count one step."""
        self.steps += 1
        self.samples += samples
        if loss is not None:
            self.num_losses += 1
            self.loss = self.loss + (loss.detach().float() if isinstance(loss, Tensor) else loss)


class Conversation:
    """From hello to farewell."""

    def __init__(
        self,
        *,
        parameters: Parameters,
        optimizer: Optimizer,
        stateful: Sequence[Stateful],
        ranks: Ranks,
        companion: Companion | None,
    ) -> None:
        """``stateful`` is all that a snapshot keeps, the optimiser among it; ``companion`` is on the first rank alone."""
        self.ranks, self.companion = ranks, companion
        self.is_over = False
        self._parameters, self._optimizer, self._stateful = parameters, optimizer, tuple(stateful)
        self._open = contextlib.ExitStack()
        self._session: Session | None = None
        self._config: RunConfig | None = None
        self._begin: Begin | None = None
        self._base = np.empty(0, dtype=np.float32)

    @property
    def config(self) -> RunConfig:
        """The run's configuration, once there was work."""
        if self._config is None:
            raise ConfigError(NOT_STARTED)
        return self._config

    @property
    def work(self) -> Begin:
        """What is to be trained."""
        if self._begin is None:
            raise ConfigError(NOT_STARTED)
        return self._begin

    @property
    def peer(self) -> Companion:
        """The peer's process; on the first rank."""
        if self.companion is None:
            raise LocalError("only the first rank has a peer")
        return self.companion

    @property
    def has_news(self) -> bool:
        """Tell, on the first rank, whether the peer has something newer to do, or is gone."""
        return self._link.has_mail

    def open(self) -> None:
        """Meet the peer and take up its first work; raises what `take_up` does."""
        self.ranks.first_does(self._meet)
        self.take_up()

    def take_up(self) -> None:
        """Wait for the newest work and load its parameters; or the last ones, and be over.

        Raises:
            BarnraiseError: the peer ended, or the run is another model's.
        """
        while not self.is_over:
            match self._hear():
                case Initialise() as message:
                    self._initialise(message)
                case Begin() as begin:
                    self._take(begin)
                    return
                case Finished() as message:
                    self._end(message)
                case Stop():
                    self.is_over = True

    def report(self, step: int, loss: float) -> None:
        """Say, on the first rank, how far the round is."""
        self._send(Progress(round=self.work.round, step=step, loss=reported(loss, 1)))

    def bring_in(self, tally: Tally) -> None:
        """Hand in the round's update, with the snapshot that belongs to it.

        Raises:
            ConfigError: it is not finite; nothing was sent.
        """
        begin = self.work
        samples, loss, num_losses = self.ranks.sums([tally.samples, float(tally.loss), tally.num_losses])
        now = self._parameters.read()
        self.ranks.first_does(lambda: self._write_update(now, tally.steps))
        snapshot.save(self._stateful, self._of_rank(begin.snapshot_out))
        done = Done(
            round=begin.round,
            order=begin.order,
            steps=tally.steps,
            samples=max(1, round(samples)),
            tokens=max(1, round(samples)),
            loss=reported(loss, num_losses),
            validation_nats=0.0,
            validation_tokens=0,
            took_s=time.monotonic() - tally.began_at,
        )
        self.ranks.first_does(lambda: self._send(done))

    def say_goodbye(self, tally: Tally, timeout_s: float) -> None:
        """Bring in what there is, ask the peer to leave once the round is done with, and load what it comes to.

        Who brings nothing says so with an update of zeros and the weight of one sample, so that nobody waits for it and
        it is let go with the round. Who is alone then just goes: the model has the parameters that were agreed last.

        Raises:
            BarnraiseError: the peer ended instead, or was killed because that took longer than ``timeout_s``.
        """
        if not tally.steps and not self.ranks.first(lambda: b"others" if self.peer.num_connected > 1 else b""):
            return
        self.bring_in(tally)
        self.ranks.first_does(lambda: self._send(Leave()))
        watch = threading.Timer(timeout_s, self._give_up)
        watch.daemon = True
        watch.start()
        try:
            while not self.is_over:
                match self._hear():
                    case Finished() as message:
                        self._end(message)
                    case Stop():
                        self.is_over = True
                    case _:
                        pass  # the next round's work, from before it heard us
        finally:
            watch.cancel()

    def hang_up(self) -> None:
        """Tell the peer that nothing more comes from here."""
        self.is_over = True
        self._open.close()

    def close(self) -> None:
        """Hang up, and see that nothing of the peer is left."""
        self.hang_up()
        if self.companion is not None:
            self.companion.leave_at_once()

    def _meet(self) -> None:
        self._session = self._open.enter_context(self.peer.connect())
        hello = Hello(
            version=messages.VERSION,
            pid=os.getpid(),
            layout=self._parameters.layout,
            data_digest=b"",
            device=str(self._parameters.device),
            dtype=self._parameters.dtype,
            reason="the user's own loop",
        )
        self._send(hello)

    def _hear(self) -> messages.FromPeer:
        """Wait for the peer, and take its newest word: what a stopped process finds waiting is over."""

        def hear() -> bytes:
            try:
                message = self._link.receive()
                while not isinstance(message, Finished | Stop) and self._link.has_mail:
                    message = self._link.receive()
            except PeerGone:
                raise self.peer.why_it_ended() from None
            return messages.frame(message)[4:]

        return messages.from_peer(self.ranks.first(hear))

    def _initialise(self, message: Initialise) -> None:
        first = self._parameters.read()

        def write() -> None:
            vectors.write(Path(message.path), first)
            self._send(Initialised())

        self.ranks.first_does(write)

    def _take(self, begin: Begin) -> None:
        is_first = self._begin is None
        if self._config is None:
            self._config = self._read_config()
        self._load(begin.theta_path)
        if is_first and begin.snapshot_in:
            snapshot.load(self._stateful, self._of_rank(begin.snapshot_in), self._parameters.sharded)
        if not strategy_of(self._config).keeps_inner_state:
            self._optimizer.state.clear()
        self._begin = begin

    def _read_config(self) -> RunConfig:
        text = self.ranks.first(lambda: self.peer.place.run_file.read_bytes())
        config, ours = run_config(tomllib.loads(text.decode()), "the run"), self._parameters.digest
        if config.model.layout != ours:
            raise ConfigError(
                f"this model's layout is {ours[:12]} and the run's {config.model.layout[:12]}: names or shapes of their "
                "tensors differ. Build the model as the run's founder does."
            )
        return config

    def _load(self, theta_path: str) -> None:
        """Set the model to what is in the file, and keep what it took of it."""
        size = self._parameters.size
        self._base = self._parameters.write(self.ranks.first_does(lambda: vectors.read(Path(theta_path), size)))

    def _write_update(self, now: Float32, steps: int) -> None:
        """Write base minus now, "before minus after"."""
        begin = self.work
        update = np.subtract(self._base, now, out=now)
        if not np.isfinite(update).all():
            raise ConfigError(
                f"the model's parameters are not finite after step {begin.first_step + steps} of the run; nothing of "
                f"round {begin.round} was sent. Lower the learning rate, clip the gradients, or look at the data."
            )
        vectors.write(Path(begin.update_path), update)

    def _end(self, message: Finished) -> None:
        if message.theta_path:
            self._load(message.theta_path)
        self.is_over = True

    def _give_up(self) -> None:
        if self.companion is not None:
            log.warning("the others have not finished the round in time; leaving without it")
            self.companion.kill()

    @property
    def _link(self) -> Session:
        if self._session is None:
            raise LocalError("the peer is not connected")
        return self._session

    def _send(self, message: messages.FromTrainer) -> None:
        try:
            self._link.send(message)
        except PeerGone:
            raise self.peer.why_it_ended() from None

    def _of_rank(self, path: str) -> Path:
        """Return this rank's own file beside the first one's."""
        return Path(path if self.ranks.is_first else f"{path}.rank{self.ranks.rank}")


def reported(total: Tensor | float, count: float) -> float:
    """Return the mean loss as a figure that every peer takes: the run's books know no negative ones."""
    mean = float(total) / max(1.0, count)
    return min(max(mean, -MAX_LOSS), MAX_LOSS) if math.isfinite(mean) else 0.0
