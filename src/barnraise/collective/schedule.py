"""Who sends which part of a vector to whom, and in which order: a collective as data; pure.

A vector is cut into parts, and a part moves by transfers. In a REDUCE the receiver adds what comes to what it has; a COPY
hands on a finished value. The transfers stand in one total order with this property: what a transfer sends was complete
at its sender by the transfers before it. So if every rank carries out its sends in that order, and its receives in that
order, the first transfer that is not done can always go on, however small the buffers between: no schedule deadlocks.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from barnraise.errors import LocalError


class Action(enum.Enum):
    """What the receiver does with a part."""

    REDUCE = "reduce"
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class Transfer:
    """One part on its way from one rank to another."""

    step: int
    """Transfers of one step need nothing of each other. REDUCE has the lower steps, COPY the higher ones."""
    sender: int
    receiver: int
    part: int
    action: Action


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A whole collective, of all ranks."""

    kind: str
    """Its name, for people."""
    world_size: int
    cuts: tuple[Fraction, ...]
    """Part p is what lies between these fractions of the vector, ``cuts[p]`` and ``cuts[p + 1]``; from 0 to 1."""
    owners: tuple[int, ...]
    """The rank at which each part is finished: it has the sum of all then."""
    transfers: tuple[Transfer, ...]
    """In the total order, steps ascending."""
    is_pipelined: bool = False
    """A chunk of a part runs ahead of the part's later chunks through several steps, as down a tree; else each step moves
    all chunks before the next begins, which hides the latency where all ranks send all the time."""

    @property
    def num_parts(self) -> int:
        """Return the number of parts."""
        return len(self.owners)

    def bounds(self, size: int, alignment: int = 1) -> tuple[tuple[int, int], ...]:
        """Return ``(start, stop)`` of each part of a vector of ``size`` elements; together they tile it.

        Inner borders are multiples of ``alignment``; parts of a short vector may be empty.
        """
        borders = [min(size, -(-int(cut * size) // alignment) * alignment) for cut in self.cuts]
        borders[0], borders[-1] = 0, size
        return tuple(zip(borders, borders[1:], strict=False))


def equal_cuts(count: int) -> tuple[Fraction, ...]:
    """Return the borders of ``count`` equal parts."""
    return tuple(Fraction(i, count) for i in range(count + 1))


def weighted_cuts(weights: Sequence[int]) -> tuple[Fraction, ...]:
    """Return the borders of parts in proportion to whole weights, as links of unequal speed want them.

    Raises:
        LocalError: a weight is negative, or all are 0.
    """
    total = sum(weights)
    if total <= 0 or min(weights) < 0:
        raise LocalError(f"parts in proportion to {list(weights)} cannot be cut")
    passed = [sum(weights[:i]) for i in range(len(weights) + 1)]
    return tuple(Fraction(part, total) for part in passed)


def check(schedule: Schedule) -> None:
    """Raise `LocalError` where a schedule breaks one of the rules above; for tests and for what comes from elsewhere."""
    num_parts, ranks = schedule.num_parts, range(schedule.world_size)
    if len(schedule.cuts) != num_parts + 1 or schedule.cuts[0] != 0 or schedule.cuts[-1] != 1:
        raise LocalError(f"{schedule.kind}: {num_parts} owners and the borders {schedule.cuts}")
    if any(low > high for low, high in zip(schedule.cuts, schedule.cuts[1:], strict=False)):
        raise LocalError(f"{schedule.kind}: the borders {schedule.cuts} do not ascend")
    steps = [transfer.step for transfer in schedule.transfers]
    if steps != sorted(steps):
        raise LocalError(f"{schedule.kind}: the steps do not ascend")
    has_copied = False
    for transfer in schedule.transfers:
        if transfer.sender == transfer.receiver or {transfer.sender, transfer.receiver} - set(ranks):
            raise LocalError(f"{schedule.kind}: {transfer} is from nowhere to nowhere")
        if not 0 <= transfer.part < num_parts:
            raise LocalError(f"{schedule.kind}: {transfer} moves a part that is not there")
        if has_copied and transfer.action is Action.REDUCE:
            raise LocalError(f"{schedule.kind}: {transfer} adds after values were finished")
        has_copied = transfer.action is Action.COPY
