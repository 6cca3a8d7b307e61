"""The tensors a peer owns, and every computation of a round on them; numpy, no I/O.

    theta, momentum   the agreed parameters and the outer optimiser's state, float32[d]
    residual          what grid and codec left of our last update that was in, float32[d]
    sent              our update of this round as it travels, a list of encoded shards
    updates           the other members' shards, once they have come in and were checked
    aggregates        the shards of the round's aggregate, of each attempt, likewise

`encode`, `aggregate` and `step` may each take tens of milliseconds: a node calls them in a worker thread, one at a
time. They go through the vector in pieces that stay in the cache from one operation to the next. What comes in is kept
by other threads meanwhile. Nothing agreed changes before `commit`.

The residual is error feedback (`codec.feedback` has the theory and the plain form). Here it is of what the grid and the
codec took together, exactly (update + residual) - decoded as far as float32 tells; which of the two residuals is behind
a round is decided where the round is, and either is on disk before it commits.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import blake3
import numpy as np

from barnraise.aggregate.mean import weighted_mean
from barnraise.codec import grid, rounding
from barnraise.codec.codec import PIECE, Codec, Malformed, Place, Reader
from barnraise.codec.grid import Blocks, Bytes, Float32, Int16
from barnraise.collective import shards
from barnraise.config import RunConfig
from barnraise.errors import LocalError
from barnraise.ids import Digest, PeerId
from barnraise.outer.average import average
from barnraise.outer.strategy import Strategy, strategy_of
from barnraise.swarm.manifest import Hasher, manifest_of
from barnraise.swarm.round import Stepped


class Part(NamedTuple):
    """One shard of one round."""

    round: int
    shard: int
    num_shards: int

    @property
    def place(self) -> Place:
        """Return what the codec is to know of it."""
        return Place(seed=self.round, index=self.shard)


class Encoded(NamedTuple):
    """A shard as it travels, and what reads it: its bytes were checked."""

    data: Bytes
    reader: Reader


@dataclass(frozen=True, kw_only=True, slots=True)
class Roots:
    """What a step came to."""

    aggregate: Digest
    """Of the decoded integers: it does not tell how they travelled."""
    theta: Digest
    momentum: Digest
    exponents: tuple[int, ...]
    """The next round's grid."""

    def stepped(self, round_: int, attempt: int, unix_time: int = 0) -> Stepped:
        """Return what a member reports of it."""
        return Stepped(
            round=round_,
            attempt=attempt,
            aggregate_root=self.aggregate,
            theta_root=self.theta,
            momentum_root=self.momentum,
            exponents=self.exponents,
            unix_time=unix_time,
        )


def root_of(vector: Float32) -> Digest:
    """Return the name of a flat vector's little-endian float32 bytes: the hash of their manifest."""
    return manifest_of(as_bytes(np.ascontiguousarray(vector, dtype="<f4"))).name


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
            codec: How updates travel, of type int16.
            num_parameters: The first so many elements are parameters, the others buffers (batch statistics and the
                like), which every strategy averages plainly. None: there are no buffers.

        Raises:
            LocalError: a tensor lies on both sides of that border, or the codec is none of integers.
        """
        self.blocks = tuple(blocks)
        self.size = len(theta)
        self.num_parameters = self.size if num_parameters is None else num_parameters
        if any(start < self.num_parameters < stop for start, stop in self.blocks):
            raise LocalError(f"a tensor lies across element {self.num_parameters}, where the buffers begin")
        if codec.dtype != np.int16:
            raise LocalError(f"updates are grid integers, and {codec.name} is of {codec.dtype}")
        self.codec = codec
        self.theta, self.momentum, self.residual = theta, momentum, residual
        self.residual_after: Float32 | None = None
        self._sent: list[Encoded] | None = None
        # A thread that is late may keep a shard of the round before: hence the whole part in the key, and nothing is
        # ever looked for that was not reported for the round at hand. Setting one entry of a dict is atomic.
        self._updates: dict[tuple[PeerId, Part], Encoded] = {}
        self._aggregates: dict[tuple[int, Part], Encoded] = {}
        self._next: tuple[Float32, Float32] | None = None
        self.generation = 0
        """Counts rounds begun: what was ordered for an older one is not worth doing."""

    # ---- shards that travel -----------------------------------------------------------------------------------

    def count(self, part: Part) -> int:
        """Return the number of elements of a shard; the last ones of a short vector are empty."""
        start, stop = shards.bounds(self.size, part.num_shards)[part.shard]
        return stop - start

    def update_bound_bytes(self, part: Part) -> int:
        """Return the most bytes that a shard of an update takes."""
        return self.codec.bound_bytes(self.count(part))

    def aggregate_bound_bytes(self, part: Part, num_updates: int) -> int:
        """Return the most bytes that a shard of the aggregate of so many updates takes."""
        return self.codec.for_aggregate(num_updates).bound_bytes(self.count(part))

    def keep_update(self, sender: PeerId, part: Part, data: Bytes) -> None:
        """Check a member's shard and keep it, in place of what was kept before.

        Args:
            data: uint8[n], which nobody writes to any more.

        Raises:
            Malformed: it cannot be decoded. What was kept before stays.
        """
        reader = self.codec.reader(data, self.count(part), part.place)
        self._updates[sender, part] = Encoded(data, reader)

    def keep_aggregate(self, part: Part, attempt: int, num_updates: int, data: Bytes) -> None:
        """Check a finished shard and keep it, in place of what was kept before.

        Args:
            num_updates: So many members contributed.
            data: uint8[n], which nobody writes to any more.

        Raises:
            Malformed: it cannot be decoded. What was kept before stays.
        """
        reader = self.codec.for_aggregate(num_updates).reader(data, self.count(part), part.place)
        self._aggregates[attempt, part] = Encoded(data, reader)

    def outgoing(self, part: Part) -> memoryview:
        """Return the bytes of a shard of our update."""
        if self._sent is None or len(self._sent) != part.num_shards:
            raise LocalError("our update of this round is not encoded")
        return as_bytes(self._sent[part.shard].data)

    def aggregated(self, part: Part, attempt: int) -> memoryview:
        """Return the bytes of a finished shard, to pass it on."""
        return as_bytes(self._aggregate(part, attempt).data)

    def read_aggregate(self, part: Part, attempt: int, first: int, last: int, out: Int16) -> None:
        """Write the grid integers of a piece of a finished shard to ``out[: last - first]``."""
        self._aggregate(part, attempt).reader.read(first, last, out)

    # ---- the round's computations -----------------------------------------------------------------------------

    def encode(self, update: Float32, exponents: Sequence[int], round_: int, num_shards: int) -> tuple[Digest, ...]:
        """Put our update of this round on the grid and through the codec; return the hashes of its shards.

        What both took away is the residual that a later round makes good.

        Args:
            update: float32[d], theta - w; overwritten.

        Raises:
            LocalError: it is not finite.
        """
        residual = np.empty_like(self.residual)
        sent = []
        for shard, (start, stop) in enumerate(shards.bounds(self.size, num_shards)):
            part, wanted = Part(round_, shard, num_shards), update[start:stop]
            values = np.empty(stop - start, np.int16)
            for block, low, high in grid.segments(self.blocks, start, stop):
                near = slice(low - start, high - start)
                rounding.to_grid(wanted[near], self.residual[low:high], exponents[block], values[near])
            sent.append(_encoded(self.codec, values, part))
            self._keep_remainder(wanted, start, sent[-1].reader, exponents, residual)
        self._sent, self.residual_after = sent, residual
        return tuple(shards.leaf(as_bytes(encoded.data)) for encoded in sent)

    def aggregate(self, part: Part, attempt: int, weights: Sequence[tuple[PeerId, int]], me: PeerId) -> None:
        """Aggregate one shard of ours from the contributors' shards, which are all here, and encode the result.

        All members, this one too, go on with what these bytes decode to. What the codec takes from an aggregate is not
        fed back: it is little (`Codec.for_aggregate`), and only the shard's owner, who changes with the members, could
        keep it.

        Args:
            weights: ``(contributor, samples)``, in the order of the cut.
        """
        readers = [
            self._sent[part.shard].reader if peer == me and self._sent is not None else self._updates[peer, part].reader
            for peer, _ in weights
        ]
        samples = [weight for _, weight in weights]
        scratch, mean = np.empty((len(readers), PIECE), np.int16), np.empty(self.count(part), np.int16)
        for first, last in _pieces(0, len(mean)):
            decoded = [row[: last - first] for row in scratch]
            for reader, row in zip(readers, decoded, strict=True):
                reader.read(first, last, row)
            weighted_mean(decoded, samples, mean[first:last])
        self._aggregates[attempt, part] = _encoded(self.codec.for_aggregate(len(readers)), mean, part)

    def step(
        self,
        attempt: int,
        exponents: Sequence[int],
        config: RunConfig,
        round_: int,
        num_shards: int,
        *,
        holds_momentum: bool = False,
    ) -> Roots:
        """Apply the aggregate, whose shards are all here, to a copy of the parameters; return what that hashes to.

        ``holds_momentum``: as `State.holds_momentum` says.

        Raises:
            LocalError: it leads to values that are not finite.
        """
        stride = Stride(self, strategy_of(config), config, round_, exponents, holds_momentum=holds_momentum)
        for shard, (start, stop) in enumerate(shards.bounds(self.size, num_shards)):
            reader = self._aggregate(Part(round_, shard, num_shards), attempt).reader
            for first, last in _pieces(start, stop):
                values = stride.scratch[: last - first]
                reader.read(first - start, last - start, values)
                stride.over(first, last, values)
        self._next = stride.theta, stride.momentum
        return stride.roots()

    def pending(self) -> tuple[Float32, Float32]:
        """Return the stepped copy ``(theta, momentum)``, to be stored before it is committed."""
        if self._next is None:
            raise LocalError("there is no step to commit")
        return self._next

    # ---- the round's end --------------------------------------------------------------------------------------

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

    # ---- parts of it ------------------------------------------------------------------------------------------

    def _aggregate(self, part: Part, attempt: int) -> Encoded:
        found = self._aggregates.get((attempt, part))
        if found is None:
            raise LocalError(f"shard {part.shard} of round {part.round} is not here yet")
        return found

    def _keep_remainder(
        self, wanted: Float32, start: int, reader: Reader, exponents: Sequence[int], residual: Float32
    ) -> None:
        """Write what a shard's encoding lacks of what was wanted to the residual."""
        decoded = np.empty(PIECE, np.int16)
        for first, last in _pieces(start, start + len(wanted)):
            reader.read(first - start, last - start, decoded)
            for block, low, high in grid.segments(self.blocks, first, last):
                values = decoded[low - first : high - first]
                rounding.remainder(wanted[low - start : high - start], values, exponents[block], residual[low:high])


class Stride:
    """One step on its way through the vector, piece by piece in order."""

    def __init__(
        self,
        space: Workspace,
        strategy: Strategy,
        config: RunConfig,
        round_: int,
        exponents: Sequence[int],
        *,
        holds_momentum: bool,
    ) -> None:
        self.theta, self.momentum = np.empty_like(space.theta), np.empty_like(space.momentum)
        self.scratch = np.empty(PIECE, np.int16)
        self._gradient = np.empty(PIECE, np.float32)
        self._space, self._strategy, self._config, self._round = space, strategy, config, round_
        self._exponents, self._holds_momentum = exponents, holds_momentum
        self._peaks = [0] * len(space.blocks)
        self._aggregate_hash = blake3.blake3(derive_key_context=shards.LEAF_CONTEXT)
        self._theta_hash, self._momentum_hash = Hasher(), Hasher()

    def over(self, first: int, last: int, aggregate: Int16) -> None:
        """Step over the elements ``first .. last``, whose aggregate on the grid this is."""
        space, theta, momentum = self._space, self.theta, self.momentum
        theta[first:last], momentum[first:last] = space.theta[first:last], space.momentum[first:last]
        for block, low, high in grid.segments(space.blocks, first, last):
            values, gradient = aggregate[low - first : high - first], self._gradient[: high - low]
            self._peaks[block] = max(self._peaks[block], grid.peak_of(values))
            grid.decode(values, self._exponents[block], gradient)
            if low < space.num_parameters:
                tensors = theta[low:high], momentum[low:high], gradient
                self._strategy.step(self._config, self._round, *tensors, holds_momentum=self._holds_momentum)
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
            theta=self._theta_hash.name(),
            momentum=self._momentum_hash.name(),
            exponents=tuple(grid.next_exponent(exponent, peak) for exponent, peak in grids),
        )


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the pieces of a shard, ``(first, last)``."""
    for first in range(start, stop, PIECE):
        yield first, min(first + PIECE, stop)


def _encoded(codec: Codec, values: Int16, part: Part) -> Encoded:
    """Return a shard of ours, encoded, and as every other peer will read it."""
    room = np.empty(codec.bound_bytes(len(values)), np.uint8)
    size = codec.encode(values, room, part.place)
    data = room if size == len(room) else room[:size].copy()
    try:
        return Encoded(data, codec.reader(data, len(values), part.place))
    except Malformed as error:
        raise LocalError(f"{codec.name} made an encoding that it does not read: {error}") from error
