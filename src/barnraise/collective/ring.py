"""The ring: every rank sends to the next one only; least bytes, most steps; pure."""

from barnraise.collective.schedule import Action, Schedule, Transfer, equal_cuts


def ring(world_size: int) -> Schedule:
    """Return reduce-scatter and all-gather round a ring, as in Patarasuk and Yuan 2009; rank r owns part r.

    It costs 2(N - 1) latencies and sends 2(N - 1)/N of the vector from each rank: the least possible, over N links.
    """
    ranks, last = range(world_size), world_size - 1
    reduces = [
        Transfer(step, rank, (rank + 1) % world_size, (rank - step - 1) % world_size, Action.REDUCE)
        for step in range(last)
        for rank in ranks
    ]
    copies = [
        Transfer(last + step, rank, (rank + 1) % world_size, (rank - step) % world_size, Action.COPY)
        for step in range(last)
        for rank in ranks
    ]
    return Schedule(
        kind="ring",
        world_size=world_size,
        cuts=equal_cuts(world_size),
        owners=tuple(ranks),
        transfers=(*reduces, *copies),
    )
