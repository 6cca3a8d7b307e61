"""Who sends which part of a vector to whom, and in which order: a collective as data; pure.

A vector is cut into parts, and a part moves by transfers. In a REDUCE the receiver adds what comes to what it has; a COPY
hands on a finished value. The transfers stand in one total order with this property: what a transfer sends was complete
at its sender by the transfers before it. Every rank carries out its sends in that order, and its receives in that order,
both at the same time. Then no schedule deadlocks, however small the buffers between. For look at the first transfer that
is not done: its sender has no earlier send left, and has all that it needs, by earlier transfers, so it sends. No earlier
transfer is left on that link, so there is room, if there is room for one. Its receiver has no earlier receive left, and
the sends that read the memory to be overwritten came earlier and are out, so it receives.
"""

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

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
        return tuple(pairwise(borders))


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
    return tuple(Fraction(passed, total) for passed in accumulate(weights, initial=0))


def reduce_scatter(schedule: Schedule) -> Schedule:
    """Return its first half: afterwards each part is finished at its owner, and nowhere else."""
    return _only(schedule, Action.REDUCE, "reduce-scatter")


def all_gather(schedule: Schedule) -> Schedule:
    """Return its second half: before it each owner has its part, afterwards all have all."""
    return _only(schedule, Action.COPY, "all-gather")


def _only(schedule: Schedule, action: Action, name: str) -> Schedule:
    chosen = tuple(transfer for transfer in schedule.transfers if transfer.action is action)
    return dataclasses.replace(schedule, kind=f"{schedule.kind} {name}", transfers=chosen)


def check(schedule: Schedule) -> None:
    """Raise `LocalError` where a schedule breaks one of the rules above; for tests and for what comes from elsewhere."""
    _check_parts(schedule)
    _check_order(schedule)
    _check_sums(schedule)


def _check_parts(schedule: Schedule) -> None:
    num_parts, ranks = schedule.num_parts, range(schedule.world_size)
    if len(schedule.cuts) != num_parts + 1 or schedule.cuts[0] != 0 or schedule.cuts[-1] != 1:
        raise LocalError(f"{schedule.kind}: {num_parts} owners and the borders {schedule.cuts}")
    if any(low > high for low, high in pairwise(schedule.cuts)):
        raise LocalError(f"{schedule.kind}: the borders {schedule.cuts} do not ascend")
    if any(owner not in ranks for owner in schedule.owners):
        raise LocalError(f"{schedule.kind}: an owner of {schedule.owners} is none of {schedule.world_size} ranks")
    for transfer in schedule.transfers:
        if transfer.sender == transfer.receiver or transfer.sender not in ranks or transfer.receiver not in ranks:
            raise LocalError(f"{schedule.kind}: {transfer} is from nowhere to nowhere")
        if not 0 <= transfer.part < num_parts:
            raise LocalError(f"{schedule.kind}: {transfer} moves a part that is not there")


def _check_order(schedule: Schedule) -> None:
    """Check that steps ascend, that sums come before copies, and that no step needs what it moves itself."""
    step, has_copied = None, False
    received: set[tuple[int, int]] = set()
    for transfer in schedule.transfers:
        if step is not None and transfer.step < step:
            raise LocalError(f"{schedule.kind}: the steps do not ascend at {transfer}")
        if has_copied and transfer.action is Action.REDUCE:
            raise LocalError(f"{schedule.kind}: {transfer} adds after values were finished")
        if transfer.step != step:
            received.clear()
        if (transfer.sender, transfer.part) in received:
            raise LocalError(f"{schedule.kind}: {transfer} sends what comes in the same step")
        received.add((transfer.receiver, transfer.part))
        step, has_copied = transfer.step, transfer.action is Action.COPY


def _check_sums(schedule: Schedule) -> None:
    """Check that each rank's input is added once, that owners have all of them, and that only finished values are copied.

    A schedule without sums begins with finished parts at their owners.
    """
    every = (1 << schedule.world_size) - 1
    has_sums = any(transfer.action is Action.REDUCE for transfer in schedule.transfers)
    held: dict[tuple[int, int], int] = {}
    if not has_sums:
        held = {(owner, part): every for part, owner in enumerate(schedule.owners)}
    for transfer in schedule.transfers:
        to = (transfer.receiver, transfer.part)
        sent = held.get((transfer.sender, transfer.part), 1 << transfer.sender)
        if transfer.action is Action.COPY:
            if sent != every:
                raise LocalError(f"{schedule.kind}: {transfer} copies what is not finished")
            held[to] = every
        else:
            added = held.get(to, 1 << transfer.receiver)
            if sent & added:
                raise LocalError(f"{schedule.kind}: {transfer} adds something a second time")
            held[to] = sent | added
    for part, owner in enumerate(schedule.owners):
        if held.get((owner, part), 1 << owner) != every:
            raise LocalError(f"{schedule.kind}: part {part} is not finished at its owner {owner}")
