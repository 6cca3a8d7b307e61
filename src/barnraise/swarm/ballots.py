"""One member's votes on the next entry of the log: what it proposes, approves, doubts, and keeps for later; pure.

`consensus` says which votes decide a height. This says which ones are ours: none where our disk may have
forgotten another one (`Abstention`), none for what our own books do not bear out (`proposals`), and one against a leader
that is down or overdue (`Pace`). Each call returns what is to be done, in order; a decision is among it, for the member
to act on, and then `next_entry` is called.
"""

from collections.abc import Sequence
from typing import assert_never

import msgspec

from barnraise.consensus import agreement
from barnraise.consensus.agreement import Agreement, Ballot, Decided, Decision, Record, Sign, Verify
from barnraise.errors import LocalError
from barnraise.ids import PeerId
from barnraise.swarm import effects, petitions, proposals, records
from barnraise.swarm.abstention import Abstention
from barnraise.swarm.certification import certifies, event_of
from barnraise.swarm.effects import Effect
from barnraise.swarm.mailbox import Mailbox
from barnraise.swarm.pace import Pace
from barnraise.swarm.petitions import Pool
from barnraise.swarm.presence import Presence
from barnraise.swarm.records import Amend, Recover
from barnraise.swarm.round import Work
from barnraise.swarm.state import State, check_follows


class Ballots:
    """Our part in one height after the other."""

    def __init__(
        self,
        *,
        state: State,
        work: Work,
        presence: Presence,
        pace: Pace,
        mailbox: Mailbox,
        abstention: Abstention,
        sign: Sign,
        verify: Verify,
        ballot: Record | None,
        pool: Pool,
    ) -> None:
        """Take up the height of ``state``, with the promise that was found on disk."""
        self._me = presence.me
        self._state = state
        self._work = work
        self._presence = presence
        self._pace = pace
        self._mailbox = mailbox
        self._abstention = abstention
        self._sign = sign
        self._verify = verify
        self._record = ballot
        self._pool = pool
        self._voting = self._opened()
        self._judging: tuple[int, bytes] | None = None
        self._unsealed: tuple[bytes, int] | None = None
        """A change whose signatures could not be verified, and after how many that could."""
        self._first_view = self._voting.view
        self._awaited = self._voting.view, self._voting.leader

    @property
    def proposed(self) -> bytes:
        """Return the value that is up for our vote; empty: none is."""
        return self._judging[1] if self._judging else b""

    def next_entry(self, state: State, work: Work) -> None:
        """Begin to vote on what follows ``state``; ``work`` are the books of its round."""
        self._state, self._work = state, work
        self._voting = self._opened()
        self._first_view = self._voting.view
        self._awaited = self._voting.view, self._voting.leader
        self._judging = None

    def abstain(self, now: float, height: int) -> None:
        """Cast no vote up to this height, if our disk may have forgotten one."""
        if self._me in self._state.peers and self._abstention.heard(height, now):
            self._voting = self._opened()

    def stop_abstaining(self, now: float) -> None:
        """Vote again, once it is clear that nothing is decided without us."""
        if self._abstention.is_over(self._state.height, now):
            self._voting = self._opened()

    def repeat(self) -> list[Ballot]:
        """Return what we said last, for those that may have missed it."""
        return self._voting.repeat()

    def receive(self, now: float, sender: PeerId, message: Ballot) -> list[Effect | Decision]:
        """Take in what a member says, keep it for later, or answer what is decided."""
        if message.height > self._state.height:
            if sender in self._state.peers:  # who has joined since says it again
                self._mailbox.keep(sender, message)
            return []
        if message.height < self._state.height:
            decided = self._mailbox.decided(message.height)
            return [effects.Send(to=sender, message=decided)] if decided and message.asks else []
        if isinstance(message, Decided) and (recovery := self._recovery(message)):
            return [recovery]
        return self._vote(now, self._voting.receive(sender, message))

    def _recovery(self, message: Decided) -> Decision | None:
        """Return a recovery that somebody tells us of: members do not vote for one."""
        decision = Decision(value=message.value, view=message.view, votes=message.votes)
        try:
            is_one = isinstance(event_of(decision.value), Recover)
        except LocalError:
            return None
        return decision if is_one and certifies(self._state, decision, self._verify) else None

    def propose(self, now: float, *, is_leaving: bool) -> list[Effect | Decision]:
        """Propose what it is time for, if we may. ``is_leaving``: we ourselves want out."""
        state, work = self._state, self._work
        if state.cut is None:
            self._pace.note_enough(now, proposals.is_enough(state, work, self._presence, now))
        if not self._voting.may_propose:
            return []
        if self._voting.bound_value:
            return self._vote(now, self._voting.propose(b""))
        # A change that does not come through in the first view of a height lets the round go on: it is never in its way.
        is_first = self._voting.view == self._first_view
        amend = self._pool.due(state, self._presence.speaking()) if is_first else None
        event = amend or proposals.due(state, work, self._presence, self._pace, now, is_leaving=is_leaving)
        return self._vote(now, self._voting.propose(records.encode(event))) if event else []

    def judge(self, now: float) -> list[Effect | Decision]:
        """Approve the value that is up for a vote, once we can see that it is right."""
        if self._judging is None:
            return []
        view, value = self._judging
        try:
            event = records.decode_event.decode(value)
            check_follows(self._state, event)
        except (msgspec.DecodeError, msgspec.ValidationError, LocalError):
            self._judging = None
            return []
        if isinstance(event, Amend):
            if not self._is_sealed(value, event):
                return []
        elif not proposals.agrees(self._state, self._work, self._presence, self._pace, now, event):
            return []
        self._judging = None
        return self._vote(now, self._voting.approve(view))

    def _is_sealed(self, value: bytes, event: Amend) -> bool:
        """Verify the signatures under a change: again, only when a petition may have brought keys that were missing."""
        basis = value, self._pool.num_changes
        if self._unsealed == basis:
            return False
        self._unsealed = None if petitions.is_sealed(event, self._verify) else basis
        return self._unsealed is None

    def doubt(self, now: float) -> list[Effect | Decision]:
        """Vote out a leader that is down or overdue, where a quorum is there to do so."""
        voters, views = self._state.committee, self._voting.view - self._first_view
        if self._me not in voters:
            return []
        down = self._presence.down_among(voters, now)
        has_cut = self._state.cut is not None
        if self._voting.leader not in down and not self._pace.leader_is_overdue(now, views, has_cut=has_cut):
            return []
        if not self._state.agreement.is_quorum(voters, set(voters) - down):
            return []
        return self._vote(now, self._voting.suspect(down))

    def _vote(self, now: float, asked: Sequence[agreement.Effect]) -> list[Effect | Decision]:
        found: list[Effect | Decision] = []
        awaited = self._voting.view, self._voting.leader
        if awaited != self._awaited:
            self._awaited, self._pace.view_since = awaited, now
        for effect in asked:
            match effect:
                case agreement.Broadcast():
                    found.append(effects.Broadcast(message=effect.message))
                case agreement.Send():
                    found.append(effects.Send(to=effect.to, message=effect.message))
                case agreement.Persist():
                    self._abstention.voted()
                    self._record = effect.record
                    found.append(effects.PersistBallot(record=effect.record))
                case agreement.Judge():
                    self._judging = (effect.view, effect.value)
                    found += self.judge(now)
                case Decision():
                    found.append(effect)
                case _:
                    assert_never(effect)
        return found

    def _opened(self) -> Agreement:
        """Return our part in the next entry; none where our disk may have forgotten one."""
        state = self._state
        return state.agreement.open(
            state.scope,
            state.committee,
            PeerId("") if self._abstention.covers(state.height) else self._me,
            sign=self._sign,
            verify=self._verify,
            record=self._record,
        )
