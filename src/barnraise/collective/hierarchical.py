"""Two kinds of schedule composed: one inside each group of near ranks, another between the groups; pure."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from operator import attrgetter

from barnraise.collective.schedule import Action, Schedule, Transfer
from barnraise.errors import LocalError


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """The ranks of one group and the schedule among them, which counts them from 0."""

    ranks: tuple[int, ...]
    inner: Schedule

    @property
    def num_sum_steps(self) -> int:
        return 1 + max((move.step for move in self.inner.transfers if move.action is Action.REDUCE), default=-1)

    def part_at(self, place: Fraction) -> int:
        """Return the inner part that goes on after this border."""
        return bisect_right(self.inner.cuts, place) - 1

    def holder(self, place: Fraction) -> int:
        """Return the rank that has the group's sum after this border."""
        return self.ranks[self.inner.owners[self.part_at(place)]]


def hierarchical(
    groups: Sequence[Sequence[int]], inner: Callable[[int], Schedule], outer: Callable[[int], Schedule]
) -> Schedule:
    """Return the inner kind's sums in every group, the outer kind between the groups, and the inner kind's copies.

    After the inner sums each member of a group holds some parts. Groups of unequal size cut the vector at different
    borders, so it is cut at the borders of all: each of the segments is held by one member of every group, and these run
    the outer kind on it. So all members share the way between the groups, and only a group's sum crosses it. Sums carry the
    weights of all that is in them: only the last owner divides.

    Args:
        groups: All ranks, each in one group; those of a group are near each other.
        inner: From a number of ranks to their schedule, such as `ring`.
        outer: The same between the groups.

    Raises:
        LocalError: the groups are not made of the ranks 0 .. N - 1, each once.
    """
    members = sorted(rank for group in groups for rank in group)
    if members != list(range(len(members))) or not all(groups):
        raise LocalError(f"the groups {[list(group) for group in groups]} do not hold each rank once")
    near = [_Group(ranks=tuple(group), inner=inner(len(group))) for group in groups]
    far = outer(len(groups))
    borders = sorted({border for group in near for border in group.inner.cuts})
    segments = list(pairwise(borders))
    return Schedule(
        kind=f"hierarchical {near[0].inner.kind}/{far.kind}",
        world_size=len(members),
        cuts=(*(low + (high - low) * cut for low, high in segments for cut in far.cuts[:-1]), Fraction(1)),
        owners=tuple(near[owner].holder(low) for low, _ in segments for owner in far.owners),
        transfers=tuple(_transfers(near, far, [low for low, _ in segments])),
        is_pipelined=far.is_pipelined or any(group.inner.is_pipelined for group in near),
    )


def _transfers(near: Sequence[_Group], far: Schedule, places: Sequence[Fraction]) -> list[Transfer]:
    """Return the three phases one after another; ``places`` are where the segments begin."""
    num_sum_steps = max(group.num_sum_steps for group in near)
    num_far_steps = 1 + max((move.step for move in far.transfers), default=-1)
    sums: list[Transfer] = []
    copies: list[Transfer] = []
    for group in near:
        shift = num_sum_steps + num_far_steps - group.num_sum_steps
        for move in _inside(group, places, far.num_parts, shift):
            (sums if move.action is Action.REDUCE else copies).append(move)
    between = [
        Transfer(
            num_sum_steps + move.step,
            near[move.sender].holder(place),
            near[move.receiver].holder(place),
            far.num_parts * number + move.part,
            move.action,
        )
        for move in far.transfers
        for number, place in enumerate(places)
    ]
    by_step = attrgetter("step")
    return [*sorted(sums, key=by_step), *between, *sorted(copies, key=by_step)]


def _inside(group: _Group, places: Sequence[Fraction], num_far_parts: int, shift: int) -> Iterator[Transfer]:
    """Yield the group's own transfers, each once for every part that its inner part is cut into; copies so much later."""
    pieces: dict[int, list[int]] = defaultdict(list)
    for number, place in enumerate(places):
        pieces[group.part_at(place)].extend(range(num_far_parts * number, num_far_parts * (number + 1)))
    for move in group.inner.transfers:
        step = move.step if move.action is Action.REDUCE else move.step + shift
        sender, receiver = group.ranks[move.sender], group.ranks[move.receiver]
        for part in pieces[move.part]:
            yield Transfer(step, sender, receiver, part, move.action)
