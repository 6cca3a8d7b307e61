"""Raft by seniority: how members that crash, and do not lie, agree on one entry of the log after the other; no I/O.

Theory of operation (Ongaro & Ousterhout, USENIX ATC 2014; pre-vote: Ongaro's thesis, section 9.6). Time is cut into
*terms*. A term has one leader at most, which a quorum voted for (`seniority.is_quorum`: more than half, or exactly half
with the most senior), and the leader of the newest term is the only one that anybody follows: the term fences, since
whoever has seen a newer one refuses what an older leader says. Each member keeps its term, its vote in it and its log on
disk, and every change of them is there before anything that rests on it is sent.

Our log differs from Raft's in one way: there is one undecided slot. An entry is judged by each member before it is
acknowledged, and nobody moves on before it is decided, so that an `Append` carries one entry, all that lies before it
is equal everywhere, and a member's log is "up to date" by the term of its entry in the slot alone. The acknowledgement
is a signature over (term, digest); a quorum of them is the entry's certificate, and goes to all, so that no leader's
death takes a decision with it.

    PreVote(t, entry)    may I stand in term t?  Binds nobody: whoever has no doubt about its leader does not answer, so
                         that a member that was cut off does not push the term up, and its leader out, on its return
    RequestVote(t, entry)  vote for me in term t: granted once a term, to a log that is at least as up to date
    Append(t, value)     from the leader of term t: put this in the slot; without a value: I lead
    Ack(t, digest)       it is in my slot, in term t
    Decided              value and certificate, for whoever missed them

Transitions of a member (anything else is ignored). "Adopt t": term = t, no vote, follower; on disk at once.

    on                          if                                          then
    propose(x)                  we lead, nothing proposed in this term      slot = (term, x), on disk; Append; Ack
    Append(t, x)                t < term                                    refuse: the sender learns the newer term
                                t > term                                    adopt t, then as for t = term
                                t = term, first x of this term              follow the sender; judge x
    approve(t)                  t = term                                    slot = (t, x), on disk; Ack
    Ack(t, d) of a quorum       the value with digest d is known            decided
    suspect()                   undecided                                   doubt the leader; wait for the most senior
                                                                            member that was not given up; if that is us:
                                                                            PreVote(term + 1)
    PreVote(t, e)               t > term, e >= slot's term, and in doubt    grant
                                t <= term                                   refuse: the sender adopts our term
    grants by a quorum          we asked                                    term += 1, vote for us, on disk; RequestVote
    RequestVote(t, e)           t > term                                    adopt t, then as for t = term
                                t = term, e >= slot's term, no other vote   vote, on disk; grant
    votes of a quorum           we stand in this term                       we lead, on disk; Append without a value
    Decided, or any refusal, of t > term                                    adopt t

**Seniority is priority.** Nobody stands before everybody more senior had its time: a doubting member waits for the most
senior one that is not known to be down, gives it up when suspected in turn, and so on down the list to itself. So no
two wait equally long, which is what Raft's random timeouts are for. Whoever was to stand but lacks the entry in our
slot is given up at once. How long is the driver's business (`swarm.pace`); `leader` says who is waited for.

**Why the slot is safe.** Say a quorum acknowledged (t, x). A leader of a later term t' has the votes of a quorum, which
shares a member with that one. It acknowledged before it voted, since it would have refused term t after; so its slot's
term was at least t when it voted, and the candidate's at least as much. By induction over the terms from t on, that
slot held x, and a leader with something in its slot proposes it again (`bound_value`), *under its own term*. That is
why Raft's figure 8 cannot happen: there, an entry of term 2 is copied on in term 4 and still counts as one of term 2, so
that a log with an entry of term 3 overrides it; here the copy is an entry of term 4, and acknowledgements are only
counted together when they are of one term.

**Across entries** the members stay the same for an *epoch*, and so term, vote and leadership live on: whoever voted in
term t at one height acknowledges nothing older at the next, and a leader just goes on. (It may have been elected before
others decided the entry in between: they were a quorum of the same members, and moved on with it.)

**Between epochs** the members change, and quorums of the old and of the new ones may have nobody in common. Therefore
terms begin anew: every entry is decided by the members that the one before it left, under terms of their own, and
nobody acts in an epoch before it knows the entry that began it, which is decided. A leader of an older epoch can say
nothing about a newer one. In term 0 of an epoch the most senior member leads without having been elected. That is an
election all the same: every member has, by entering the epoch, voted for it, nobody can have acknowledged anything
before, and term 1 takes a quorum's votes.

A leader's promises are kept in a crash: what it proposed in a term was in its own slot, on disk, before anybody heard of
it, so that it goes on with that or, having proposed nothing, with anything.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Final

from barnraise.consensus.agreement import (
    MAX_VALUE_BYTES,
    Ballot,
    Broadcast,
    Decided,
    Decision,
    Effect,
    Judge,
    Persist,
    Scope,
    Send,
    Sign,
    Verify,
    decided,
)
from barnraise.consensus.raft_messages import (
    VOTE_CONTEXT,
    Ack,
    Append,
    PreVote,
    PreVoteReply,
    RaftRecord,
    RequestVote,
    VoteReply,
)
from barnraise.consensus.seniority import is_quorum
from barnraise.errors import PeerError
from barnraise.ids import Digest, PeerId
from barnraise.swarm.records import digest

NOBODY: Final = PeerId("")


def is_certified(decision: Decision, scope: Scope, members: Sequence[PeerId], verify: Verify) -> bool:
    """Tell whether a decision's votes are a quorum's acknowledgements, all of one term."""
    signed = scope.statement(decision.view, decision.digest)
    voters = {
        PeerId(voter)
        for voter, signature in decision.votes[: len(members)]
        if voter in members and verify(PeerId(voter), VOTE_CONTEXT, signed, signature)
    }
    return is_quorum(members, voters)


class Role(Enum):
    """What a member is in its term."""

    FOLLOWER = "follower"
    ASKING = "asking"
    """A follower that wants to stand in the next term."""
    CANDIDATE = "candidate"
    LEADER = "leader"


class Raft:
    """One member's part in one entry of the log. Memory is bounded: of every member the newest word of each kind."""

    def __init__(
        self,
        scope: Scope,
        members: Sequence[PeerId],
        me: PeerId,
        *,
        sign: Sign,
        verify: Verify,
        record: RaftRecord | None = None,
    ) -> None:
        """Take up the term of ``record`` if it is of this epoch, and the entry in it if it is of this height."""
        self.scope = scope
        self.members = tuple(members)
        self.me = me
        self._is_member = me in self.members
        self._sign = sign
        self._verify = verify
        self.term = 0
        self.vote = self.members[0]
        self.role = Role.LEADER if me == self.vote else Role.FOLLOWER
        self.entry_term = -1
        self.entry = b""
        self.decision: Decision | None = None
        self._proposal = b""
        """What the term's leader has proposed; of one term only."""
        self._names: dict[Digest, bytes] = {}
        """The proposal and the entry, by digest."""
        self._acks: dict[PeerId, Ack] = {}
        """The newest of each member, valid."""
        self._asked: dict[PeerId, PreVote] = {}
        """Who wants to stand, and may once we are in doubt."""
        self._granted: set[PeerId] = set()
        """Who lets us stand, or votes for us."""
        self._leader = NOBODY
        """Who has come forward as the leader of this term."""
        if record is not None and record.epoch == scope.epoch and self._is_member:
            self._restore(record)
        self._is_in_doubt = not self.vote or (self.vote == me and self.role is not Role.LEADER)
        self._down: frozenset[PeerId] = frozenset()
        self._given_up: set[PeerId] = set()
        self._awaited = self.vote or self._next_in_line()

    def _restore(self, record: RaftRecord) -> None:
        """Take up where an older height, or a crash, has left us."""
        self.term, self.vote = record.term, PeerId(record.vote)
        self.role = Role.LEADER if record.leads else Role.FOLLOWER
        if record.height != self.scope.height or record.entry_term < 0:
            return
        self.entry_term, self.entry = record.entry_term, record.entry
        self._acks[self.me] = self._signed()
        if self.entry_term == self.term and not record.leads:
            self._proposal = self.entry  # a leader proposes it once more: it may be a quorum all by itself
        self._name_values()

    # ---- what the driver asks ---------------------------------------------------------------------------------

    @property
    def view(self) -> int:
        """Return the term."""
        return self.term

    @property
    def leader(self) -> PeerId:
        """Return who is waited for: the term's leader, or whose turn it is to become the next."""
        return self._awaited

    @property
    def may_propose(self) -> bool:
        """Tell whether we lead and have proposed nothing in this term."""
        return self.role is Role.LEADER and not self._proposal and self.decision is None

    @property
    def bound_value(self) -> bytes:
        """Return what is in our slot, which may be decided already; empty: nothing is."""
        return self.entry

    def propose(self, value: bytes) -> list[Effect]:
        """Propose, where `may_propose`: what is in our slot, or else ``value``. Ours needs no judgement."""
        value = self.bound_value or value
        if not self.may_propose or not value:
            return []
        self._proposal = value
        append = Append(height=self.scope.height, view=self.term, value=value)
        on_disk, *acknowledged = self._acknowledge()
        return [on_disk, Broadcast(message=append), *acknowledged]

    def approve(self, view: int) -> list[Effect]:
        """Take what was proposed in term ``view`` into our slot, unless a newer one came meanwhile."""
        if self.decision or view != self.term or not self._proposal or self.entry_term == view:
            return []
        return self._acknowledge() if self._is_member else []

    def suspect(self, down: frozenset[PeerId] = frozenset()) -> list[Effect]:
        """Give up whoever is waited for; stand, or ask to, if everybody more senior is given up or down."""
        if self.decision or not self._is_member:
            return []
        self._is_in_doubt, self._down = True, down
        granted = [effect for sender in self._asked for effect in self._grant(sender)]
        if self.role is Role.CANDIDATE and self._awaited == self.me:
            self._given_up = (
                set()
            )  # the votes were split: the most senior candidate tries again, the others wait for it
        else:
            self._given_up.add(self._awaited)
        self._awaited = self._next_in_line()
        is_our_turn = self._awaited == self.me and self.role in (Role.FOLLOWER, Role.CANDIDATE)
        return [*granted, *(self._ask() if is_our_turn else [])]

    def repeat(self) -> list[Ballot]:
        """Return what this member said last: three messages at most."""
        height = self.scope.height
        if self.decision:
            return [decided(height, self.decision)]
        said: list[Ballot] = [self._acks[self.me]] if self.me in self._acks else []
        match self.role:
            case Role.LEADER if self._proposal or self.term:  # everybody knows who leads term 0
                said.append(Append(height=height, view=self.term, value=self._proposal))
            case Role.ASKING:
                said.append(PreVote(height=height, view=self.term + 1, entry_term=self.entry_term))
            case Role.CANDIDATE:
                said.append(RequestVote(height=height, view=self.term, entry_term=self.entry_term))
            case _:
                pass
        return said

    def receive(self, sender: PeerId, message: Ballot) -> list[Effect]:
        """Take in a message of this height; an onlooker learns from entries and their acknowledgements only.

        Raises:
            PeerError: it cannot come from a member that keeps to the rules; nothing changed.
        """
        if self.decision:
            return []
        if isinstance(message, Decided):
            return self._on_decided(sender, message)  # it proves itself, whoever tells it
        if sender not in self.members:
            return []
        match message:
            case Append():
                return self._on_append(sender, message)
            case Ack():
                return self._on_ack(sender, message)
            case PreVote() | RequestVote() if not -1 <= message.entry_term < message.view:
                raise PeerError(sender, f"wants to lead term {message.view} with an entry of term {message.entry_term}")
            case PreVote() if self._is_member:
                return self._on_pre_vote(sender, message)
            case PreVoteReply() if self._is_member:
                return self._on_pre_vote_reply(sender, message)
            case RequestVote() if self._is_member:
                return self._on_request_vote(sender, message)
            case VoteReply() if self._is_member:
                return self._on_vote_reply(sender, message)
            case _:
                return []

    # ---- the entry --------------------------------------------------------------------------------------------

    def _on_append(self, sender: PeerId, message: Append) -> list[Effect]:
        if len(message.value) > MAX_VALUE_BYTES:
            raise PeerError(sender, f"proposed {len(message.value)} bytes; {MAX_VALUE_BYTES} are allowed")
        if message.view == 0 and sender != self.members[0]:
            raise PeerError(sender, "leads term 0, which is the most senior member's")
        if message.view < self.term:
            return self._refuse(sender)
        adopted = self._adopt(message.view) if message.view > self.term else []
        if self.role is Role.LEADER or self._leader not in (NOBODY, sender):
            return []  # two leaders in one term: somebody's disk forgot its vote
        is_new = bool(message.value) and not self._proposal
        if is_new or not self._leader:
            self._follow(sender)
        return [*adopted, *(self._proposed(message.value) if is_new else [])]

    def _proposed(self, value: bytes) -> list[Effect]:
        self._proposal = value
        self._name_values()
        found = self._decide(self.term, digest(value))
        if found:
            return found
        if value == self.entry and self._is_member:
            return self._acknowledge()  # it was judged when it came into our slot
        return [Judge(view=self.term, value=value)]

    def _acknowledge(self) -> list[Effect]:
        """Take the proposal into our slot, and say so."""
        self.entry_term, self.entry = self.term, self._proposal
        self._name_values()
        ack = self._acks[self.me] = self._signed()
        return [self._persist(), Broadcast(message=ack), *self._decide(ack.view, Digest(ack.value))]

    def _on_ack(self, sender: PeerId, message: Ack) -> list[Effect]:
        known = self._acks.get(sender)
        if known is not None and message.view <= known.view:
            return []
        signed = self.scope.statement(message.view, Digest(message.value))
        if not self._verify(sender, VOTE_CONTEXT, signed, message.signature):
            raise PeerError(sender, f"signed no acknowledgement of height {message.height} in term {message.view}")
        self._acks[sender] = message
        return self._decide(message.view, Digest(message.value))

    def _decide(self, term: int, name: Digest) -> list[Effect]:
        if 2 * len(self._acks) < len(self.members):
            return []
        equal = {peer: ack.signature for peer, ack in self._acks.items() if (ack.view, ack.value) == (term, name)}
        if name not in self._names or not is_quorum(self.members, equal):
            return []
        return self._decided(Decision(value=self._names[name], view=term, votes=tuple(sorted(equal.items()))))

    def _on_decided(self, sender: PeerId, message: Decided) -> list[Effect]:
        decision = Decision(value=message.value, view=message.view, votes=message.votes)
        if not is_certified(decision, self.scope, self.members, self._verify):
            raise PeerError(sender, f"told a decision of height {message.height} that its votes do not bear out")
        return self._decided(decision)

    def _decided(self, decision: Decision) -> list[Effect]:
        """End; the term that it was decided in lives on, and fences whatever we led before it."""
        adopted = self._adopt(decision.view) if decision.view > self.term else []
        self.decision = decision
        return [*adopted, decision]

    # ---- elections --------------------------------------------------------------------------------------------

    def _ask(self) -> list[Effect]:
        """Ask whether to stand: a term is begun only by who may win it."""
        self.role, self._granted = Role.ASKING, {self.me}
        asked = PreVote(height=self.scope.height, view=self.term + 1, entry_term=self.entry_term)
        return [Broadcast(message=asked), *self._stand()]

    def _stand(self) -> list[Effect]:
        """Begin a term, once a quorum lets us."""
        if not is_quorum(self.members, self._granted):
            return []
        self._enter(self.term + 1, self.me)
        self.role, self._granted = Role.CANDIDATE, {self.me}
        request = RequestVote(height=self.scope.height, view=self.term, entry_term=self.entry_term)
        return [self._persist(), Broadcast(message=request), *self._lead()]

    def _lead(self) -> list[Effect]:
        """Lead the term that we stand in, once a quorum voted for us."""
        if not is_quorum(self.members, self._granted):
            return []
        self.role, self._is_in_doubt = Role.LEADER, False
        return [self._persist(), Broadcast(message=Append(height=self.scope.height, view=self.term, value=b""))]

    def _on_pre_vote(self, sender: PeerId, message: PreVote) -> list[Effect]:
        if message.view <= self.term:
            refusal = PreVoteReply(height=self.scope.height, view=self.term, granted=False)
            return [Send(to=sender, message=refusal)]
        self._asked[sender] = message
        if not self._is_in_doubt:
            return []  # it asks again, and we may come to doubt
        if message.entry_term < self.entry_term and sender == self._awaited:
            return self.suspect(self._down)
        return self._grant(sender)

    def _grant(self, sender: PeerId) -> list[Effect]:
        """Let a member stand whose log is as good as ours."""
        asked = self._asked[sender]
        if asked.view <= self.term or asked.entry_term < self.entry_term:
            return []
        return [Send(to=sender, message=PreVoteReply(height=self.scope.height, view=asked.view, granted=True))]

    def _on_pre_vote_reply(self, sender: PeerId, message: PreVoteReply) -> list[Effect]:
        if message.granted:
            if self.role is not Role.ASKING or message.view != self.term + 1:
                return []
            self._granted.add(sender)
            return self._stand()
        if message.view <= self.term:
            return []
        was_asking = self.role is Role.ASKING
        return [*self._adopt(message.view), *(self._ask() if was_asking else [])]

    def _on_request_vote(self, sender: PeerId, message: RequestVote) -> list[Effect]:
        if message.view < self.term:
            return self._refuse(sender)
        is_up_to_date = message.entry_term >= self.entry_term
        is_newer = message.view > self.term
        if is_newer:
            self._enter(message.view, sender if is_up_to_date else NOBODY)
        elif is_up_to_date and not self.vote:
            is_newer, self.vote, self._awaited = True, sender, sender
        reply = VoteReply(height=self.scope.height, view=self.term, granted=self.vote == sender)
        return [*([self._persist()] if is_newer else []), Send(to=sender, message=reply)]

    def _on_vote_reply(self, sender: PeerId, message: VoteReply) -> list[Effect]:
        if message.view > self.term:
            return self._adopt(message.view)
        if not message.granted or message.view != self.term or self.role is not Role.CANDIDATE:
            return []
        self._granted.add(sender)
        return self._lead()

    # ---- terms ------------------------------------------------------------------------------------------------

    def _adopt(self, term: int) -> list[Effect]:
        """Enter a newer term that somebody else began."""
        self._enter(term, NOBODY)
        return [self._persist()] if self._is_member else []

    def _enter(self, term: int, vote: PeerId) -> None:
        """Begin a term with a vote in it; who leads it is not known yet."""
        self.term, self.vote, self.role = term, vote, Role.FOLLOWER
        self._proposal, self._leader, self._is_in_doubt = b"", NOBODY, True
        self._granted, self._asked, self._given_up = set(), {}, set()
        self._awaited = vote or self._next_in_line()

    def _follow(self, leader: PeerId) -> None:
        """Trust the term's leader again: it has come forward."""
        self.vote = self._leader = self._awaited = leader
        self.role, self._is_in_doubt = Role.FOLLOWER, False
        self._given_up, self._asked = set(), {}

    def _next_in_line(self) -> PeerId:
        """Return the most senior member that was not given up, among those not known to be down; again from the top."""
        able = [peer for peer in self.members if peer not in self._down or peer == self.me]
        left = [peer for peer in able if peer not in self._given_up]
        if not left:
            self._given_up = set()
        return (left or able)[0]

    def _refuse(self, sender: PeerId) -> list[Effect]:
        """Tell a candidate, or a leader, that its term is over."""
        refusal = VoteReply(height=self.scope.height, view=self.term, granted=False)
        return [Send(to=sender, message=refusal)] if self._is_member else []

    # ---- details ----------------------------------------------------------------------------------------------

    def _name_values(self) -> None:
        self._names = {digest(value): value for value in (self._proposal, self.entry) if value}

    def _signed(self) -> Ack:
        name = digest(self.entry)
        signature = self._sign(VOTE_CONTEXT, self.scope.statement(self.entry_term, name))
        return Ack(height=self.scope.height, view=self.entry_term, value=name, signature=signature)

    def _persist(self) -> Persist:
        return Persist(
            record=RaftRecord(
                height=self.scope.height,
                epoch=self.scope.epoch,
                term=self.term,
                vote=self.vote,
                leads=self.role is Role.LEADER,
                entry_term=self.entry_term,
                entry=self.entry,
            )
        )
