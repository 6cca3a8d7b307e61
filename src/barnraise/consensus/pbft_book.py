"""What a member of `pbft` has heard, a page for each view, and no more than it may need; it judges nothing.

A page is open for the views from `VIEWS_BEHIND` before ours to `VIEWS_AHEAD` after it. Of any other view only what is
*sought* is kept: messages about the one value that another member has made us ask it about, one view and value for each
member. A page holds a member's first prepare and first commit, the first proposal, and what is sought in it.

So with n members, whatever they send, there are VIEWS_BEHIND + VIEWS_AHEAD + 1 pages of 2n votes and a proposal; two
that certificates are read from; and for each member that lies one page of a view far away. In that one only votes that
were really cast can be: by the quorum whose certificate it was, or by liars alone.
"""

from collections.abc import Mapping
from typing import Final

from barnraise.consensus.pbft_messages import PrePrepare, Vote
from barnraise.consensus.pbft_words import Words
from barnraise.ids import PeerId
from barnraise.swarm.records import digest

VIEWS_BEHIND: Final = 3
"""Votes that come late may still decide, or prove what a new view needs."""
VIEWS_AHEAD: Final = 3
"""Others may have gone ahead; what they say now they need not say again."""

_NOTHING: Final[Mapping[str, Vote]] = {}


class Poll:
    """The prepares, or the commits, of one view."""

    __slots__ = ("by_value", "first")

    def __init__(self) -> None:
        self.first: dict[str, Vote] = {}
        """Each member's first: who says two things lies."""
        self.by_value: dict[bytes, dict[str, Vote]] = {}

    def of(self, name: bytes) -> Mapping[str, Vote]:
        """Return the votes for the value with this digest, by member."""
        return self.by_value.get(name, _NOTHING)

    def add(self, vote: Vote) -> int:
        """Count a vote; return how many its value has."""
        self.first.setdefault(vote.member, vote)
        votes = self.by_value.setdefault(vote.value, {})
        votes[vote.member] = vote
        return len(votes)

    def drop(self, name: bytes) -> None:
        """Forget the votes for a value by those that voted for another one first."""
        votes = self.by_value.get(name, _NOTHING)
        if left := {member: vote for member, vote in votes.items() if self.first[member] is vote}:
            self.by_value[name] = left
        elif votes:
            del self.by_value[name]


class Page:
    """Everything heard of one view."""

    __slots__ = ("commits", "name", "prepares", "proposals")

    def __init__(self) -> None:
        self.proposals: dict[bytes, PrePrepare] = {}
        """By digest. The first is the one that this member may vote for; another one is here because it was sought."""
        self.name = b""
        """Digest of the first; empty: there is none."""
        self.prepares = Poll()
        self.commits = Poll()

    def propose(self, name: bytes, proposal: PrePrepare) -> None:
        """Note a proposal, whose value has this digest."""
        self.proposals[name] = proposal
        self.name = self.name or name

    def drop(self, name: bytes) -> None:
        """Forget what is here only because this value was sought."""
        self.prepares.drop(name)
        self.commits.drop(name)
        if name != self.name:
            self.proposals.pop(name, None)


class Book:
    """Pages, and what is sought."""

    def __init__(self) -> None:
        """Begin in view 0."""
        self.pinned: set[tuple[int, bytes]] = set()
        """Views and values of the certificates that are in use."""
        self._pages: dict[int, Page] = {}
        self._sought: dict[PeerId, tuple[int, bytes]] = {}
        self._view = 0

    def turn(self, view: int) -> None:
        """Go on to a newer view: nothing is sought any more, and what is too old is forgotten."""
        self._view = view
        sought, self._sought = self._sought, {}
        self._forget(*sought.values())

    def page(self, view: int, name: bytes) -> Page | None:
        """Return where to note something about this value in this view; None where it is of no use."""
        page = self._pages.get(view)
        if not -VIEWS_BEHIND <= view - self._view <= VIEWS_AHEAD and not self.is_sought(view, name):
            return None
        return page or self._pages.setdefault(view, Page())

    def peek(self, view: int) -> Page | None:
        """Return what was heard of a view; None: nothing."""
        return self._pages.get(view)

    def proposal(self, view: int, name: bytes) -> PrePrepare | None:
        """Return the proposal of this value in this view."""
        page = self._pages.get(view)
        return page.proposals.get(name) if page else None

    def num_prepares(self, view: int, name: bytes) -> int:
        """Return how many prepares of this value in this view are here."""
        page = self._pages.get(view)
        return len(page.prepares.of(name)) if page else 0

    def value(self, name: bytes) -> bytes | None:
        """Return the value with this digest, whenever it was proposed."""
        for page in self._pages.values():
            if name in page.proposals:
                return page.proposals[name].value
        return None

    def seek(self, member: PeerId, view: int, name: bytes) -> None:
        """Keep what is said about this value in this view, until something else is sought from this member."""
        before = self._sought.get(member)
        if before != (view, name):
            self._sought[member] = view, name
            self._forget(*([before] if before else []))

    def is_sought(self, view: int, name: bytes) -> bool:
        """Tell whether somebody was asked about this value in this view."""
        return (view, name) in self._sought.values()

    def own(self, view: int) -> Page:
        """Return where to note what we say ourselves."""
        return self._pages.get(view) or self._pages.setdefault(view, Page())

    def restore(self, words: Words, view: int) -> None:
        """Begin in this view, with what a member had said before a crash."""
        self._view = view
        if words.prepared:
            page = self.own(words.prepared_view)
            page.propose(words.prepared_name, words.prepared)
            for vote in words.certificate():
                page.prepares.add(vote)
        if words.proposal:
            self.own(view).propose(digest(words.proposal.value), words.proposal)
        if words.vote and words.vote.view == view:
            self.own(view).prepares.add(words.vote)
        if words.commit:
            self.own(view).commits.add(words.commit)
        self.pinned = words.certificates

    @property
    def num_held(self) -> int:
        """Return how many messages are in it."""
        return sum(
            len(page.proposals)
            + sum(len(votes) for poll in (page.prepares, page.commits) for votes in poll.by_value.values())
            for page in self._pages.values()
        )

    def _forget(self, *unsought: tuple[int, bytes]) -> None:
        in_use = self.pinned.union(self._sought.values())
        for view, name in unsought:
            if view in self._pages and (view, name) not in in_use:
                self._pages[view].drop(name)
        kept = {view for view, _ in in_use}
        kept.update(range(self._view - VIEWS_BEHIND, self._view + VIEWS_AHEAD + 1))
        self._pages = {view: page for view, page in self._pages.items() if view in kept}
