"""One rank adds everything up and sends the result to all: simple, and its link is the limit; pure."""

from fractions import Fraction

from barnraise.collective.schedule import Action, Schedule, Transfer


def centralised(world_size: int, root: int = 0) -> Schedule:
    """Return everybody's whole vector to ``root`` and the sum back; pipelined.

    It costs two latencies, and the root receives and sends N - 1 vectors.
    """
    others = [(root + offset) % world_size for offset in range(1, world_size)]
    reduces = [Transfer(0, rank, root, 0, Action.REDUCE) for rank in others]
    copies = [Transfer(1, root, rank, 0, Action.COPY) for rank in others]
    return Schedule(
        kind="centralised",
        world_size=world_size,
        cuts=(Fraction(0), Fraction(1)),
        owners=(root,),
        transfers=(*reduces, *copies),
        is_pipelined=True,
    )
