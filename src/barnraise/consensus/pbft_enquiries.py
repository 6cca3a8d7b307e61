"""What a member of `pbft` asks others to pass on, and what it passes on to them; it takes in nothing and votes on nothing.

Asking is always about a message that was just heard and is of no use by itself; so that message, said again, asks again.
"""

import functools
import operator
from collections.abc import Collection, Mapping
from typing import Final, Literal, assert_never

from barnraise.consensus import quorum
from barnraise.consensus.agreement import Ballot, Decided, Decision, Effect, Send
from barnraise.consensus.pbft_book import Book
from barnraise.consensus.pbft_messages import MAX_DECIDED_BYTES, Commit, Fetch, PrePrepare, Signed, ViewChange
from barnraise.consensus.pbft_views import Views
from barnraise.consensus.pbft_words import Words
from barnraise.ids import PeerId

What = Literal["changes", "prepares", "commits", "value"]

VOTE_FRAME_BYTES: Final = 72
"""Name and frame of a vote in `Decided`, besides the signature."""


class Enquiries:
    """Questions and answers of one member at one height, over what it has heard and said."""

    def __init__(self, members: Mapping[PeerId, int], me: PeerId, book: Book, views: Views, words: Words) -> None:
        """Look things up in these; ``members`` have their places in order of seniority."""
        self._places = members
        self._me = me
        self._quorum = quorum.quorum(len(members))
        self._book = book
        self._views = views
        self._words = words
        self._answered: set[tuple[PeerId, str, int, bytes]] = set()

    def again(self) -> None:
        """Answer everything once more from now on."""
        self._answered.clear()

    def seek(self, member: PeerId, what: What, view: int, name: bytes) -> list[Effect]:
        """Ask for what concerns one value in one view, and keep it when it comes."""
        if member == self._me or self._me not in self._places:
            return []
        self._book.seek(member, view, name)
        return [self._fetch(member, what, view, name, self._kept(what, view, name, None))]

    def seek_certificate(self, change: ViewChange) -> list[Effect]:
        """Ask for the certificate that a member claims."""
        member, view, name = PeerId(change.member), change.prepared_view, change.prepared
        asked = self.seek(member, "prepares", view, name)
        return asked if self._book.proposal(view, name) else asked + self.seek(member, "value", view, name)

    def seek_proof(self, proposal: PrePrepare, name: bytes) -> list[Effect]:
        """Ask a primary for what justifies its proposal."""
        primary, bound = PeerId(proposal.member), proposal.prepared_view
        effects: list[Effect] = []
        if primary != self._me and not self._views.are_enough(bound):
            effects = [self._fetch(primary, "changes", proposal.view, b"", self._views.justifying(bound))]
        if bound >= 0 and self._book.num_prepares(bound, name) < self._quorum:
            effects += self.seek(primary, "prepares", bound, name)
        return effects

    def answer(self, sender: PeerId, wanted: Fetch, decision: Decision | None) -> list[Effect]:
        """Pass on what a member lacks for a quorum, once between two of our repetitions."""
        key = sender, wanted.what, wanted.view, wanted.value
        if key in self._answered:
            return []
        has = int.from_bytes(wanted.held, "little")
        kept = self._kept(wanted.what, wanted.view, wanted.value, decision).items()
        lacking = [message for member, message in kept if not has >> self._places[PeerId(member)] & 1]
        found: list[Ballot] = list(lacking[: max(0, self._quorum - has.bit_count())])
        if found:
            self._answered.add(key)
            if decision is not None and wanted.what == "commits":
                found.append(self.told(decision))
        return [Send(to=sender, message=message) for message in found]

    def tell(self, sender: PeerId, decision: Decision) -> list[Effect]:
        """Tell a member what is decided, once between two of our repetitions."""
        key = sender, "decided", decision.view, b""
        if key in self._answered:
            return []
        self._answered.add(key)
        return [Send(to=sender, message=self.told(decision))]

    def told(self, decision: Decision) -> Decided:
        """Return what tells a decision: with its votes, where they fit in a message."""
        size_bytes = len(decision.value) + sum(VOTE_FRAME_BYTES + len(signature) for _, signature in decision.votes)
        votes = decision.votes if size_bytes <= MAX_DECIDED_BYTES else ()
        return Decided(height=self._words.height, view=decision.view, value=decision.value, votes=votes)

    def _fetch(self, member: PeerId, what: What, view: int, name: bytes, held: Collection[str]) -> Effect:
        places = functools.reduce(operator.or_, (1 << self._places[PeerId(other)] for other in held), 0)
        mask = places.to_bytes(len(self._places) // 8 + 1, "little")
        return Send(to=member, message=Fetch(height=self._words.height, view=view, what=what, value=name, held=mask))

    def _kept(self, what: What, view: int, name: bytes, decision: Decision | None) -> Mapping[str, Signed]:
        """Return the messages at hand about one value in one view, by member."""
        page = self._book.peek(view)
        match what:
            case "changes":
                proposal = self._words.own_proposal
                is_ours = proposal is not None and proposal.view == view
                return self._views.justifying(proposal.prepared_view) if proposal and is_ours else {}
            case "prepares":
                return page.prepares.of(name) if page else {}
            case "commits":
                if decision is not None:
                    return self._decisive(decision) if (view, name) == (decision.view, decision.digest) else {}
                return page.commits.of(name) if page else {}
            case "value":
                proposal = self._book.proposal(view, name)
                return {proposal.member: proposal} if proposal else {}
            case _:
                assert_never(what)

    def _decisive(self, decision: Decision) -> Mapping[str, Commit]:
        """Return the votes of a decision, one by one."""
        return {
            member: Commit(
                height=self._words.height,
                view=decision.view,
                member=member,
                value=decision.digest,
                signature=signature,
            )
            for member, signature in decision.votes
        }
