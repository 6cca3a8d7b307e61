"""The tensors a peer owns, and every computation of a round on them; numpy, no I/O.

    theta, momentum   the agreed parameters and the outer optimiser's state, float32[d]
    residual          what rounding left of our last update that was in (error feedback), float32[d]
    sent              our update of this round as it travels, a list of encoded shards
    updates           the other members' shards as they come in, encoded
    aggregates        the round's aggregate as its shards come in, encoded, a list per attempt

`encode`, `aggregate` and `step` may each take tens of milliseconds: a node calls them in a worker thread, one at a
time. Each goes through the vector once, in pieces that stay in the cache from the first operation to the hash.
Nothing agreed changes before `commit`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import blake3
import numpy as np

from barnraise.aggregate.mean import weighted_mean
from barnraise.codec import grid
from barnraise.codec.codec import PIECE, Codec
from barnraise.codec.grid import Blocks, Bytes, Float32, Int16
from barnraise.collective import shards
from barnraise.config import RunConfig
from barnraise.errors import LocalError
from barnraise.ids import Digest, PeerId
from barnraise.outer.average import average
from barnraise.outer.strategy import Strategy, strategy_of

TENSOR_CONTEXT = "barnraise 1 tensor"


@dataclass(frozen=True, kw_only=True, slots=True)
class Roots:
    """What a step came to."""

    aggregate: Digest
    """Of the decoded integers: it does not tell how they travelled."""
    theta: Digest
    momentum: Digest
    exponents: tuple[int, ...]
    """The next round's grid."""


def root_of(vector: Float32) -> Digest:
    """Return the hash of a flat vector's little-endian float32 bytes."""
    data = np.ascontiguousarray(vector, dtype="<f4")
    return Digest(blake3.blake3(data.data.cast("B"), derive_key_context=TENSOR_CONTEXT).digest())


def as_bytes(array: Float32 | Int16 | Bytes) -> memoryview:
    """Return a contiguous array's memory, writable if the array is."""
    return array.data.cast("B") if len(array) else memoryview(bytearray())


class Workspace:
    """One peer's tensors."""

    def __init__(
        self,
        blocks: Blocks,
        theta: Float32,
        momentum: Float32,
        residual: Float32,
        *,
        codec: Codec,
        num_parameters: int | None = None,
    ) -> None:
        """Take the tensors over.

        Args:
            blocks: Where each tensor of the model lies in the flat vector.
            theta: float32[d]
            momentum: float32[d]
            residual: float32[d]
            codec: How updates travel.
            num_parameters: The first so many elements are parameters, the others buffers (batch statistics and the
                like), which every strategy averages plainly. None: there are no buffers.

        Raises:
            LocalError: a tensor lies on both sides of that border.
        """
        self.blocks = tuple(blocks)
        self.size = len(theta)
        self.num_parameters = self.size if num_parameters is None else num_parameters
        if any(start < self.num_parameters < stop for start, stop in self.blocks):
            raise LocalError(f"a tensor lies across element {self.num_parameters}, where the buffers begin")
        self.codec = codec
        self.theta, self.momentum, self.residual = theta, momentum, residual
        self.residual_after: Float32 | None = None
        self._sent: list[Bytes] | None = None
        self._updates: dict[tuple[PeerId, int, int], Bytes] = {}
        self._aggregates: dict[tuple[int, int], list[Bytes]] = {}
        self._next: tuple[Float32, Float32] | None = None
        self.generation = 0
        """Counts rounds begun: what was ordered for an older one is not worth doing."""

    def shard_bytes(self, shard: int, num_shards: int) -> int:
        """Return the encoded size of a shard."""
        start, stop = shards.bounds(self.size, num_shards)[shard]
        return self.codec.size_bytes(stop - start)

    def encode(self, update: Float32, exponents: Sequence[int], num_shards: int) -> tuple[Digest, ...]:
        """Put our update of this round on the grid and through the codec; return the hashes of its shards.

        What both took away is the residual that a later round makes good: exactly (update + residual) - decoded, as
        far as float32 tells.

        Args:
            update: float32[d], theta - w; overwritten.

        Raises:
            LocalError: it is not finite.
        """
        residual = np.empty_like(self.residual)
        sent = []
        for start, stop in shards.bounds(self.size, num_shards):
            data = np.empty(self.codec.size_bytes(stop - start), np.uint8)
            self._encode_shard(update, exponents, start, stop, data, residual)
            sent.append(data)
        self._sent, self.residual_after = sent, residual
        return tuple(shards.leaf(as_bytes(data)) for data in sent)

    def outgoing(self, shard: int, num_shards: int) -> memoryview:
        """Return the bytes of a shard of our update."""
        if self._sent is None or len(self._sent) != num_shards:
            raise LocalError("our update of this round is not encoded")
        return as_bytes(self._sent[shard])

    def incoming_update(self, sender: PeerId, shard: int, num_shards: int) -> memoryview:
        """Return where a member's shard is to be written; what was there is kept until it is overwritten."""
        # A thread that is late may make room for a shard of the round before, when there were more members or fewer.
        key = sender, shard, num_shards
        return as_bytes(self._updates.setdefault(key, np.empty(self.shard_bytes(shard, num_shards), np.uint8)))

    def incoming_aggregate(self, attempt: int, shard: int, num_shards: int) -> memoryview:
        """Return where a finished shard is to be written, or read from to pass it on."""
        return as_bytes(self._aggregate_of(attempt, num_shards)[shard])

    def aggregate(
        self, shard: int, num_shards: int, attempt: int, weights: Sequence[tuple[PeerId, int]], me: PeerId
    ) -> None:
        """Aggregate one shard of ours from the contributors' shards, which are all here, and encode the result.

        All members, this one too, go on with what these bytes decode to. What the codec takes from an aggregate is not
        fed back: it is at most 1/127 of a block's largest element, and only the shard's owner, who changes with the
        members, could keep it.

        Args:
            weights: ``(contributor, samples)``, in the order of the cut.
        """
        updates = [
            self._sent[shard] if peer == me and self._sent is not None else self._updates[peer, shard, num_shards]
            for peer, _ in weights
        ]
        samples = [weight for _, weight in weights]
        data = self._aggregate_of(attempt, num_shards)[shard]
        scratch, mean = np.empty((len(updates), PIECE), np.int16), np.empty(PIECE, np.int16)
        start, stop = shards.bounds(self.size, num_shards)[shard]
        for first, last in _pieces(0, stop - start):
            decoded = [
                self.codec.decode(update, first, last, row) for update, row in zip(updates, scratch, strict=True)
            ]
            weighted_mean(decoded, samples, mean[: last - first])
            self.codec.encode(mean[: last - first], first, data)

    def step(self, attempt: int, exponents: Sequence[int], config: RunConfig, round_: int, num_shards: int) -> Roots:
        """Apply the aggregate to a copy of the parameters and return what it hashes to.

        Raises:
            LocalError: it leads to values that are not finite.
        """
        stride = Stride(self, strategy_of(config), config, round_, exponents)
        for (start, stop), data in zip(
            shards.bounds(self.size, num_shards), self._aggregate_of(attempt, num_shards), strict=True
        ):
            for first, last in _pieces(start, stop):
                values = self.codec.decode(data, first - start, last - start, stride.scratch)
                stride.over(first, last, values)
        self._next = stride.theta, stride.momentum
        return stride.roots()

    def pending(self) -> tuple[Float32, Float32]:
        """Return the stepped copy ``(theta, momentum)``, to be stored before it is committed."""
        if self._next is None:
            raise LocalError("there is no step to commit")
        return self._next

    def commit(self, contributed: bool) -> None:
        """Make the stepped copy the parameters and begin the next round."""
        self.theta, self.momentum = self.pending()
        self.settle(self.residual_behind(contributed))

    def replace(self, theta: Float32, momentum: Float32, residual: Float32) -> None:
        """Take up parameters fetched from a donor, and the residual that belongs to them."""
        if len(theta) != self.size or len(momentum) != self.size:
            raise LocalError(f"{len(theta)} parameters instead of {self.size}")
        self.theta, self.momentum = theta, momentum
        self.settle(residual)

    def residual_behind(self, contributed: bool) -> Float32:
        """Return the residual behind this round: the new one if our update was in, else the old one."""
        return self.residual_after if contributed and self.residual_after is not None else self.residual

    def settle(self, residual: Float32) -> None:
        """Take up the residual and forget the round."""
        self.residual = residual
        self.generation += 1
        self._sent = self.residual_after = self._next = None
        self._updates.clear()
        self._aggregates.clear()

    def _aggregate_of(self, attempt: int, num_shards: int) -> list[Bytes]:
        found = self._aggregates.get((attempt, num_shards))
        if found is None:
            # 1. the thread that aggregates our shard and one that receives another's both find nothing;
            # 2. each makes buffers. `setdefault` is atomic: both go on with the first, and no shard is lost.
            made = [np.zeros(self.shard_bytes(shard, num_shards), np.uint8) for shard in range(num_shards)]
            found = self._aggregates.setdefault((attempt, num_shards), made)
        return found

    def _encode_shard(
        self, update: Float32, exponents: Sequence[int], start: int, stop: int, data: Bytes, residual: Float32
    ) -> None:
        scratch, decoded = np.empty(PIECE, np.int16), np.empty(PIECE, np.int16)
        for first, last in _pieces(start, stop):
            values = scratch[: last - first]
            residual[first:last] = self.residual[first:last]
            for block, low, high in grid.segments(self.blocks, first, last):
                part = slice(low, high)
                grid.encode(update[part], exponents[block], values[low - first : high - first], residual[part])
            self.codec.encode(values, first - start, data)
            if not self.codec.is_exact:
                values -= self.codec.decode(data, first - start, last - start, decoded)
                self._feed_back(values, exponents, first, residual)

    def _feed_back(self, lost: Int16, exponents: Sequence[int], first: int, residual: Float32) -> None:
        """Add what the codec took from the elements from ``first`` on to the residual."""
        values = np.empty(len(lost), np.float32)
        for block, low, high in grid.segments(self.blocks, first, first + len(lost)):
            part = slice(low - first, high - first)
            grid.decode(lost[part], exponents[block], values[part])
            residual[low:high] += values[part]


class Stride:
    """One step on its way through the vector, piece by piece in order."""

    def __init__(
        self, space: Workspace, strategy: Strategy, config: RunConfig, round_: int, exponents: Sequence[int]
    ) -> None:
        self.theta, self.momentum = np.empty_like(space.theta), np.empty_like(space.momentum)
        self.scratch = np.empty(PIECE, np.int16)
        self._gradient = np.empty(PIECE, np.float32)
        self._space, self._strategy, self._config, self._round = space, strategy, config, round_
        self._exponents = exponents
        self._peaks = [0] * len(space.blocks)
        self._aggregate_hash = blake3.blake3(derive_key_context=shards.LEAF_CONTEXT)
        self._theta_hash = blake3.blake3(derive_key_context=TENSOR_CONTEXT)
        self._momentum_hash = blake3.blake3(derive_key_context=TENSOR_CONTEXT)

    def over(self, first: int, last: int, aggregate: Int16) -> None:
        """Step over the elements ``first .. last``, whose aggregate on the grid this is."""
        space, theta, momentum = self._space, self.theta, self.momentum
        theta[first:last], momentum[first:last] = space.theta[first:last], space.momentum[first:last]
        for block, low, high in grid.segments(space.blocks, first, last):
            values, gradient = aggregate[low - first : high - first], self._gradient[: high - low]
            self._peaks[block] = max(self._peaks[block], grid.peak_of(values))
            grid.decode(values, self._exponents[block], gradient)
            if low < space.num_parameters:
                self._strategy.step(self._config, self._round, theta[low:high], momentum[low:high], gradient)
            else:
                average(theta[low:high], gradient)
        if not np.isfinite(theta[first:last]).all():
            raise LocalError("the step leads to parameters that are not finite; it is not proposed")
        self._aggregate_hash.update(as_bytes(aggregate))
        self._theta_hash.update(as_bytes(theta[first:last]))
        self._momentum_hash.update(as_bytes(momentum[first:last]))

    def roots(self) -> Roots:
        """Return what the step came to, once all pieces are behind it."""
        grids = zip(self._exponents, self._peaks, strict=True)
        return Roots(
            aggregate=Digest(self._aggregate_hash.digest()),
            theta=Digest(self._theta_hash.digest()),
            momentum=Digest(self._momentum_hash.digest()),
            exponents=tuple(grid.next_exponent(exponent, peak) for exponent, peak in grids),
        )


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the pieces of a shard, ``(first, last)``."""
    for first in range(start, stop, PIECE):
        yield first, min(first + PIECE, stop)
