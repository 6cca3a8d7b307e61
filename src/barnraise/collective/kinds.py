"""The kinds of schedule by name, as configuration and command line say them; pure."""

from collections.abc import Callable, Sequence

from barnraise.collective.alltoall import all_to_all
from barnraise.collective.butterfly import butterfly
from barnraise.collective.centralised import centralised
from barnraise.collective.hierarchical import hierarchical
from barnraise.collective.ring import ring
from barnraise.collective.schedule import Schedule
from barnraise.collective.tree import tree
from barnraise.errors import ConfigError

FLAT: dict[str, Callable[[int], Schedule]] = {
    "ring": ring,
    "tree": tree,
    "butterfly": butterfly,
    "shards": all_to_all,
    "centralised": centralised,
}
"""Kinds that need nothing but the number of ranks."""

KINDS = (*FLAT, "hierarchical")


def schedule_of(
    kind: str,
    world_size: int,
    *,
    weights: Sequence[int] | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    inner: str = "shards",
    outer: str = "shards",
) -> Schedule:
    """Return the schedule of one kind.

    Args:
        kind: One of `KINDS`.
        world_size: Number of ranks, 1 or more.
        weights: For ``shards``: each rank's share of the vector, in whole numbers; None: equal.
        groups: For ``hierarchical``: the ranks of each group.
        inner: For ``hierarchical``: the kind inside the groups.
        outer: For ``hierarchical``: the kind between the groups.

    Raises:
        ConfigError: the kind is unknown, has no use for an argument, or lacks one.
        LocalError: the weights or the groups are not those of all ranks.
    """
    if world_size < 1:
        raise ConfigError(f"a collective of {world_size} ranks cannot be: it takes 1 or more")
    if weights is not None and kind != "shards":
        raise ConfigError(f"schedule {kind!r} has no weighted parts: leave the weights out, or choose 'shards'")
    if kind == "hierarchical":
        if groups is None or sum(len(group) for group in groups) != world_size:
            raise ConfigError(f"schedule 'hierarchical' takes the groups of all {world_size} ranks, and got {groups}")
        return hierarchical(groups, flat(inner), flat(outer))
    if groups is not None:
        raise ConfigError(f"schedule {kind!r} has no groups: leave them out, or choose 'hierarchical'")
    if kind == "shards":
        return all_to_all(world_size, weights)
    return flat(kind)(world_size)


def flat(kind: str) -> Callable[[int], Schedule]:
    """Return a kind that needs nothing but the number of ranks.

    Raises:
        ConfigError: there is none of this name.
    """
    if kind == "hierarchical":
        raise ConfigError(f"schedule 'hierarchical' cannot stand inside itself: choose one of {', '.join(FLAT)}")
    if kind not in FLAT:
        raise ConfigError(f"schedule {kind!r} is unknown: choose one of {', '.join(KINDS)}")
    return FLAT[kind]
