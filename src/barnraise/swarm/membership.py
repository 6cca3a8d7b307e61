"""Who is a member, in which place, and under which key: what changes of that do, and which ones can be; pure arithmetic.

A member's place is its seniority: the epoch that it came in with, then the id that it came in under (`Member.seat`). A
key can be replaced (`Rotate`), be given up (`Revoke`), and its owner can be let in again under another (`Readmit`): the
place stays. An id that was given up, or replaced, is retired: nobody comes in under it ever again.

Changes are agreed on before a round's cut and take effect at the end of the round, in the order of the log, after
whoever came and went with it. Each has an effect then or none; none can fail: a member that was to be rotated may have
left meanwhile. The last member stays until somebody else is there, whatever became of its key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, assert_never

from barnraise.errors import LocalError
from barnraise.ids import PeerId
from barnraise.swarm.records import Change, Readmit, Revoke, Rotate, Upgrade

AWAITED_ROUNDS: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """A peer of the agreed set."""

    peer: PeerId
    joined_epoch: int
    counts_from: int
    """First round in which its update has a weight: one after the round it entered in (founders: the first)."""
    missed: int = 0
    """Cuts in a row that it was not in."""
    seat: str = ""
    """Id that it came in under; "": the one that it has."""
    awaited_until: int = 0
    """Round before which it keeps its place though it is not there: a peer starts again to have its new key."""

    @property
    def seniority(self) -> tuple[int, str]:
        """Return what members are ordered by."""
        return self.joined_epoch, self.seat or self.peer


@dataclass(frozen=True, kw_only=True, slots=True)
class Retired:
    """An id that nobody is let in under any more."""

    peer: PeerId
    place: Member | None
    """What its owner can be let in to again; None: there was none, or somebody has it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The members, and what the log says of their keys."""

    members: tuple[Member, ...]
    """In order of seniority."""
    retired: tuple[Retired, ...] = ()
    pending: tuple[Change, ...] = ()
    """Agreed, and without effect so far."""
    contributors: tuple[str, ...] = ()
    """Who made up the round before."""

    @property
    def peers(self) -> tuple[PeerId, ...]:
        """Return the members' ids in order of seniority."""
        return tuple(member.peer for member in self.members)

    @property
    def barred(self) -> frozenset[PeerId]:
        """Return the ids that nobody is let in under by a round's result: retired ones, and those about to come in."""
        return frozenset(retired.peer for retired in self.retired) | {
            PeerId(change.new) for change in self.pending if isinstance(change, Rotate | Readmit)
        }


def check(standing: Standing, change: Rotate | Revoke | Readmit) -> None:
    """Raise `LocalError` where a change of keys cannot be."""
    subject = _subject(change)
    if subject in {_subject(other) for other in standing.pending if not isinstance(other, Upgrade)}:
        raise LocalError(f"another change of {subject} takes effect first")
    match change:
        case Rotate():
            if change.old not in standing.peers:
                raise LocalError(f"{change.old} is no member")
            _check_is_new(standing, change.new)
        case Revoke():
            if change.peer in standing.barred:
                raise LocalError(f"{change.peer} is out already, or about to come in")
        case Readmit():
            if not any(retired.peer == change.lost and retired.place for retired in standing.retired):
                raise LocalError(f"{change.lost} has no place to come back to")
            _check_is_new(standing, change.new)
        case _:
            assert_never(change)


def carried_out(standing: Standing, round_: int) -> Standing:
    """Return what the pending changes of keys come to before round ``round_``; what has no effect yet stays pending."""
    waiting: list[Change] = []
    for change in standing.pending:
        match change:
            case Upgrade():
                continue
            case Rotate():
                standing = _rotated(standing, change, round_)
            case Revoke():
                if standing.peers == (change.peer,):
                    waiting.append(change)
                else:
                    standing = _revoked(standing, change)
            case Readmit():
                standing = _readmitted(standing, change, round_)
            case _:
                assert_never(change)
    return replace(standing, pending=tuple(waiting))


def joined(members: Sequence[Member], peers: Iterable[str], epoch: int, counts_from: int) -> tuple[Member, ...]:
    """Return the members with newcomers of an epoch behind them, by id; whoever is a member stays what it is."""
    known = {member.peer for member in members}
    newcomers = (
        Member(peer=PeerId(peer), joined_epoch=epoch, counts_from=counts_from)
        for peer in sorted(peers)
        if peer not in known
    )
    return (*members, *newcomers)


def lost(before: Iterable[str], after: Iterable[str]) -> bool:
    """Tell whether more than a quarter of those who made up the round before are missing now."""
    known = set(before)
    return 4 * len(known.difference(after)) > len(known)


def _rotated(standing: Standing, change: Rotate, round_: int) -> Standing:
    def renamed(member: Member) -> Member:
        if member.peer != change.old:
            return member
        seat, until = member.seat or member.peer, round_ + AWAITED_ROUNDS
        return replace(member, peer=PeerId(change.new), seat=seat, awaited_until=until)

    return replace(
        standing,
        members=tuple(renamed(member) for member in standing.members),
        retired=(*standing.retired, Retired(peer=PeerId(change.old), place=None)),
        contributors=tuple(change.new if peer == change.old else peer for peer in standing.contributors),
    )


def _revoked(standing: Standing, change: Revoke) -> Standing:
    place = next((member for member in standing.members if member.peer == change.peer), None)
    return replace(
        standing,
        members=tuple(member for member in standing.members if member.peer != change.peer),
        retired=(*standing.retired, Retired(peer=PeerId(change.peer), place=place)),
    )


def _readmitted(standing: Standing, change: Readmit, round_: int) -> Standing:
    """Give a place back, weight 0 in the first round as for everybody who comes in."""
    place = next((retired.place for retired in standing.retired if retired.peer == change.lost), None)
    if place is None:
        raise LocalError(f"{change.lost} has no place to come back to")
    member = replace(place, peer=PeerId(change.new), counts_from=round_ + 1, missed=0, seat=place.seat or place.peer)
    members = sorted((*standing.members, member), key=lambda other: other.seniority)
    spent = Retired(peer=PeerId(change.lost), place=None)
    return replace(
        standing,
        members=tuple(members),
        retired=tuple(spent if retired.peer == change.lost else retired for retired in standing.retired),
    )


def _check_is_new(standing: Standing, peer: str) -> None:
    if peer in standing.peers or peer in standing.barred:
        raise LocalError(f"{peer} is no new key: it is a member's, or was one's")


def _subject(change: Rotate | Revoke | Readmit) -> str:
    match change:
        case Rotate():
            return change.old
        case Revoke():
            return change.peer
        case Readmit():
            return change.lost
        case _:
            assert_never(change)
