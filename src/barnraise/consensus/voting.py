"""Agreement on one log entry among members that crash but do not lie: ballots by seniority, without I/O.

One `Voting` decides one height of the log. It is single-decree Paxos (Lamport 1998) in the dress of view changes:

    view 0                 the most senior member proposes; nobody can have promised anything before
    propose(view, value)   leader -> all; a member that finds the value valid (`approve`) accepts it
    accept(view, digest)   member -> all, signed; a quorum of equal ones decides
    change(view, accepted) member -> all, once it suspects the leader: a promise to accept nothing older, with the
                           newest value it has accepted; a quorum of these lets the view's leader propose, and it
                           must propose the newest accepted value among them, or its own if there is none

Transitions of a member (anything else is ignored; every promise and acceptance is on disk before it is sent):

    on                          if                                       then
    propose(v, x) by us         we lead v, may, and have not yet         promised = v; send propose; judge x
    propose(v, x) from leader   v >= promised, no other x in v           ask the caller to judge x
    approve(v)                  v >= promised                            promised = v; accepted = (v, x); send accept
    suspect()                   undecided                                promised += 1 (skipping leaders that are
                                                                         down); send change
    change(v, ...)              v > promised, from a quorum              follow: promised = v; send change
    change(v, ...) quorum       we lead v                                may propose (bound to the newest accepted)
    accept(v, d) quorum         the value with digest d is known         decided

Why two quorums never decide differently: any two share a member (`seniority.is_quorum`); it promised before it
reported, so a value decided in an older view is in the reports that bind the newer one. That takes one value per
view: a leader that crashed may have proposed already, so what it promised before is on disk ahead of its proposal,
and a view found on disk is led on with the value accepted in it or not at all.

It knows nothing of terms, logs or disks across heights: a durable Raft, or PBFT, takes its place behind the same
calls.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final

import msgspec

from barnraise.consensus import seniority
from barnraise.consensus.agreement import (
    MAX_VALUE_BYTES,
    Ballot,
    Broadcast,
    Decided,
    Decision,
    Effect,
    Judge,
    Persist,
    Record,
    Scope,
    Sign,
    Verify,
    decided,
)
from barnraise.consensus.seniority import is_quorum, leader
from barnraise.ids import Digest, PeerId
from barnraise.swarm.records import digest


class Propose(Ballot, frozen=True, kw_only=True):
    """The leader's value."""

    value: bytes


class Accept(Ballot, frozen=True, kw_only=True):
    """A member's signed vote for the value with this digest."""

    asks = False

    value: bytes
    """Digest."""
    signature: bytes


class Change(Ballot, frozen=True, kw_only=True):
    """A member's promise to take part in no view before this one."""

    accepted_view: Annotated[int, msgspec.Meta(ge=-1, le=1 << 40)]
    """-1: nothing accepted yet."""
    accepted: bytes


class Persisted(Record, frozen=True, kw_only=True):
    """What a member has promised and accepted."""

    promised: int
    accepted_view: int
    accepted: bytes


VOTE_CONTEXT: Final = "barnraise 1 vote"


@dataclass(kw_only=True)
class Voting:
    """One height of the log. ``members`` in order of seniority; ``me`` may be an onlooker that is none of them."""

    scope: Scope
    members: tuple[PeerId, ...]
    me: PeerId
    sign: Sign
    verify: Verify
    promised: int = 0
    accepted_view: int = -1
    accepted: bytes = b""
    decision: Decision | None = None
    _led_before: int = -1
    """The view in which an earlier life of ours may have proposed something."""
    _proposals: dict[int, bytes] = field(default_factory=dict)
    """Of the promised view and newer ones, of which there is one at most: accepting it for judgement promises it."""
    _values: dict[bytes, bytes] = field(default_factory=dict)
    _accepts: dict[PeerId, Accept] = field(default_factory=dict)
    """The newest of each member, so that nobody can fill our memory."""
    _changes: dict[PeerId, Change] = field(default_factory=dict)
    """Likewise."""

    def restore(self, record: Persisted) -> None:
        """Take up the promises made before a crash, and the vote that may not have reached everybody."""
        self.promised, self.accepted_view, self.accepted = record.promised, record.accepted_view, record.accepted
        self._led_before = self.promised
        if self.accepted_view < 0:
            return
        vote = self._vote()
        self._values[vote.value] = self.accepted
        self._accepts[self.me] = vote
        if self.accepted_view == self.promised:
            self._proposals[self.promised] = self.accepted

    @property
    def view(self) -> int:
        """Return the view that this member has promised."""
        return self.promised

    @property
    def leader(self) -> PeerId:
        """Return who may propose now."""
        return leader(self.members, self.promised)

    @property
    def may_propose(self) -> bool:
        """Tell whether this peer leads and has not proposed yet."""
        if self.decision or self.leader != self.me or self.promised in self._proposals:
            return False
        if self.promised == self._led_before:
            return False
        return self.promised == 0 or is_quorum(self.members, self._changed_to(self.promised))

    @property
    def bound_value(self) -> bytes:
        """Return the value that this view's leader must propose; empty: its own."""
        changes = self._changed_to(self.promised).values()
        newest = max(changes, key=lambda change: change.accepted_view, default=None)
        return newest.accepted if newest and newest.accepted_view >= 0 else b""

    def propose(self, value: bytes) -> list[Effect]:
        """Propose, where `may_propose`; a bound value takes the place of ours. The caller judges it like any other."""
        if not self.may_propose:
            return []
        value = self.bound_value or value
        message = Propose(height=self.scope.height, view=self.promised, value=value)
        return [self._persist(), Broadcast(message=message), *self._proposed(message)]

    def approve(self, view: int) -> list[Effect]:
        """Accept the value proposed in ``view``, unless a newer view was promised meanwhile."""
        if self.decision or view != self.promised or view not in self._proposals or self.accepted_view == view:
            return []
        if self.me not in self.members:
            return []
        self.accepted_view, self.accepted = view, self._proposals[view]
        vote = self._vote()
        return [self._persist(), Broadcast(message=vote), *self._accept(self.me, vote)]

    def suspect(self, down: frozenset[PeerId] = frozenset()) -> list[Effect]:
        """Give up the current leader: promise the next view whose leader is not known to be down."""
        if self.decision or self.me not in self.members:
            return []
        ahead = [change.view for change in self._changes.values()]
        view = max([self.promised + 1, *ahead])  # join who is ahead instead of chasing it view by view
        while leader(self.members, view) in down and view <= self.promised + len(self.members):
            view += 1
        return self._promise(view)

    def repeat(self) -> list[Ballot]:
        """Return what this member said in the current view, for those that may have missed it."""
        if self.decision:
            return [decided(self.scope.height, self.decision)]
        said: list[Ballot] = []
        if self.me in self._changes:
            said.append(self._changes[self.me])
        if self.leader == self.me and self.promised in self._proposals:
            said.append(Propose(height=self.scope.height, view=self.promised, value=self._proposals[self.promised]))
        if self.me in self._accepts:
            said.append(self._accepts[self.me])
        return said

    def receive(self, sender: PeerId, message: Ballot) -> list[Effect]:
        """Take in a message of this height."""
        if self.decision or sender not in self.members:
            return []
        match message:
            case Propose():
                return self._on_propose(sender, message)
            case Accept():
                signed = self.scope.statement(message.view, Digest(message.value))
                valid = self.verify(sender, VOTE_CONTEXT, signed, message.signature)
                return self._accept(sender, message) if valid else []
            case Change():
                return self._on_change(sender, message)
            case Decided():
                return self._on_decided(message)
            case _:
                return []

    def _on_propose(self, sender: PeerId, message: Propose) -> list[Effect]:
        if sender != leader(self.members, message.view) or len(message.value) > MAX_VALUE_BYTES:
            return []
        if message.view < self.promised or message.view in self._proposals:
            return []
        effects: list[Effect] = []
        if message.view > self.promised:
            effects = self._promise(message.view)
        return effects + self._proposed(message)

    def _proposed(self, message: Propose) -> list[Effect]:
        self._proposals = {message.view: message.value}
        name = digest(message.value)
        self._values = {name: message.value, digest(self.accepted): self.accepted}
        decision = self._decide(message.view, name)
        return decision or [Judge(view=message.view, value=message.value)]

    def _accept(self, sender: PeerId, vote: Accept) -> list[Effect]:
        known = self._accepts.get(sender)
        if known is None or vote.view > known.view:
            self._accepts[sender] = vote
        return self._decide(vote.view, vote.value)

    def _decide(self, view: int, name: bytes) -> list[Effect]:
        equal = {s: vote.signature for s, vote in self._accepts.items() if (vote.view, vote.value) == (view, name)}
        if self.decision or name not in self._values or not is_quorum(self.members, equal):
            return []
        self.decision = Decision(value=self._values[name], view=view, votes=tuple(sorted(equal.items())))
        return [self.decision]

    def _on_change(self, sender: PeerId, message: Change) -> list[Effect]:
        if message.accepted_view >= message.view or len(message.accepted) > MAX_VALUE_BYTES:
            return []
        known = self._changes.get(sender)
        if known is None or message.view > known.view:
            self._changes[sender] = message
        if message.view > self.promised and is_quorum(self.members, self._changed_to(message.view)):
            return self._promise(message.view)
        return []

    def _changed_to(self, view: int) -> dict[PeerId, Change]:
        return {sender: change for sender, change in self._changes.items() if change.view == view}

    def _on_decided(self, message: Decided) -> list[Effect]:
        decision = Decision(value=message.value, view=message.view, votes=message.votes)
        if not HOME.holds(decision, self.scope, self.members, self.verify):
            return []
        self.decision = decision
        return [decision]

    def _promise(self, view: int) -> list[Effect]:
        if self.me not in self.members:
            self.promised = view
            return []
        self.promised = view
        change = Change(height=self.scope.height, view=view, accepted_view=self.accepted_view, accepted=self.accepted)
        self._changes[self.me] = change
        return [self._persist(), Broadcast(message=change)]

    def _vote(self) -> Accept:
        name = digest(self.accepted)
        signature = self.sign(VOTE_CONTEXT, self.scope.statement(self.accepted_view, name))
        return Accept(height=self.scope.height, view=self.accepted_view, value=name, signature=signature)

    def _persist(self) -> Persist:
        return Persist(
            record=Persisted(
                height=self.scope.height,
                promised=self.promised,
                accepted_view=self.accepted_view,
                accepted=self.accepted,
            )
        )


class Home:
    """The kind of agreement among one owner's machines."""

    name = "raft"
    min_members = 1
    trusts_members = True

    def committee(self, members: Sequence[PeerId], limit: int) -> tuple[PeerId, ...]:
        """Return all members: one owner's machines are few."""
        return tuple(members)

    def is_quorum(self, members: Sequence[PeerId], present: Collection[PeerId]) -> bool:
        """Tell whether ``present`` may act for ``members``: see `seniority`."""
        return is_quorum(members, present)

    def explain(self, members: Sequence[PeerId], present: Collection[PeerId]) -> str:
        """Say in plain words why those present are not a quorum."""
        return seniority.explain(members, present)

    def is_cut(self, counting: Sequence[PeerId], able: Sequence[PeerId], contributors: Collection[PeerId]) -> bool:
        """Tell whether these may make up a round's aggregate: a quorum of those that are not known to be down."""
        return is_quorum(able, contributors)

    def holds(self, decision: Decision, scope: Scope, members: Sequence[PeerId], verify: Verify) -> bool:
        """Tell whether a decision's votes are a quorum's."""
        signed = scope.statement(decision.view, decision.digest)
        voters = {
            PeerId(voter)
            for voter, signature in decision.votes[: len(members)]
            if voter in members and verify(PeerId(voter), VOTE_CONTEXT, signed, signature)
        }
        return is_quorum(members, voters)

    def open(
        self,
        scope: Scope,
        members: Sequence[PeerId],
        me: PeerId,
        *,
        sign: Sign,
        verify: Verify,
        record: Record | None = None,
    ) -> Voting:
        """Begin to decide a height."""
        voting = Voting(scope=scope, members=tuple(members), me=me, sign=sign, verify=verify)
        if isinstance(record, Persisted) and record.height == scope.height:
            voting.restore(record)
        return voting


HOME: Final = Home()
