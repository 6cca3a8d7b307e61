"""What a member asks of the others when it lacks something, and what it tells its user, in plain words."""

from dataclasses import replace

import msgspec

from barnraise.config import DataConfig, to_toml
from barnraise.ids import PeerId, short
from barnraise.swarm import records
from barnraise.swarm import round as rounds
from barnraise.swarm.plan import RoundPlan
from barnraise.swarm.presence import Presence
from barnraise.swarm.records import Cut
from barnraise.swarm.round import Work
from barnraise.swarm.state import State


def missing_commitments(state: State, work: Work, proposed: bytes) -> tuple[str, ...]:
    """Return the members whose commitments the agreed or the ``proposed`` cut names and we do not have."""
    cut = state.cut
    if cut is None and proposed:
        try:
            event = records.decode_event.decode(proposed)
        except msgspec.DecodeError:
            return ()
        cut = event if isinstance(event, Cut) else None
    return rounds.unknown_contributions(work, cut) if cut else ()


def planned(plan: RoundPlan) -> dict[str, object]:
    """Return what a user is told of a round that begins."""
    segments = [segment for slot in plan.slots.values() for segment in slot]
    return {
        "round": plan.round,
        "members": list(plan.members),
        "first_sample": min((segment.first for segment in segments), default=0),
        "samples": sum(segment.count for segment in segments),
    }


def why_behind(state: State, work: Work) -> str:
    """Say why the state has to be fetched from somebody else."""
    if state.cut is None:
        return "others are several rounds ahead"
    if missing := rounds.unknown_contributions(work, state.cut):
        return f"the round was agreed without us, and we lack the commitments of {len(missing)} members"
    if work.exchange and not work.exchange.is_complete:
        owing = ", ".join(sorted(short(peer) for peer in work.exchange.owing))
        return f"the round was agreed without us, and shards of {owing} have not come"
    return "the round was agreed on other parameters than ours" if work.stepped else "our step is not done"


def shared_config(state: State) -> str:
    """Return the run's configuration for somebody else, as it was founded: without paths of this machine."""
    config = state.founded
    data = replace(config.data, source=DataConfig().source)
    return to_toml(replace(config, data=data, model=replace(config.model, source="")))


def why_leaving(state: State, me: PeerId) -> str:
    """Say what our leaving means for the run."""
    if me in state.peers:
        return "stopped; still a member, so start it again to go on where it was"
    return "left the run; the others go on, and joining again is possible at any time"


def why_waiting(state: State, me: PeerId, presence: Presence) -> str:
    """Say why nothing can be agreed now, or trained; "": it can, or the run is only starting."""
    least = state.config.round.min_peers
    if len(state.members) < state.agreement.min_members:
        needed = state.agreement.min_members
        article = "an" if state.config.profile == "open" else "a"
        return (
            f"{article} {state.config.profile} run trains from {needed} members on, and there are {len(state.members)}"
        )
    if not state.can_train:
        return f"{len(state.counting)} of at least {least} members are here"
    present = {peer for peer in state.peers if peer == me or presence.is_up(peer)}
    if presence.is_starting(state.peers):
        return ""
    if not state.agreement.is_quorum(state.committee, present):
        return state.agreement.explain(state.committee, present)
    able = present.intersection(state.counting)
    return "" if state.cut or len(able) >= least else f"{len(able)} of at least {least} members are here"
