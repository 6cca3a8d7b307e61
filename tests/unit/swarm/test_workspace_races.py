"""What several worker threads ask of a workspace at the same time."""

import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from barnraise.codec.chain import codec_of
from barnraise.swarm.workspace import Part, Workspace

SIZE = 1 << 16
NUM_SHARDS = 4


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Let the interpreter change threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty_threads")
def test_shards_of_an_aggregate_that_begin_at_once_land_in_one_vector() -> None:
    zeros = np.zeros(SIZE, np.float32)
    for _ in range(100):
        space = Workspace([(0, SIZE)], zeros, zeros, zeros, codec=codec_of("grid16", np.int16))
        together = threading.Barrier(NUM_SHARDS)

        def receive(shard: int, space: Workspace = space, together: threading.Barrier = together) -> None:
            together.wait()
            part = Part(0, shard, NUM_SHARDS)
            space.keep_aggregate(part, 0, 1, np.full(space.aggregate_bound_bytes(part, 1), shard + 1, np.uint8))

        threads = [threading.Thread(target=receive, args=(shard,)) for shard in range(NUM_SHARDS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = [space.aggregated(Part(0, shard, NUM_SHARDS), 0)[0] for shard in range(NUM_SHARDS)]
        assert found == [1, 2, 3, 4]
