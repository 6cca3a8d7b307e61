"""What the leader of a view may propose next, and what the others may approve; pure functions of what is known."""

from collections.abc import Collection
from typing import assert_never

from barnraise.ids import PeerId
from barnraise.swarm import round as rounds
from barnraise.swarm.membership import Member
from barnraise.swarm.pace import Pace
from barnraise.swarm.presence import Presence
from barnraise.swarm.records import Amend, Cut, LogEvent, Merge, Recover, Regroup, Result, Void
from barnraise.swarm.round import Work
from barnraise.swarm.state import State


def due(
    state: State, work: Work, presence: Presence, pace: Pace, now: float, *, is_leaving: bool = False
) -> LogEvent | None:
    """Return the entry that it is time for; None: not yet. ``is_leaving``: we ourselves want out."""
    if state.cut is None:
        return _regroup(state, work, presence, now) or _cut(state, work, presence, pace, now)
    if work.stepped is not None:
        joined, left = _membership_changes(state, presence, now, is_leaving=is_leaving)
        return rounds.build_result(state, work, work.stepped, joined=joined, left=left)
    return _void(state, work, presence, pace, now)


def is_enough(state: State, work: Work, presence: Presence, now: float) -> bool:
    """Tell whether what is at hand makes a cut, or a regroup: from now on the leader owes us an entry."""
    down = presence.down_among(state.peers, now)
    return rounds.has_enough(state, work, down) or _regroup(state, work, presence, now) is not None


def agrees(state: State, work: Work, presence: Presence, pace: Pace, now: float, event: LogEvent) -> bool:
    """Tell whether a proposal that follows the state says what we know.

    Where members may lie, their word on who is there, and on what went wrong, is checked against what we see ourselves.
    """
    is_seen = state.agreement.trusts_members or _is_seen(state, work, presence, pace, now, event)
    match event:
        case Cut():
            return is_seen and not rounds.unknown_contributions(work, event)
        case Void() | Regroup():
            return is_seen
        case Amend() | Recover() | Merge():
            return False
        case Result():
            return is_seen and work.stepped is not None and rounds.is_valid_result(state, work, work.stepped, event)
        case _:
            assert_never(event)


def _is_seen(state: State, work: Work, presence: Presence, pace: Pace, now: float, event: LogEvent) -> bool:
    """Tell whether a proposal of somebody who may lie is borne out by what this member sees."""
    match event:
        case Cut():
            counting = list(work.plan.slots)
            return state.agreement.is_cut(counting, counting, {PeerId(entry.member) for entry in event.contributions})
        case Void():
            return work.stepped is None or pace.exchange_is_overdue(now)
        case Regroup():
            return _regroup(state, work, presence, now) is not None and _knows(state, presence, now, event)
        case Result():
            return _knows(state, presence, now, event)
        case Amend() | Recover() | Merge():
            return True  # by what it says itself, or not at all: what is seen here has no part in it
        case _:
            assert_never(event)


def _knows(state: State, presence: Presence, now: float, event: Result | Regroup) -> bool:
    """Tell whether all who are said to come want to, and all who are said to go are gone, or overdue, or want to."""
    newcomers = presence.newcomers(state.taken, state.height, now)
    gone = presence.down_among(state.peers, now) | presence.leavers(state.peers)
    contributed = {entry.member for entry in state.cut.contributions} if state.cut else set()
    gone |= {member.peer for member in state.members if member.peer not in contributed and _is_overdue(state, member)}
    spare = len(state.members) + len(event.joined) - state.agreement.min_members
    return set(event.joined) <= set(newcomers) and set(event.left) <= gone and len(event.left) <= max(0, spare)


def _cut(state: State, work: Work, presence: Presence, pace: Pace, now: float) -> Cut | None:
    """Everybody who is not down is in, or the grace is over."""
    down = presence.down_among(state.peers, now)
    ready = rounds.ready(state, work, down)
    if not rounds.is_enough(state, work, ready, down):
        return None
    awaited = set(work.plan.slots) - set(ready) - state.without - down
    return rounds.build_cut(state, work, ready) if not awaited or pace.grace_is_over(now) else None


def _regroup(state: State, work: Work, presence: Presence, now: float) -> Regroup | None:
    """Too few of those who were given samples are there, or may ever be: let in who is."""
    down = presence.down_among(state.peers, now)
    able = [peer for peer in state.counting if peer not in down] if down else state.counting
    is_able = bool(able) and len(able) >= state.config.round.min_peers
    if is_able and len(state.members) >= state.agreement.min_members:
        return None
    joined = presence.newcomers(state.taken, state.height, now)
    waiting = [peer for peer in state.peers if peer not in state.counting and peer not in down]
    if not joined and not waiting:
        return None
    return rounds.build_regroup(state, joined=joined, left=_spared(state, down, len(joined)))


def _void(state: State, work: Work, presence: Presence, pace: Pace, now: float) -> Void | None:
    """The exchange, or a commitment that it needs, waits for somebody who is down, or for too long."""
    if state.cut is None or (work.exchange and work.exchange.is_complete):
        return None
    if work.exchange:
        owing = work.exchange.owing
    else:
        owing = frozenset(PeerId(peer) for peer in rounds.unknown_contributions(work, state.cut))
    gone = owing if pace.exchange_is_overdue(now) else owing & presence.down_among(state.peers, now)
    return rounds.build_void(state, gone) if gone else None


def _membership_changes(
    state: State, presence: Presence, now: float, *, is_leaving: bool
) -> tuple[tuple[PeerId, ...], tuple[PeerId, ...]]:
    """Return who joins and who leaves with this result.

    Where all want out nobody is let go: the run pauses, and the same members go on with it another day.
    """
    contributed = {entry.member for entry in state.cut.contributions} if state.cut else set()
    down = presence.down_among(state.peers, now)
    gone = {
        member.peer
        for member in state.members
        if member.peer not in contributed
        and (member.peer in down or _is_overdue(state, member))
        and member.awaited_until <= state.round
    }
    leavers = presence.leavers(state.peers) | ({presence.me} if is_leaving else set())
    staying = set(state.peers) - gone - leavers
    joined = presence.newcomers(state.taken, state.height, now)[: _room(staying - down)]
    if joined or staying:
        gone |= leavers
    return joined, _spared(state, gone, len(joined))


def _spared(state: State, gone: Collection[PeerId], num_joined: int) -> tuple[PeerId, ...]:
    """Return who of those that are gone is let go: the junior ones, and no more than can be done without.

    An open run needs four members. With four of them and one down it goes on; with three it would wait.
    """
    spare = max(0, len(state.members) + num_joined - state.agreement.min_members)
    return tuple(sorted([peer for peer in reversed(state.peers) if peer in gone][:spare]))


def _is_overdue(state: State, member: Member) -> bool:
    """Tell whether a member that is not in this cut either has been away for too long."""
    return member.counts_from <= state.round and member.missed + 1 >= state.config.round.max_missed


def _room(staying: Collection[PeerId]) -> int | None:
    """Return how many may come in at once; None: as many as there are.

    1. two members let in three newcomers;  2. the three die together;  3. two of five decide nothing, for ever.
    So no more come in than can be done without; the others follow a round later. A member that is alone takes all it
    can get: beside one other it could not be done without itself.
    """
    return len(staying) if len(staying) > 1 else None
