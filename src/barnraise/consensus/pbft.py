"""Agreement on one log entry among members of which fewer than a third may lie: PBFT, without I/O.

Castro and Liskov, Practical Byzantine Fault Tolerance (OSDI 1999); Castro's thesis (MIT 2001) has the proofs. One
`Pbft` decides one height. The commit certificate is the stable checkpoint, so nothing is collected across heights and
there are no watermarks. Of n members f = (n - 1) // 3 may do anything; q = `quorum.quorum` of them are a quorum: any
two share an honest member, and the honest ones are a quorum by themselves.

    pre-prepare(v, x)     primary -> all   x is the value of view v; for v > 0 this is the new-view, too
    prepare(v, d)         member -> all    I vote for no other value than the one with digest d in view v
    commit(v, d)          member -> all    I have seen q prepares (v, d), a *certificate*, and have it on disk
    view change(v, p, d)  member -> all    I vote in no view before v; (p, d) is my newest certificate; p = -1: none
    fetch                 member -> one    pass on these messages, which I need to use yours

A value's first view needs each member's own judgement. What a certificate binds needs none: f + 1 honest members have
judged it. No message carries a certificate. A proof is a predicate over the single signed messages that a member holds,
so that nothing outgrows a control message however large the committee is:

    justified    a pre-prepare (v, x) that names certificate view c is justified, for v > 0, if we hold view changes to
                 v or beyond by q members, none of which claims a certificate newer than c, and, if c >= 0, q prepares
                 (c, digest of x)

It does not matter which q, nor that they are the ones the primary had. So of each member the view change with the lowest
claim will do, and a member that lies to some about its claim harms nobody. What we lack, the primary passes on.

Transitions of a member in view v (anything else is late, double, or kept for a newer view; see `pbft_book`):

    on                              if                                         then
    propose(x) by us                we lead v; v = 0, or q view changes that   persist, send pre-prepare naming our
                                    claim no more than our certificate         certificate's view; judge x if unbound
    pre-prepare(v, x)               first in v, justified, names none          ask the caller to judge x
    pre-prepare(v, x)               first in v, justified, names c >= 0        persist, send prepare
    pre-prepare(v, x)               not justified                              fetch what lacks from the primary
    approve(v)                      x was asked about, no vote in v yet        persist, send prepare
    prepares(v, d) reach q          x with digest d is known                   certificate = (v, x): persist, send commit
    prepares(p, d) reach q, p < v   x is known, certificate older than p       certificate = (p, x)
    commits(w, d) reach q, any w    x is known                                 decided
    commits(w, d) reach q, any w    x is not known                             fetch it
    suspect(down)                   v has begun                                v += 1 (skipping primaries that are down):
                                                                               persist, send view change
    view changes above v            by f + 1 members                           v = the (f + 1)-th highest: likewise
    view changes to v or above      by q members                               v has begun; its primary may propose
    view change claiming p          we lead v; p above our certificate         fetch the certificate from who claims it
    decided                         the votes are a quorum's                   decided

Why two honest members never decide differently. Let x be decided by q commits in view w. Their honest authors had a
certificate (w, x) on disk while they were in w. Two certificates of one view share an honest member, which votes once in
a view: the one of w is for x alone. Now take the first view u > w with a certificate for another value. An honest member
prepared it, so its pre-prepare was justified there: by view changes to u or beyond of q members, one of whom, h, is
honest and among those that committed in w. h never commits in a view older than its own, so its view change, to a view
above w, came after its certificate (w, x) and claims w or newer; therefore w <= c < u. Certificates of views from w to
u - 1 are all for x, so the one of c is, and so is the value proposed in u. Contradiction. What makes it true after a
crash: promise, vote, proposal and certificate are on disk before they are sent, and read before anything is said.

Why it ends. Once messages arrive in time and patience is long enough, the honest members come to the same view: f + 1
ahead draw the rest along, and nobody goes further than one view alone, because `suspect` does nothing until q members
have come (`view` counts from then, so a driver's patience does, too). When an honest primary's turn comes it has the
view changes of all honest members; the newest certificate that they claim exists, and whoever claims it passes it on.
A liar's claim without a certificate is left aside: the honest are q without it. The primary then passes on to each
member what that one lacks for the proof. Whoever lacks something asks again when it hears the same message again
(`repeat`), and everything is answered once to each member between two of our own repetitions.

Memory: what `pbft_book` says, two view changes of each member, and one piece of evidence for each member and message.
"""

from collections.abc import Sequence

from barnraise.consensus import quorum
from barnraise.consensus.agreement import (
    MAX_VALUE_BYTES,
    Ballot,
    Broadcast,
    Decided,
    Decision,
    Effect,
    Judge,
    Scope,
    Sign,
    Verify,
)
from barnraise.consensus.pbft_book import Book, Page
from barnraise.consensus.pbft_enquiries import Enquiries
from barnraise.consensus.pbft_messages import Commit, Evidence, Fetch, PbftRecord, Prepare, PrePrepare, ViewChange, Vote
from barnraise.consensus.pbft_seals import Seals, holds
from barnraise.consensus.pbft_views import Views
from barnraise.consensus.pbft_words import Words
from barnraise.errors import LocalError, PeerError
from barnraise.ids import DIGEST_BYTES, PeerId
from barnraise.swarm.records import digest


class Pbft:
    """One height of the log, as one member sees it."""

    def __init__(
        self,
        scope: Scope,
        members: Sequence[PeerId],
        me: PeerId,
        *,
        sign: Sign,
        verify: Verify,
        record: PbftRecord | None = None,
    ) -> None:
        """Begin to decide.

        Args:
            scope: Which height.
            members: Who votes, in order of seniority.
            me: This member; may be an onlooker that is none of them.
            sign: With this member's keys.
            verify: A member's signature.
            record: What this member had persisted at this height.
        """
        self.decision: Decision | None = None
        self._scope = scope
        self._members = tuple(members)
        self._me = me
        self._verify = verify
        self._places = {member: place for place, member in enumerate(self._members)}
        self._is_member = me in self._places
        self._quorum = quorum.quorum(len(self._members))
        self._seals = Seals(scope, me, sign, verify)
        self._views = Views(self._quorum, quorum.num_faulty(len(self._members)))
        self._book = Book()
        self._asked = -1
        """The newest view whose value was judged, or is being judged."""
        self._words = Words.restored(me, record) if record else Words(me=me, height=scope.height)
        self._enquiries = Enquiries(self._places, me, self._book, self._views, self._words)
        if record:
            self._restore(self._words)

    # ---- what the driver asks ---------------------------------------------------------------------------------

    @property
    def view(self) -> int:
        """Return our newest view that a quorum has come to: patience with its primary begins there."""
        return self._views.begun

    @property
    def leader(self) -> PeerId:
        """Return the primary of our view, begun or not."""
        return self._members[self._views.ours % len(self._members)]

    @property
    def may_propose(self) -> bool:
        """Tell whether this member leads, has not proposed yet, and can show that its proposal is justified."""
        views = self._views
        if self._asked == views.ours or self.decision or self.leader != self._me or views.begun != views.ours:
            return False
        return views.ours == 0 or self._words.proposal is not None or views.are_enough(self._words.prepared_view)

    @property
    def bound_value(self) -> bytes:
        """Return the value that this view's leader must propose; empty: its own."""
        bound = self._words.own_proposal or self._words.prepared
        return bound.value if bound else b""

    @property
    def evidence(self) -> list[Evidence]:
        """Return what proves that members lie: one piece for each member and kind of message."""
        return self._seals.evidence

    @property
    def num_held(self) -> int:
        """Return how many messages are kept, ours among them."""
        return self._book.num_held + len(self._views)

    def propose(self, value: bytes) -> list[Effect]:
        """Propose, where `may_propose`; a bound value takes the place of ours.

        Raises:
            LocalError: the value is larger than `MAX_VALUE_BYTES`.
        """
        if not self.may_propose:
            return []
        value = self.bound_value or value
        if len(value) > MAX_VALUE_BYTES:
            raise LocalError(f"a value of {len(value)} bytes was to be proposed; {MAX_VALUE_BYTES} are the most")
        name, ours, words = digest(value), self._views.ours, self._words
        effects: list[Effect] = []
        if words.proposal is None:  # otherwise a crash came between our word and our vote: we say the same once more
            words.proposal = self._seals.proposal(ours, value, name, words.prepared_view)
            self._book.own(ours).propose(name, words.proposal)
            self._book.pinned = words.certificates
            effects = [words.persist()]
        return [*effects, Broadcast(message=words.proposal), *self._put(name, words.proposal)]

    def approve(self, view: int) -> list[Effect]:
        """Vote for the value proposed in ``view``, unless a newer view came meanwhile."""
        if self.decision or not view == self._views.ours == self._asked:
            return []
        page = self._book.own(view)
        return self._cast(page.name, page.proposals[page.name])

    def suspect(self, down: frozenset[PeerId] = frozenset()) -> list[Effect]:
        """Give up the primary for the next one that is not known to be down; nothing while our view has not begun."""
        views = self._views
        if self.decision or not self._is_member or views.begun != views.ours:
            return []
        view = views.ours + 1
        while self._members[view % len(self._members)] in down and view < views.ours + len(self._members):
            view += 1
        return self._enter(view)

    def repeat(self) -> list[Ballot]:
        """Return what this member said last, four messages at most; from now on it answers everything once more."""
        self._enquiries.again()
        if not self.decision:
            return self._words.of_view(self._views.ours)
        told, commit = self._enquiries.told(self.decision), self._words.commit
        return [told] if told.votes or commit is None else [told, commit]

    # ---- what members say -------------------------------------------------------------------------------------

    def receive(self, sender: PeerId, message: Ballot) -> list[Effect]:
        """Take in a message of this height.

        Raises:
            PeerError: it cannot come from an honest member; nothing changed.
        """
        if message.height != self._scope.height:
            return []
        if isinstance(message, Decided):
            return [] if self.decision else self._on_decided(sender, message)
        if sender not in self._places:
            raise PeerError(sender, f"speaks at height {message.height} and is none of the {len(self._places)} members")
        if self.decision:
            return self._on_late(sender, message, self.decision)
        match message:
            case Prepare() | Commit():
                return self._on_vote(sender, message)
            case PrePrepare():
                return self._on_pre_prepare(sender, message)
            case ViewChange():
                return self._on_change(sender, message)
            case Fetch():
                return self._on_fetch(sender, message)
        raise PeerError(sender, f"speaks another protocol than pbft: {type(message).__name__}")

    def _on_vote(self, sender: PeerId, vote: Vote) -> list[Effect]:
        if vote.member not in self._places or len(vote.value) != DIGEST_BYTES:
            raise PeerError(sender, f"passes on a vote by {vote.member!r}, no member, or for no digest: {vote.value!r}")
        page = self._book.page(vote.view, vote.value)
        if page is None:
            return []
        poll = page.prepares if type(vote) is Prepare else page.commits
        votes = poll.of(vote.value)
        if vote.member in votes:
            return self._counted(sender, vote, len(votes)) if type(vote) is Commit else []
        first = poll.first.get(vote.member)
        if first is None:
            self._seals.check_vote(sender, vote)
            return self._counted(sender, vote, poll.add(vote))
        is_sought = self._book.is_sought(vote.view, vote.value)
        if not is_sought and self._seals.is_caught(vote):
            return []
        self._seals.check_vote(sender, vote)
        self._seals.catch(first, vote)
        return self._counted(sender, vote, poll.add(vote)) if is_sought else []

    def _on_pre_prepare(self, sender: PeerId, message: PrePrepare) -> list[Effect]:
        if message.member != quorum.leader(self._members, message.view) or message.prepared_view >= message.view:
            what = f"view {message.view} by {message.member}, bound by view {message.prepared_view}"
            raise PeerError(sender, f"passes on a pre-prepare that cannot be: {what}")
        if len(message.value) > MAX_VALUE_BYTES:
            raise PeerError(sender, f"proposes {len(message.value)} bytes; {MAX_VALUE_BYTES} are the most")
        name = digest(message.value)
        page = self._book.page(message.view, name)
        if page is None or (name not in page.proposals and not self._note_proposal(sender, page, name, message)):
            return []
        effects = self._recounted(message.view, name, page)
        return effects if self.decision else effects + self._consider(ask=message.view == self._views.ours)

    def _note_proposal(self, sender: PeerId, page: Page, name: bytes, message: PrePrepare) -> bool:
        """Note a proposal that is the first of its view, or sought; tell whether it is."""
        is_wanted = not page.name or self._book.is_sought(message.view, name)
        if is_wanted or not self._seals.is_caught(message):
            self._seals.check(sender, message, name)
            if page.name:
                self._seals.catch(page.proposals[page.name], message, page.name, name)
        if is_wanted:
            page.propose(name, message)
        return is_wanted

    def _on_change(self, sender: PeerId, change: ViewChange) -> list[Effect]:
        length = 0 if change.prepared_view < 0 else DIGEST_BYTES
        if change.member not in self._places or len(change.prepared) != length:
            raise PeerError(sender, f"passes on a view change by {change.member!r}, no member, or claiming no digest")
        if change.prepared_view >= change.view or change.view == 0:
            what = f"to view {change.view} with a certificate of view {change.prepared_view}"
            raise PeerError(sender, f"passes on a view change that cannot be: {what}")
        views, newest = self._views, self._views.newest(change.member)
        is_lower = views.is_lower(change)
        is_another = newest is not None and newest.view == change.view and newest.claim != change.claim
        if not (is_lower or views.is_newer(change) or (is_another and not self._seals.is_caught(change))):
            return self._fetch_certificate(change, again=True)
        self._seals.check(sender, change)
        if newest is not None and is_another:
            self._seals.catch(newest, change)
        views.add(change)
        if views.pull > views.ours:
            return self._enter(views.pull)
        if views.can_begin:
            return self._begin()
        return self._fetch_certificate(change) + self._consider() if is_lower else []

    def _on_fetch(self, sender: PeerId, wanted: Fetch) -> list[Effect]:
        return self._enquiries.answer(sender, wanted, self.decision)

    def _on_decided(self, sender: PeerId, message: Decided) -> list[Effect]:
        if len(message.votes) > len(self._members) or len(message.value) > MAX_VALUE_BYTES:
            raise PeerError(sender, f"tells a decision of {len(message.value)} bytes with {len(message.votes)} votes")
        if not message.votes:
            return self._on_hint(sender, message)
        decision = Decision(value=message.value, view=message.view, votes=message.votes)
        if not holds(decision, self._scope, self._members, self._verify):
            raise PeerError(sender, f"tells a decision in view {message.view} whose votes are not a quorum's")
        self.decision = decision
        return [decision]

    def _on_hint(self, sender: PeerId, message: Decided) -> list[Effect]:
        """Somebody knows a decision whose votes are too many for one message: they come one by one."""
        if sender not in self._places:
            return []
        name = digest(message.value)
        page = self._book.peek(message.view)
        if page is not None and len(page.commits.of(name)) >= self._quorum:
            return self._decide(message.view, name, message.value, page)
        return self._enquiries.seek(sender, "commits", message.view, name)

    def _on_late(self, sender: PeerId, message: Ballot, decision: Decision) -> list[Effect]:
        """Help a member that does not know what is decided."""
        if isinstance(message, Fetch):
            return self._on_fetch(sender, message)
        return self._enquiries.tell(sender, decision) if isinstance(message, ViewChange) else []

    # ---- what follows -----------------------------------------------------------------------------------------

    def _counted(self, sender: PeerId, vote: Vote, num_votes: int) -> list[Effect]:
        """Do what a vote allows; ``num_votes`` are for its value."""
        if num_votes < self._quorum:
            return []
        if type(vote) is Prepare:
            return self._on_certificate(vote.view, vote.value)
        value = self._book.value(vote.value)
        if value is None:
            return self._enquiries.seek(sender, "value", vote.view, vote.value)
        return self._decide(vote.view, vote.value, value, self._book.own(vote.view))

    def _recounted(self, view: int, name: bytes, page: Page) -> list[Effect]:
        """Do what votes allow whose value was not known."""
        if len(page.commits.of(name)) >= self._quorum:
            return self._decide(view, name, page.proposals[name].value, page)
        return self._on_certificate(view, name) if len(page.prepares.of(name)) >= self._quorum else []

    def _on_certificate(self, view: int, name: bytes) -> list[Effect]:
        words, proposal = self._words, self._book.proposal(view, name)
        effects: list[Effect] = []
        if proposal is not None and words.prepared_view < view <= self._views.ours:
            words.certify(proposal, name, self._book.own(view).prepares.of(name), self._quorum)
            self._book.pinned = words.certificates
            if view == self._views.ours and self._is_member:
                words.commit = self._seals.vote(Commit, view, name)
                effects = [words.persist(), Broadcast(message=words.commit), *self._add(words.commit)]
        return effects if self.decision else effects + self._consider()

    def _decide(self, view: int, name: bytes, value: bytes, page: Page) -> list[Effect]:
        signed = sorted((vote.member, vote.signature) for vote in page.commits.of(name).values())
        self.decision = Decision(value=value, view=view, votes=tuple(signed[: self._quorum]))
        return [self.decision]

    def _consider(self, *, ask: bool = False) -> list[Effect]:
        """Vote for our view's proposal, or have it judged, if it is justified; ``ask`` for what lacks."""
        view = self._views.ours
        page = self._book.peek(view)
        if self._asked == view or page is None or not page.name or not self._is_member:
            return []
        proposal = page.proposals[page.name]
        if view > 0 and not self._is_justified(proposal, page.name):
            return self._enquiries.seek_proof(proposal, page.name) if ask else []
        return self._put(page.name, proposal)

    def _is_justified(self, proposal: PrePrepare, name: bytes) -> bool:
        bound = proposal.prepared_view
        return self._views.are_enough(bound) and (bound < 0 or self._book.num_prepares(bound, name) >= self._quorum)

    def _put(self, name: bytes, proposal: PrePrepare) -> list[Effect]:
        self._asked = proposal.view
        if proposal.prepared_view >= 0:
            return self._cast(name, proposal)
        return [Judge(view=proposal.view, value=proposal.value)]

    def _cast(self, name: bytes, proposal: PrePrepare) -> list[Effect]:
        words, view = self._words, proposal.view
        if words.has_voted(view):
            return []
        words.proposal, words.vote = proposal, self._seals.vote(Prepare, view, name)
        return [words.persist(), Broadcast(message=words.vote), *self._add(words.vote)]

    def _add(self, vote: Vote) -> list[Effect]:
        """Count our own vote."""
        page = self._book.own(vote.view)
        return self._counted(self._me, vote, (page.prepares if type(vote) is Prepare else page.commits).add(vote))

    # ---- views ------------------------------------------------------------------------------------------------

    def _enter(self, view: int) -> list[Effect]:
        """Promise to vote in nothing older than this view, and do what was waiting for it."""
        words = self._words
        words.proposal = None
        self._views.enter(view)
        self._book.pinned = words.certificates
        self._book.turn(view)
        effects: list[Effect] = []
        if self._is_member:
            words.change = self._seals.change(view, words.prepared_view, words.prepared_name)
            self._views.add(words.change)
            effects = [words.persist(), Broadcast(message=words.change)]
        if self._views.can_begin:
            effects += self._begin()
        for name, votes in list(self._book.own(view).prepares.by_value.items()):
            if len(votes) >= self._quorum and not self.decision:
                effects += self._on_certificate(view, name)
        return effects

    def _begin(self) -> list[Effect]:
        """A quorum has come to our view: gather what its primary must know, and look at what it said."""
        self._views.begun = self._views.ours
        effects: list[Effect] = []
        for change in self._views.claims():
            effects += self._fetch_certificate(change)
        return effects + self._consider(ask=True)

    def _fetch_certificate(self, change: ViewChange, *, again: bool = False) -> list[Effect]:
        """Ask for a certificate that is claimed, where we lead and must know it before we propose."""
        view, ours = change.prepared_view, self._views.ours
        if not self._words.prepared_view < view < ours <= change.view or self._asked == ours or self.leader != self._me:
            return []
        is_under_way = self._book.is_sought(view, change.prepared) and not again
        return [] if is_under_way else self._enquiries.seek_certificate(change)

    def _restore(self, words: Words) -> None:
        """Take up what was said before a crash; nothing that follows contradicts it."""
        ours = words.change.view if words.change else 0
        self._views.enter(ours)
        if words.change:
            self._views.add(words.change)
        if words.prepared and words.prepared_view == ours:
            words.commit = self._seals.vote(Commit, ours, words.prepared_name)
        if words.vote and words.vote.view == ours:
            self._asked = ours
        if words.proposal or words.commit or self._views.can_begin:
            self._views.begun = ours
        self._book.restore(words, ours)
