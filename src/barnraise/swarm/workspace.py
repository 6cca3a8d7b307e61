"""The tensors a peer owns, and every computation of a round on them; numpy, no I/O.

    theta, momentum   the agreed parameters and the outer optimiser's state, float32[d]
    residual          what rounding left of our last update that was in (error feedback), float32[d]
    encoded           our update of this round on the grid, int16[d]
    aggregate         the round's aggregate as its shards come in, int16[d], one per attempt

`encode`, `aggregate` and `step` may each take tens of milliseconds: a node calls them in a worker thread, one at a
time. Nothing agreed changes before `commit`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import blake3
import numpy as np

from barnraise.aggregate.mean import weighted_mean
from barnraise.codec import grid
from barnraise.codec.grid import Blocks, Float32, Int16
from barnraise.collective import shards
from barnraise.config import OuterConfig
from barnraise.errors import LocalError
from barnraise.ids import Digest, PeerId
from barnraise.outer.step import step


@dataclass(frozen=True, kw_only=True, slots=True)
class Roots:
    """What a step came to."""

    aggregate: Digest
    theta: Digest
    momentum: Digest
    exponents: tuple[int, ...]
    """The next round's grid."""


def root_of(vector: Float32) -> Digest:
    """Return the hash of a flat vector's little-endian float32 bytes."""
    data = np.ascontiguousarray(vector, dtype="<f4")
    return Digest(blake3.blake3(data.data.cast("B"), derive_key_context="barnraise 1 tensor").digest())


def as_bytes(array: Float32 | Int16) -> memoryview:
    """Return a contiguous array's memory, writable if the array is."""
    return array.data.cast("B") if len(array) else memoryview(bytearray())


class Workspace:
    """One peer's tensors. ``blocks`` says where each tensor of the model lies in the flat vector."""

    def __init__(self, blocks: Blocks, theta: Float32, momentum: Float32, residual: Float32) -> None:
        self.blocks = tuple(blocks)
        self.size = len(theta)
        self.theta, self.momentum, self.residual = theta, momentum, residual
        self.encoded: Int16 | None = None
        self.residual_after: Float32 | None = None
        self._updates: dict[tuple[PeerId, int], Int16] = {}
        self._aggregates: dict[int, Int16] = {}
        self._next: tuple[Float32, Float32] | None = None
        self.generation = 0
        """Counts rounds begun: what was ordered for an older one is not worth doing."""

    def encode(self, update: Float32, exponents: Sequence[int], num_shards: int) -> tuple[Digest, ...]:
        """Put our update of this round on the grid and return the hashes of its shards.

        Args:
            update: float32[d], theta - w; overwritten.

        Raises:
            LocalError: it is not finite.
        """
        encoded = np.empty(self.size, np.int16)
        residual = self.residual.copy()
        grid.encode(update, self.blocks, exponents, encoded, residual)
        self.encoded, self.residual_after = encoded, residual
        return tuple(shards.leaf(as_bytes(part)) for part in self._shards(encoded, num_shards))

    def outgoing(self, shard: int, num_shards: int) -> memoryview:
        """Return the bytes of a shard of our update."""
        if self.encoded is None:
            raise LocalError("our update of this round is not encoded")
        return as_bytes(self._shards(self.encoded, num_shards)[shard])

    def incoming_update(self, sender: PeerId, shard: int, num_shards: int) -> memoryview:
        """Return where a member's shard is to be written; what was there is kept until it is overwritten."""
        start, stop = shards.bounds(self.size, num_shards)[shard]
        buffer = self._updates.setdefault((sender, shard), np.empty(stop - start, np.int16))
        return as_bytes(buffer)

    def incoming_aggregate(self, attempt: int, shard: int, num_shards: int) -> memoryview:
        """Return where a finished shard is to be written, or read from to pass it on."""
        return as_bytes(self._shards(self._aggregate_of(attempt), num_shards)[shard])

    def aggregate(
        self, shard: int, num_shards: int, attempt: int, weights: Sequence[tuple[PeerId, int]], me: PeerId
    ) -> None:
        """Aggregate one shard of ours from the contributors' shards, which are all here.

        Args:
            weights: ``(contributor, samples)``, in the order of the cut.
        """
        mine = self._shards(self.encoded, num_shards)[shard] if self.encoded is not None else None
        updates = [mine if peer == me and mine is not None else self._updates[peer, shard] for peer, _ in weights]
        out = self._shards(self._aggregate_of(attempt), num_shards)[shard]
        weighted_mean(updates, [weight for _, weight in weights], out)

    def step(self, attempt: int, exponents: Sequence[int], config: OuterConfig) -> Roots:
        """Apply the aggregate to a copy of the parameters and return what it hashes to."""
        aggregate = self._aggregate_of(attempt)
        theta, momentum = np.empty_like(self.theta), np.empty_like(self.momentum)
        scratch = np.empty(grid.CHUNK, np.float32)
        for start, stop, exponent in grid.chunks(self.blocks, exponents):  # one pass over memory: 55 ms -> 40 at 25 MB
            part, gradient = slice(start, stop), scratch[: stop - start]
            grid.decode(aggregate[part], [(0, stop - start)], [exponent], gradient)
            theta[part], momentum[part] = self.theta[part], self.momentum[part]
            step(config, theta[part], momentum[part], gradient)
            if not np.isfinite(theta[part]).all():
                raise LocalError("the step leads to parameters that are not finite; it is not proposed")
        self._next = theta, momentum
        return Roots(
            aggregate=shards.leaf(as_bytes(aggregate)),
            theta=root_of(theta),
            momentum=root_of(momentum),
            exponents=grid.next_exponents(aggregate, self.blocks, exponents),
        )

    def pending(self) -> tuple[Float32, Float32]:
        """Return the stepped copy ``(theta, momentum)``, to be stored before it is committed."""
        if self._next is None:
            raise LocalError("there is no step to commit")
        return self._next

    def commit(self, contributed: bool) -> None:
        """Make the stepped copy the parameters and begin the next round."""
        self.theta, self.momentum = self.pending()
        self.settle(contributed)

    def replace(self, theta: Float32, momentum: Float32, contributed: bool) -> None:
        """Take up parameters fetched from a donor."""
        if len(theta) != self.size or len(momentum) != self.size:
            raise LocalError(f"{len(theta)} parameters instead of {self.size}")
        self.theta, self.momentum = theta, momentum
        self.settle(contributed)

    def settle(self, contributed: bool) -> None:
        """Keep the new residual if our update was in, else the old one; forget the round."""
        if contributed and self.residual_after is not None:
            self.residual = self.residual_after
        self.generation += 1
        self.encoded = self.residual_after = self._next = None
        self._updates.clear()
        self._aggregates.clear()

    def _aggregate_of(self, attempt: int) -> Int16:
        found = self._aggregates.get(attempt)
        if found is None:
            # 1. the thread that aggregates our shard and one that receives another's both find nothing;
            # 2. each makes a buffer. `setdefault` is atomic: both go on with the first, and no shard is lost.
            found = self._aggregates.setdefault(attempt, np.zeros(self.size, np.int16))
        return found

    def _shards(self, vector: Int16, num_shards: int) -> list[Int16]:
        return [vector[start:stop] for start, stop in shards.bounds(self.size, num_shards)]
