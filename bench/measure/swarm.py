"""A real swarm raised to be measured: the processes of ``barnraise train``, and what their events and /proc say."""

import dataclasses
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import trio
from measure.process import cpu_s, peak_rss_mb

from barnraise.cli.launch import Swarm, raise_swarm
from barnraise.config import PeerConfig, RunConfig
from barnraise.observe.view import View
from barnraise.observe.vocabulary import (
    AnyEvent,
    PeerStarted,
    RoundCommitted,
    RoundPlanned,
    RunFinished,
    TrainerStarted,
)
from barnraise.runs import directory as rundir

RANDOM_TRAINER: Final = Path(__file__).with_name("random_trainer.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A peer at the moment it reported an agreed round."""

    event: RoundCommitted
    peer_cpu_s: float
    peak_rss_mb: float

    @property
    def trained_at(self) -> float:
        """Unix seconds at which the peer's trainer was done with the round."""
        return self.event.time - self.event.took_s + self.event.train_s


@dataclass(kw_only=True)
class Recorder:
    """A display that shows nothing and remembers; the launcher tells it each event as it comes."""

    pids: dict[int, int] = field(default_factory=dict)
    """Process of each peer."""
    trainer_pids: dict[int, int] = field(default_factory=dict)
    training: set[int] = field(default_factory=set)
    """Peers that have begun a round."""
    finished: set[int] = field(default_factory=set)
    """Peers that have finished the run."""
    marks: dict[int, dict[int, Mark]] = field(default_factory=dict)
    """By round, then by peer."""
    _changed: trio.Event = field(default_factory=trio.Event)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for an event after which ``is_so`` holds."""
        while not is_so():
            await self._changed.wait()

    def event(self, before: View, after: View, source: int, record: Mapping[str, Any], event: AnyEvent) -> None:
        """Take note of one event."""
        match event:
            case PeerStarted():
                self.pids[source] = event.pid
            case TrainerStarted():
                self.trainer_pids[source] = event.pid
            case RoundPlanned():
                self.training.add(source)
            case RoundCommitted():
                pid = self.pids[source]
                mark = Mark(event=event, peer_cpu_s=cpu_s(pid), peak_rss_mb=peak_rss_mb(pid))
                self.marks.setdefault(event.round, {})[source] = mark
            case RunFinished():
                self.finished.add(source)
            case _:
                pass
        self._changed.set()
        self._changed = trio.Event()

    def tick(self, view: View) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Pass on what a person should know."""
        print(f"swarm: {text}", file=sys.stderr)

    def invite(self, word: str, file: str) -> None:
        """Show nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Directory(rundir.RunDirectory):
    """A run's directory whose peers start another trainer than the built-in one."""

    trainer: tuple[str, ...]

    def peer_config(self, index: int) -> PeerConfig:
        """Return the settings of a peer."""
        return dataclasses.replace(rundir.RunDirectory.peer_config(self, index), trainer=self.trainer)


async def run_swarm(
    config: RunConfig,
    num_peers: int,
    parent: Path,
    *,
    trainer: tuple[str, ...] = (),
    watch: Callable[[Recorder], Awaitable[None]],
) -> Recorder:
    """Raise a swarm, watch it, stop it where it then is, and return what was recorded.

    Args:
        config: the run.
        num_peers: how many, on loopback.
        parent: where the run's directory is made.
        trainer: command of the trainers; empty: the built-in one.
        watch: runs beside the swarm; the swarm is stopped when it returns.

    Raises:
        BarnraiseError: the swarm came to nothing.
    """
    path = Path(tempfile.mkdtemp(prefix="swarm-", dir=parent)) / "run"
    made = rundir.create(config, num_peers, path, datetime.now())
    directory = _Directory(path=made.path, config=made.config, peers=made.peers, trainer=trainer)
    recorder = Recorder()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(raise_swarm, Swarm(directory=directory, settings={"log_level": "warning"}), recorder)
        await watch(recorder)
        nursery.cancel_scope.cancel()
    return recorder


def random_trainer(num_parameters: int, pause_s: float) -> tuple[str, ...]:
    """Return the command of a trainer without a model."""
    options = ("--parameters", str(num_parameters), "--pause-s", str(pause_s))
    return (sys.executable, str(RANDOM_TRAINER), *options)
