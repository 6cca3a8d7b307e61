"""What a round's exchange of shards asks of the driver, by the member's state and books; pure.

`collective.exchange` says who sends which shard when. This tells it what arrived, now or before the cut was known, once
the hash is the one that was committed to; and puts round and attempt to what it wants. Whatever is of another round or
attempt is nothing to us.
"""

from collections.abc import Sequence

from barnraise.collective import exchange
from barnraise.ids import PeerId
from barnraise.swarm import effects
from barnraise.swarm import round as rounds
from barnraise.swarm.effects import Effect
from barnraise.swarm.round import Work
from barnraise.swarm.state import State


def begin(state: State, work: Work, me: PeerId) -> list[Effect] | None:
    """Begin the exchange that the cut asks for; None: it has begun, or a commitment in the cut is not here."""
    cut = state.cut
    if cut is None or work.exchange or rounds.unknown_contributions(work, cut):
        return None
    work.exchange = exchange.Exchange(
        contributors=[PeerId(entry.member) for entry in cut.contributions],
        members=state.peers,
        num_shards=work.plan.num_shards,
        me=me,
    )
    found = _asked(state, work.exchange.begin())
    for sender, shard in sorted(work.updates_arrived):
        found += _take_update(state, work, sender, shard)
    for attempt, shard in sorted(work.aggregates_arrived):
        if attempt == state.attempt:
            found += _asked(state, work.exchange.aggregate_arrived(shard))
    return found


def update_arrived(state: State, work: Work, round_: int, sender: PeerId, shard: int, leaf: bytes) -> list[Effect]:
    """Note a shard of a member's update; ``leaf`` is its hash."""
    if round_ != state.round or not 0 <= shard < work.plan.num_shards:
        return []  # of a round before, or of this one before a regroup
    work.updates_arrived[sender, shard] = leaf
    return _take_update(state, work, sender, shard)


def aggregate_arrived(state: State, work: Work, round_: int, attempt: int, shard: int) -> list[Effect]:
    """Note a finished shard."""
    if round_ != state.round or attempt < state.attempt:
        return []
    work.aggregates_arrived.add((attempt, shard))
    if work.exchange is None or attempt != state.attempt:
        return []
    return _asked(state, work.exchange.aggregate_arrived(shard))


def aggregated(state: State, work: Work, round_: int, attempt: int, shard: int) -> list[Effect]:
    """Note that a shard of ours is aggregated."""
    if work.exchange is None or (round_, attempt) != (state.round, state.attempt):
        return []
    return _asked(state, work.exchange.aggregated(shard))


def peer_up(state: State, work: Work, peer: PeerId) -> list[Effect]:
    """Note that a peer can be sent to."""
    return _asked(state, work.exchange.peer_up(peer)) if work.exchange else []


def peer_down(state: State, work: Work, peer: PeerId) -> list[Effect]:
    """Note that a peer cannot be sent to."""
    return _asked(state, work.exchange.peer_down(peer)) if work.exchange else []


def _take_update(state: State, work: Work, sender: PeerId, shard: int) -> list[Effect]:
    promise = work.promises.get(sender)
    if work.exchange is None or promise is None:
        return []
    if promise.message.leaves[shard] != work.updates_arrived[sender, shard]:
        reason = f"shard {shard} of round {state.round} is not what it committed to"
        return [effects.Report(event="peer.refused", fields={"peer": sender, "reason": reason})]
    return _asked(state, work.exchange.update_arrived(sender, shard))


def _asked(state: State, steps: Sequence[exchange.Effect]) -> list[Effect]:
    found: list[Effect] = []
    for step in steps:
        if isinstance(step, exchange.Complete):
            found.append(effects.Step(round=state.round, attempt=state.attempt))
        else:
            found.append(effects.Transfer(round=state.round, attempt=state.attempt, step=step))
    return found
