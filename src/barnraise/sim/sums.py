"""What simulated ranks sum: their vectors, which tell them apart, and the programs that move them."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache

import numpy as np

from barnraise.collective.program import Program, program_of
from barnraise.collective.schedule import Schedule
from barnraise.collective.survival_effects import AttemptPlan
from barnraise.collective.tree import hand_on
from barnraise.sim.streams import Whole


class Sums:
    """The collectives of one world.

    Args:
        schedule_of: Returns the schedule for a number of ranks.
        weights: Of the vectors of rank 0, 1, ...
        size: Elements of a vector.
        chunk_elements: Most elements of a chunk.
    """

    def __init__(
        self, schedule_of: Callable[[int], Schedule], weights: Sequence[int], size: int, chunk_elements: int
    ) -> None:
        self._schedule_of, self._weights = schedule_of, weights
        self._size, self._chunk_elements = size, chunk_elements

    def vector(self, rank: int, sequence: int) -> Whole:
        """Return a rank's input, multiplied by its weight: int64[size]."""
        return (np.arange(self._size, dtype=np.int64) * (rank + 3) + 1000 * sequence) * self._weights[rank]

    def is_sum(self, values: Whole, members: Iterable[int], sequence: int) -> bool:
        """Tell whether values are the sum of these ranks' vectors, and of no others."""
        return np.array_equal(values, sum(self.vector(member, sequence) for member in members))

    def program(self, plan: AttemptPlan, rank: int) -> Program:
        """Return what a rank does in an attempt."""
        ranks = [member.rank for member in plan.members]
        index = ranks.index(rank)
        if plan.holder is None:
            return _program(self._schedule_of, len(ranks), index, self._size, self._chunk_elements)
        schedule = hand_on(len(ranks), ranks.index(plan.holder), [ranks.index(each) for each in plan.incomplete])
        return program_of(schedule, index, self._size, self._chunk_elements)


@cache
def _program(
    schedule_of: Callable[[int], Schedule], world_size: int, index: int, size: int, chunk_elements: int
) -> Program:
    return program_of(schedule_of(world_size), index, size, chunk_elements)
