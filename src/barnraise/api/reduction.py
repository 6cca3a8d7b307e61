"""One rank's books of one all-reduce by all-to-all shards, and its arithmetic; no I/O.

Shard r of the vector belongs to rank r. Each rank sends shard r of its vector to rank r (reduce-scatter), which adds
them up in the order of ranks and sends the sum to everybody (all-gather). Every element is computed on one machine, so
all ranks end with the same bits. Two latencies, and 2 (n - 1) / n of the vector sent by each rank.
"""

from typing import Literal

import numpy as np

from barnraise.api.backend import Operation, Vector
from barnraise.collective import shards

Kind = Literal["part", "total"]


class Reduction:
    """What one rank has and lacks. ``room`` is asked from worker threads; all else happens in one thread.

    Args:
        vector: float[d], this rank's; read until the reduction is over.
        operation: ``mean`` or ``sum``.
        rank: this rank.
        world_size: n.
    """

    def __init__(self, vector: Vector, operation: Operation, rank: int, world_size: int) -> None:
        self._vector = vector
        self._operation = operation
        self._rank = rank
        self._bounds = shards.bounds(len(vector), world_size)
        others = [other for other in range(world_size) if other != rank]
        self.result = np.empty_like(vector)
        self._parts = {other: np.empty_like(self._shard(vector, rank)) for other in others}
        self.parts_owed = set(others) if self._is_owner(rank) else set()
        """Ranks whose part of our shard is not here."""
        self.totals_owed = {other for other in others if self._is_owner(other)}
        """Ranks whose finished shard is not here."""

    def outgoing(self, kind: Kind) -> dict[int, memoryview]:
        """Return what goes to whom: parts to the shards' owners, or our finished shard to everybody."""
        if kind == "part":
            return {other: _bytes(self._shard(self._vector, other)) for other in self._parts if self._is_owner(other)}
        total = _bytes(self._shard(self.result, self._rank))
        return dict.fromkeys(self._parts, total) if self._is_owner(self._rank) else {}

    def room(self, kind: Kind, sender: int, size_bytes: int) -> memoryview | None:
        """Return where a rank's payload goes; None where it was never owed or has another size.

        What is here already may come again, if its sender lost the connection before it heard so: it goes nowhere.
        """
        if sender not in self._parts:
            return None
        place = self._parts[sender] if kind == "part" else self._shard(self.result, sender)
        if not 0 < place.nbytes == size_bytes:
            return None
        is_owed = sender in (self.parts_owed if kind == "part" else self.totals_owed)
        return _bytes(place) if is_owed else memoryview(bytearray(size_bytes))

    def arrived(self, kind: Kind, sender: int) -> None:
        """Note that a payload is whole."""
        (self.parts_owed if kind == "part" else self.totals_owed).discard(sender)

    def add_up(self) -> None:
        """Reduce our shard, whose parts are all here."""
        total = self._shard(self.result, self._rank)
        world_size = len(self._bounds)
        for rank in range(world_size):
            part = self._parts[rank] if rank != self._rank else self._shard(self._vector, rank)
            if rank == 0:
                np.copyto(total, part)
            else:
                np.add(total, part, out=total)
        if self._operation == "mean":
            np.true_divide(total, total.dtype.type(world_size), out=total)

    def _is_owner(self, rank: int) -> bool:
        """Tell whether a rank has anything to add up; the last shards of a short vector are empty."""
        start, stop = self._bounds[rank]
        return stop > start

    def _shard(self, vector: Vector, rank: int) -> Vector:
        start, stop = self._bounds[rank]
        return vector[start:stop]


def _bytes(array: Vector) -> memoryview:
    return array.view(np.uint8).data
