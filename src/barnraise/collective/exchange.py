"""All-to-all shards as a state machine without I/O: who still owes what to whom, for one attempt at one round.

Theory of operation. The cut names the contributors. Shard s of the vector belongs to one of them, its owner. Each
contributor sends shard s of its update to the owner (reduce-scatter); once the owner has all of them it aggregates
and sends the result to every other member (all-gather). Two latencies and 2 (n-1)/n of the vector on the wire per
peer. A member that did not contribute only receives.

    event                          effect
    begin()                        SendUpdate of every shard owned by somebody else
    update_arrived(sender, s)      Aggregate(s), when it was the last one for a shard we own
    aggregated(s)                  SendAggregate(s) to everybody else; Complete, when it was the last shard
    aggregate_arrived(s)           SendAggregate(s), if its owner is gone; Complete, when it was the last shard
    peer_down(owner)               SendAggregate of its shards that we have: it may have died half-way through telling
    peer_up(peer)                  SendUpdate and SendAggregate of what it may have lost with its connection

The machine counts; bytes, hashes and arithmetic are its driver's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from barnraise.collective.shards import owners
from barnraise.ids import PeerId


@dataclass(frozen=True, kw_only=True, slots=True)
class SendUpdate:
    """Effect: send our update's shard to its owner."""

    shard: int
    to: PeerId


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregate:
    """Effect: all contributions to a shard of ours are here; aggregate them."""

    shard: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SendAggregate:
    """Effect: send a finished shard."""

    shard: int
    to: PeerId


@dataclass(frozen=True, kw_only=True, slots=True)
class Complete:
    """Effect: every shard of the aggregate is here."""


Effect = SendUpdate | Aggregate | SendAggregate | Complete


class Exchange:
    """One member's view of one attempt. Misuse raises nothing: duplicates and strangers' shards are ignored."""

    def __init__(
        self, *, contributors: Sequence[PeerId], members: Sequence[PeerId], num_shards: int, me: PeerId
    ) -> None:
        self.contributors = tuple(contributors)
        self.owners = tuple(PeerId(owner) for owner in owners(contributors, num_shards))
        self._me = me
        self._others = tuple(peer for peer in members if peer != me)
        self._updates_owed = {
            shard: {peer for peer in contributors if peer != me}
            for shard, owner in enumerate(self.owners)
            if owner == me
        }
        self._shards_owed = set(range(num_shards))
        self._gone: set[PeerId] = set()

    @property
    def is_complete(self) -> bool:
        """Tell whether every shard of the aggregate is here."""
        return not self._shards_owed

    @property
    def owing(self) -> frozenset[PeerId]:
        """Return the peers that keep us waiting, as far as we can tell.

        An owner without all contributions owes us its shard through no fault of its own; whoever keeps it waiting
        owes us a contribution as well. So owners are named only when no contribution is missing here.
        """
        late = {peer for owed in self._updates_owed.values() for peer in owed}
        return frozenset(late or {self.owners[shard] for shard in self._shards_owed} - {self._me})

    def begin(self) -> list[Effect]:
        """Start: our shards go out; a lone contributor aggregates at once."""
        effects: list[Effect] = []
        if self._me in self.contributors:
            effects += [SendUpdate(shard=s, to=owner) for s, owner in enumerate(self.owners) if owner != self._me]
        effects += [Aggregate(shard=shard) for shard, owed in self._updates_owed.items() if not owed]
        return effects

    def update_arrived(self, sender: PeerId, shard: int) -> list[Effect]:
        """Note a contribution to a shard of ours."""
        owed = self._updates_owed.get(shard, set())
        if sender not in owed:
            return []
        owed.discard(sender)
        return [] if owed else [Aggregate(shard=shard)]

    def aggregated(self, shard: int) -> list[Effect]:
        """Note that a shard of ours is finished."""
        if self._updates_owed.get(shard, {self._me}) or shard not in self._shards_owed:
            return []
        sends: list[Effect] = [SendAggregate(shard=shard, to=peer) for peer in self._others]
        return sends + self._have(shard)

    def aggregate_arrived(self, shard: int) -> list[Effect]:
        """Note a finished shard from its owner or from somebody standing in for it."""
        if shard not in self._shards_owed:
            return []
        others = [peer for peer in self._others if peer not in self._gone] if self.owners[shard] in self._gone else []
        passed_on: list[Effect] = [SendAggregate(shard=shard, to=peer) for peer in others]
        return passed_on + self._have(shard)

    def peer_up(self, peer: PeerId) -> list[Effect]:
        """Tell a peer that is back what it should have; it refuses what it still has."""
        self._gone.discard(peer)
        if peer not in self._others:
            return []
        again: list[Effect] = []
        if self._me in self.contributors:
            again += [SendUpdate(shard=shard, to=peer) for shard, owner in enumerate(self.owners) if owner == peer]
        speaks_for = {self._me, peer, *self._gone}
        finished = [s for s, owner in enumerate(self.owners) if owner in speaks_for and s not in self._shards_owed]
        return again + [SendAggregate(shard=shard, to=peer) for shard in finished]

    def peer_down(self, peer: PeerId) -> list[Effect]:
        """Stand in for an owner that is gone: pass on what it finished."""
        self._gone.add(peer)
        return [
            SendAggregate(shard=shard, to=other)
            for shard, owner in enumerate(self.owners)
            if owner == peer and shard not in self._shards_owed
            for other in self._others
            if other != peer
        ]

    def _have(self, shard: int) -> list[Effect]:
        self._shards_owed.discard(shard)
        return [] if self._shards_owed else [Complete()]
