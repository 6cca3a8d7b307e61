"""How many members are enough when some of them lie: the arithmetic of Byzantine quorums, and nothing else.

Of n members f = (n - 1) // 3 may do anything at all. A quorum is q = (n + f) // 2 + 1 of them, which is 2f + 1 where
n = 3f + 1. Two properties make it work, for every n >= 1:

    2q - n >= f + 1     any two quorums share a member that does not lie
    q <= n - f          the members that do not lie are a quorum by themselves

Below four members f is 0: everybody is trusted and a single silent one blocks, so that a quorum is all of them, and no
round is trained (`MIN_MEMBERS`).
"""

from collections.abc import Collection, Sequence
from typing import Final

from barnraise.ids import PeerId

MIN_MEMBERS: Final = 4
"""The fewest members of which one may lie."""
MAX_COMMITTEE: Final = 100
"""Votes grow with the square of the voters; more of them than this make nothing safer that is worth it."""


def num_faulty(num_members: int) -> int:
    """Return f: how many members may lie, or be silent, without harm."""
    return (num_members - 1) // 3


def quorum(num_members: int) -> int:
    """Return q: how many members decide."""
    if num_members < MIN_MEMBERS:
        return num_members
    return (num_members + num_faulty(num_members)) // 2 + 1


def committee(members: Sequence[PeerId], limit: int = MAX_COMMITTEE) -> tuple[PeerId, ...]:
    """Return who votes: the first ``limit`` of the members, which are in order of seniority."""
    return tuple(members[:limit])


def leader(members: Sequence[PeerId], view: int) -> PeerId:
    """Return who may propose in a view: the most senior in view 0, then down the list and round again."""
    return members[view % len(members)]


def is_quorum(members: Sequence[PeerId], present: Collection[PeerId]) -> bool:
    """Tell whether ``present`` has a quorum of ``members``."""
    return bool(members) and len(set(members).intersection(present)) >= quorum(len(members))


def explain(members: Sequence[PeerId], present: Collection[PeerId]) -> str:
    """Say in plain words why those present are not a quorum."""
    total, count = len(members), sum(member in present for member in members)
    text = f"{count} of {total} members are reachable"
    if total < MIN_MEMBERS:
        return (
            f"{text}, and where members may lie it takes {MIN_MEMBERS}: waiting for {MIN_MEMBERS - total} more to join"
        )
    return f"{text}, and with up to {num_faulty(total)} that may lie it takes {quorum(total)}: " + (
        f"waiting for {quorum(total) - count} more"
    )
