"""The butterfly: recursive halving and doubling between ranks at distances of powers of two; pure."""

from collections.abc import Iterator

from barnraise.collective.schedule import Action, Schedule, Transfer, equal_cuts


def butterfly(world_size: int) -> Schedule:
    """Return recursive halving (reduce-scatter) and doubling (all-gather), as in Thakur, Rabenseifner and Gropp 2005.

    For N a power of two it costs 2 log2 N latencies and sends 2(N - 1)/N of the vector from each rank. Else the ranks
    beyond the largest power of two P fold: they send all they have to a partner first, and get the result from it last;
    that costs two latencies and the time of two vectors more, and they own no part.
    """
    if world_size == 1:
        return Schedule(kind="butterfly", world_size=1, cuts=equal_cuts(1), owners=(0,), transfers=())
    core = 1 << (world_size.bit_length() - 1)
    rounds = core.bit_length() - 1
    is_folded = world_size > core
    folds = [
        Transfer(0, extra, extra - core, part, Action.REDUCE)
        for part in range(core)
        for extra in range(core, world_size)
    ]
    halving = [
        Transfer(is_folded + number, rank, rank ^ distance, part, Action.REDUCE)
        for number, distance in enumerate(core >> i for i in range(1, rounds + 1))
        for rank in range(core)
        for part in _block(rank ^ distance, distance)
    ]
    doubling = [
        Transfer(is_folded + rounds + number, rank, rank ^ distance, part, Action.COPY)
        for number, distance in enumerate(1 << i for i in range(rounds))
        for rank in range(core)
        for part in _block(rank, distance)
    ]
    unfolds = [
        Transfer(1 + 2 * rounds, extra - core, extra, part, Action.COPY)
        for part in range(core)
        for extra in range(core, world_size)
    ]
    return Schedule(
        kind="butterfly",
        world_size=world_size,
        cuts=equal_cuts(core),
        owners=tuple(range(core)),
        transfers=(*folds, *halving, *doubling, *unfolds),
    )


def _block(rank: int, length: int) -> Iterator[int]:
    """Yield the parts of the aligned block of ``length`` parts where the rank's own part is."""
    first = rank // length * length
    yield from range(first, first + length)
