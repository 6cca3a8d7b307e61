"""How many members are enough, when machines crash but do not lie.

Members are ordered by seniority: the epoch in which they joined, then their peer id. A quorum is more than half
of them, or exactly half including the most senior: any two quorums share a member, and of two machines the senior
one can go on alone while the junior waits.
"""

from collections.abc import Collection, Sequence

from barnraise.ids import PeerId


def is_quorum(members: Sequence[PeerId], present: Collection[PeerId]) -> bool:
    """Tell whether ``present`` may act for ``members`` (in order of seniority)."""
    count = len(set(members).intersection(present))
    return 2 * count > len(members) or (2 * count == len(members) and count > 0 and members[0] in present)


def explain(members: Sequence[PeerId], present: Collection[PeerId]) -> str:
    """Say in plain words why those present are not a quorum."""
    count = sum(member in present for member in members)
    text = f"{count} of {len(members)} members are reachable"
    if 2 * count == len(members):
        return f"{text}, exactly half, without the most senior ({members[0][-6:]}): waiting for it or for one more"
    return f"{text}, fewer than half: waiting for {len(members) // 2 + 1 - count} more"
