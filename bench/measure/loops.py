"""The training loops of a swarm without the swarm: as many trainer processes, the same steps, nobody to wait for."""

import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
from measure.process import resume

from barnraise.config import RunConfig, save
from barnraise.errors import LocalError
from barnraise.link.messages import Begin, Done, Initialise, Initialised, Segment
from barnraise.link.process import TrainerProcess, TrainerUp
from barnraise.swarm.plan import VALIDATION_WINDOWS

WARM_UP_ROUNDS: Final = 1
Kind = TypeVar("Kind")


class Loop:
    """One trainer that was started, warmed up by a first round, and has nothing to do."""

    def __init__(self, config: RunConfig, directory: Path, index: int, num_loops: int) -> None:
        self._config, self._directory = config, directory
        self._index, self._num_loops = index, num_loops
        self._trainer = TrainerProcess(self._command(), directory / f"{index}.log")
        self.pid = 0

    async def live(self, *, task_status: Any) -> None:
        """Keep the trainer until cancelled; it has started once it is warm."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._trainer.run)
            try:
                self.pid = (await self._next(TrainerUp)).hello.pid
                await self._trainer.assign(Initialise(path=str(self._theta)))
                await self._next(Initialised)
                await self.train(0, WARM_UP_ROUNDS)
                task_status.started()
                await trio.sleep_forever()
            finally:
                if self.pid:
                    resume([self.pid])  # a stopped process would not see that it is to leave

    async def train(self, first: int, rounds: int) -> Done:
        """Do the steps of ``rounds`` rounds as one piece of work, with no round's end but the last."""
        await self._trainer.assign(self._work(first, rounds))
        return await self._next(Done)

    async def _next(self, kind: type[Kind]) -> Kind:
        """Return the trainer's next event of one kind, passing over its progress."""
        while not isinstance(event := await self._trainer.events.receive(), kind):
            if isinstance(event, TrainerUp):
                raise LocalError(f"a trainer died with status {event.died}; its log in {self._directory} says why")
        return event

    def _work(self, first: int, rounds: int) -> Begin:
        rules, inner = self._config.round, self._config.inner
        share = rules.steps * inner.batch_size * rounds
        begins_at = rules.steps * inner.batch_size * self._num_loops * first
        windows = VALIDATION_WINDOWS * rounds
        return Begin(
            round=first,
            fragment=0,
            theta_path=str(self._theta),
            update_path=str(self._directory / f"update-{self._index}.f32"),
            segments=(Segment(begins_at + self._index * share, share),),
            steps=rules.steps * rounds,
            first_step=rules.steps * first,
            total_steps=rules.steps * rules.rounds,
            snapshot_in=str(self._snapshot(first)) if first else "",
            snapshot_out=str(self._snapshot(first + rounds)),
            evaluate=Segment(self._index * windows, windows),
        )

    @property
    def _theta(self) -> Path:
        return self._directory / f"theta-{self._index}.f32"

    def _snapshot(self, round_: int) -> Path:
        return self._directory / f"snapshot-{self._index}-{round_}.safetensors"

    def _command(self) -> tuple[str, ...]:
        threads = max(1, (os.cpu_count() or 1) // self._num_loops)  # as `barnraise train` shares the cores
        options = ("--config", str(self._directory / "run.toml"), "--device", "cpu", "--threads", str(threads))
        # Linux shares cores among sessions before it shares them among processes, and each peer leads a session.
        return ("setsid", sys.executable, "-P", "-m", "barnraise.train", *options)


@contextlib.asynccontextmanager
async def open_loops(config: RunConfig, num_loops: int, parent: Path) -> AsyncIterator[list[Loop]]:
    """Start ``num_loops`` trainers, warm them up together, and end them with the block."""
    directory = Path(tempfile.mkdtemp(prefix="loops-", dir=parent))
    save(config, directory / "run.toml")
    loops = [Loop(config, directory, index, num_loops) for index in range(num_loops)]
    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as warming:
            for loop in loops:
                warming.start_soon(nursery.start, loop.live)
        yield loops
        nursery.cancel_scope.cancel()
