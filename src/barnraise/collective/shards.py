"""Cutting the flat vector into shards and hashing them; who owns which shard is the plan's business."""

from collections.abc import Sequence

import blake3

from barnraise.ids import Digest

MAX_SHARDS = 16
LEAF_CONTEXT = "barnraise 1 shard"
ALIGNMENT = 64
"""Shards begin at multiples of this many elements: whole cache lines of int16, whole vectors of any unit."""


def bounds(size: int, num_shards: int) -> tuple[tuple[int, int], ...]:
    """Return ``(start, stop)`` of each shard of a vector of ``size`` elements; together they tile it.

    Shards are equal to within ``ALIGNMENT`` elements; the last ones of a short vector may be empty.
    """
    step = -(-size // num_shards)
    step = -(-step // ALIGNMENT) * ALIGNMENT
    return tuple((min(size, i * step), min(size, (i + 1) * step)) for i in range(num_shards))


def leaf(data: memoryview) -> Digest:
    """Return the hash of one encoded shard."""
    return Digest(blake3.blake3(data, derive_key_context=LEAF_CONTEXT).digest())


def root(leaves: Sequence[bytes]) -> Digest:
    """Return the hash that a commitment names: over at most ``MAX_SHARDS`` leaves, so that a flat list is the tree."""
    return Digest(blake3.blake3(b"".join(leaves), derive_key_context="barnraise 1 shard root").digest())


def owners(contributors: Sequence[str], num_shards: int) -> tuple[str, ...]:
    """Return the peer that aggregates each shard: the contributors in turn."""
    return tuple(contributors[i % len(contributors)] for i in range(num_shards))
