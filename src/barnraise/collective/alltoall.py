"""All-to-all shards: everybody sends each part straight to its owner, who sends the sum straight to all; pure."""

from collections.abc import Sequence

from barnraise.collective.schedule import Action, Schedule, Transfer, equal_cuts, weighted_cuts
from barnraise.errors import LocalError


def all_to_all(world_size: int, weights: Sequence[int] | None = None) -> Schedule:
    """Return the schedule of shards; rank r owns part r.

    It costs two latencies and sends 2(N - 1)/N of the vector from each rank, over N(N - 1) links. The transfers of a step
    go by offset, r to r + k for k = 1 .. N - 1, so that at any time each rank hears from one other: no incast.

    Args:
        world_size: Number of ranks.
        weights: One whole number a rank, its part's share of the vector, as links of unequal speed want; None: equal.

    Raises:
        LocalError: there are not as many weights as ranks, one is negative, or all are 0.
    """
    if weights is not None and len(weights) != world_size:
        raise LocalError(f"{len(weights)} weights for {world_size} ranks")
    ranks = range(world_size)
    pairs = [(rank, (rank + offset) % world_size) for offset in range(1, world_size) for rank in ranks]
    reduces = [Transfer(0, sender, receiver, receiver, Action.REDUCE) for sender, receiver in pairs]
    copies = [Transfer(1, sender, receiver, sender, Action.COPY) for sender, receiver in pairs]
    return Schedule(
        kind="shards",
        world_size=world_size,
        cuts=equal_cuts(world_size) if weights is None else weighted_cuts(weights),
        owners=tuple(ranks),
        transfers=(*reduces, *copies),
    )
