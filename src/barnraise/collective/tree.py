"""Two trees at once, each for one half of the vector: few steps, and no rank sends much more than its share; pure.

In one binary tree half of the ranks are leaves, which have little to send, and the others have three times as much. So,
as in Sanders, Speck and Traff 2009, there are two trees with the same root over all ranks, each carries one half of the
vector, and who has children in one is a leaf in the other. The root has one child in each. In a tree of nodes 0 .. N - 1,
where 0 is the root, a node with 2**k as its lowest bit stands k levels above the leaves, which are the odd nodes.
"""

from collections.abc import Sequence
from fractions import Fraction

from barnraise.collective.schedule import Action, Schedule, Transfer
from barnraise.errors import LocalError

HALVES = (Fraction(0), Fraction(1, 2), Fraction(1))


def tree(world_size: int, root: int = 0) -> Schedule:
    """Return the reduction up both trees to ``root``, and the copy down; pipelined.

    It costs 2 ceil(log2 N) latencies. Unpipelined it takes the time to send 2 ceil(log2 N) vectors, in many chunks little
    more than that of 2, which is what the busiest rank sends.
    """
    others = [(root + offset) % world_size for offset in range(1, world_size)]
    down = _down(world_size, root, others)
    last = down[-1].step if down else 0
    up = [Transfer(last - move.step, move.receiver, move.sender, move.part, Action.REDUCE) for move in reversed(down)]
    copies = [Transfer(last + 1 + move.step, move.sender, move.receiver, move.part, Action.COPY) for move in down]
    return _schedule("tree", world_size, root, (*up, *copies))


def broadcast(world_size: int, root: int = 0) -> Schedule:
    """Return the copy of the root's vector to all, down two trees: ceil(log2 N) latencies, nobody sends more than it once."""
    others = [(root + offset) % world_size for offset in range(1, world_size)]
    return _schedule("broadcast", world_size, root, tuple(_down(world_size, root, others)))


def hand_on(world_size: int, holder: int, to: Sequence[int]) -> Schedule:
    """Return the copy of the holder's vector to some ranks, who pass it among themselves; the others do nothing.

    Raises:
        LocalError: a rank stands twice in ``to``, or is the holder, or does not exist.
    """
    if len({holder, *to}) != len(to) + 1 or not {holder, *to} <= set(range(world_size)):
        raise LocalError(f"rank {holder} of {world_size} cannot hand a vector on to {list(to)}")
    return _schedule("hand on", world_size, holder, tuple(_down(world_size, holder, to)))


def _schedule(kind: str, world_size: int, root: int, transfers: tuple[Transfer, ...]) -> Schedule:
    return Schedule(
        kind=kind, world_size=world_size, cuts=HALVES, owners=(root, root), transfers=transfers, is_pipelined=True
    )


def _down(world_size: int, root: int, others: Sequence[int]) -> list[Transfer]:
    """Return the copies down both trees, level by level, of nodes 0 (the root), 1, 2, ... (the others)."""
    size = len(others) + 1
    names = ((root, *others), (root, *others[-1:], *others[:-1]))
    levels = [(_depth(node, size), node) for node in range(1, size)]
    return [
        Transfer(depth - 1, names[half][_parent(node, size)], names[half][node], half, Action.COPY)
        for depth, node in sorted(levels)
        for half in (0, 1)
    ]


def _parent(node: int, size: int) -> int:
    """Return the parent: one level up to the side where there is one, else straight towards the root."""
    lowest = node & -node
    up = (node ^ lowest) | (lowest << 1)
    return up if up < size else node ^ lowest


def _depth(node: int, size: int) -> int:
    depth = 0
    while node:
        node, depth = _parent(node, size), depth + 1
    return depth
