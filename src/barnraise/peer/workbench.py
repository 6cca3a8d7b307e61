"""The arithmetic of a round in worker threads, one piece at a time: from files and the workspace to what a member reports.

Whatever of it is of a round that is over by the time it is its turn is not done at all.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import trio

from barnraise.codec.grid import Float32
from barnraise.errors import LocalError
from barnraise.ids import Digest, PeerId
from barnraise.link.messages import Done
from barnraise.swarm import effects
from barnraise.swarm.member import Member
from barnraise.swarm.records import MICRO
from barnraise.swarm.round import Stepped, Trained
from barnraise.swarm.workspace import Part, Roots, Workspace

T = TypeVar("T")


class Workbench:
    """Where a member's tensors are worked on.

    Args:
        member: whose state says how.
        workspace: the tensors.
    """

    def __init__(self, member: Member, workspace: Workspace) -> None:
        self._member = member
        self._workspace = workspace
        self._limiter = trio.CapacityLimiter(1)

    async def compute(self, order: Callable[..., T], *arguments: Any) -> T:
        """Run arithmetic in a worker thread, one order at a time."""
        return await trio.to_thread.run_sync(order, *arguments, limiter=self._limiter)

    async def encode(self, done: Done, update_file: Path) -> Trained:
        """Put the trainer's update on the grid.

        Raises:
            LocalError: the trainer wrote another number of elements.
        """
        state, num_shards = self._member.state, self._member.work.plan.num_shards
        leaves = await self.compute(self._encode_file, update_file, state.exponents, done.round, num_shards)
        return Trained(
            round=done.round,
            steps=done.steps,
            samples=done.samples,
            tokens=done.tokens,
            train_loss=_micro(done.loss),
            validation_loss=_micro(done.validation_nats / max(1, done.validation_tokens)),
            validation_tokens=done.validation_tokens,
            leaves=leaves,
        )

    async def aggregate(self, effect: effects.Transfer, shard: int, generation: int) -> bool:
        """Aggregate a shard of ours; False: nobody wants it any more."""
        cut = self._member.state.cut
        if cut is None or self._member.state.attempt != effect.attempt:
            return False
        weights = [(PeerId(entry.member), entry.samples) for entry in cut.contributions]
        part, me = Part(effect.round, shard, self._member.work.plan.num_shards), self._member.me

        def order() -> bool:
            self._workspace.aggregate(part, effect.attempt, weights, me)
            return True

        return bool(await self._compute_for(generation, order))

    async def step(self, effect: effects.Step, generation: int) -> tuple[Stepped, tuple[Float32, Float32]] | None:
        """Step on a copy; return what came of it, and parameters and momentum. None: the round is over."""
        state, num_shards = self._member.state, self._member.work.plan.num_shards

        def order() -> tuple[Roots, tuple[Float32, Float32]]:
            roots = self._workspace.step(
                effect.attempt,
                state.exponents,
                state.config,
                effect.round,
                num_shards,
                holds_momentum=state.holds_momentum,
            )
            return roots, self._workspace.pending()

        found = await self._compute_for(generation, order)
        if found is None:
            return None
        roots, tensors = found
        return roots.stepped(effect.round, effect.attempt, int(time.time())), tensors

    async def _compute_for(self, generation: int, order: Callable[[], T]) -> T | None:
        """Run arithmetic for a round, unless that round is over by the time it is its turn; then return None."""
        return await self.compute(lambda: order() if self._workspace.generation == generation else None)

    def _encode_file(self, file: Path, exponents: tuple[int, ...], round_: int, num_shards: int) -> tuple[Digest, ...]:
        update = np.fromfile(file, dtype=np.float32)
        if len(update) != self._workspace.size:
            raise LocalError(f"the trainer's update has {len(update)} elements instead of {self._workspace.size}")
        return self._workspace.encode(update, exponents, round_, num_shards)


def _micro(value: float) -> int:
    """Return a loss in micro-nats; the trainer has refused what is not finite."""
    return round(value * MICRO)
