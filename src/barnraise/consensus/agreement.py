"""What every way of agreeing on a log entry has in common: its calls, its effects, and what a signature stands over.

An `Agreement` decides one height of the log. It is a state machine without I/O and without a clock: whoever drives it
(the member's machine, the simulator) hands in what members say, what it finds valid and whom it doubts, and performs
the effects in order. Patience is the driver's (`swarm.pace`): it calls `Agreement.suspect` when a leader is overdue.

    call                   when
    propose(value)         `may_propose`, and it is time for an entry
    approve(view)          the value that a `Judge` asked about is valid
    suspect(down)          the leader is down, or overdue: longer with each view
    repeat()               now and then: what was said may have been lost
    receive(sender, m)     a member said something

Messages are delivered at least once, in any order, or late; every machine here takes each of them twice without harm.
A `Kind` is a protocol by name: who leads, how many are enough, and when a stored decision proves itself.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

import msgspec

from barnraise.ids import Digest, PeerId
from barnraise.swarm.records import Count, digest

MAX_VALUE_BYTES: Final = 32 * 1024
"""A proposal with its frame stays below the 64 KiB of a control message."""

Sign = Callable[[str, bytes], bytes]
"""``(context, message) -> signature`` with this peer's keys."""
Verify = Callable[[PeerId, str, bytes, bytes], bool]
"""``(peer, context, message, signature)`` -> does it hold?"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scope:
    """The one entry that an agreement is about; whatever is signed for it means nothing anywhere else."""

    run: bytes
    epoch: int
    height: int

    def statement(self, view: int, value: Digest) -> bytes:
        """Return what a vote for the value with this digest in this view signs."""
        return msgspec.msgpack.encode((self.run, self.epoch, self.height, view, value))


class Ballot(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """What members say to each other about a height."""

    asks: ClassVar[bool] = True
    """Whoever says it about a height that is decided may not know what was decided; a vote may just have crossed with it."""

    height: Count
    view: Count


class Decided(Ballot, frozen=True, kw_only=True):
    """What was decided, with the votes: for members that missed it."""

    asks = False

    value: bytes
    votes: tuple[tuple[str, bytes], ...]


class Record(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """What a member must find again after a crash, before it says anything."""

    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Broadcast:
    """Effect: send to every other member."""

    message: Ballot


@dataclass(frozen=True, kw_only=True, slots=True)
class Send:
    """Effect: send to one member."""

    to: PeerId
    message: Ballot


@dataclass(frozen=True, kw_only=True, slots=True)
class Persist:
    """Effect: on disk before anything after it is sent."""

    record: Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """Effect: a value was proposed; call `Agreement.approve` with this view if and when it is found valid."""

    view: int
    value: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """Effect: the height is decided, by these votes."""

    value: bytes
    view: int
    votes: tuple[tuple[str, bytes], ...]

    @property
    def digest(self) -> Digest:
        """Return the name of the value, which the votes stand over."""
        return digest(self.value)


Effect = Broadcast | Send | Persist | Judge | Decision


class Agreement(Protocol):
    """One member's part in deciding one height."""

    @property
    def view(self) -> int:
        """Return the newest view, or term, that this member takes part in."""
        ...

    @property
    def decision(self) -> Decision | None:
        """Return what was decided, once it is."""
        ...

    @property
    def leader(self) -> PeerId:
        """Return who may propose now."""
        ...

    @property
    def may_propose(self) -> bool:
        """Tell whether this member leads and has not proposed yet."""
        ...

    @property
    def bound_value(self) -> bytes:
        """Return the value that this view's leader must propose; empty: its own."""
        ...

    def propose(self, value: bytes) -> list[Effect]:
        """Propose, where `may_propose`; a bound value takes the place of ours."""
        ...

    def approve(self, view: int) -> list[Effect]:
        """Vote for the value proposed in ``view``, unless a newer view came meanwhile."""
        ...

    def suspect(self, down: frozenset[PeerId] = frozenset()) -> list[Effect]:
        """Give up the leader for the next one that is not known to be down."""
        ...

    def repeat(self) -> list[Ballot]:
        """Return what this member said last, for those that may have missed it."""
        ...

    def receive(self, sender: PeerId, message: Ballot) -> list[Effect]:
        """Take in a message of this height.

        Raises:
            PeerError: it cannot come from an honest member; nothing changed.
        """
        ...


class Kind(Protocol):
    """A protocol that members agree by."""

    name: str
    min_members: int
    """Fewer than this train nothing."""
    trusts_members: bool
    """Members may crash and do not lie: a leader's word on who is there is good enough."""

    def committee(self, members: Sequence[PeerId], limit: int) -> tuple[PeerId, ...]:
        """Return who of the members votes, in order of seniority; ``limit`` is the most that a large run lets vote."""
        ...

    def is_quorum(self, members: Sequence[PeerId], present: Collection[PeerId]) -> bool:
        """Tell whether ``present`` may act for ``members``, in order of seniority."""
        ...

    def num_witnesses(self, members: Sequence[PeerId]) -> int:
        """Return how many members must say a thing before one that does not lie has said it."""
        ...

    def explain(self, members: Sequence[PeerId], present: Collection[PeerId]) -> str:
        """Say in plain words why those present are not a quorum."""
        ...

    def is_cut(self, counting: Sequence[PeerId], able: Sequence[PeerId], contributors: Collection[PeerId]) -> bool:
        """Tell whether these may make up a round's aggregate.

        Args:
            counting: Members that were given samples.
            able: Those of them that are not known to be down.
            contributors: Those whose commitments are at hand.
        """
        ...

    def holds(self, decision: Decision, scope: Scope, members: Sequence[PeerId], verify: Verify) -> bool:
        """Tell whether a decision's votes are a quorum's: what anyone can check from files alone."""
        ...

    def open(
        self,
        scope: Scope,
        members: Sequence[PeerId],
        me: PeerId,
        *,
        sign: Sign,
        verify: Verify,
        record: Record | None = None,
    ) -> Agreement:
        """Begin to decide a height.

        Args:
            scope: Which one.
            members: Who votes, in order of seniority.
            me: This member; may be an onlooker that is none of them.
            sign: With this member's keys.
            verify: A member's signature.
            record: The newest one persisted, of this height or an older one.
        """
        ...


def decided(height: int, decision: Decision) -> Decided:
    """Return the message that tells a decision to whoever missed it."""
    return Decided(height=height, view=decision.view, value=decision.value, votes=decision.votes)
