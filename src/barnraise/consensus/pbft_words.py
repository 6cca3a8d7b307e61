"""What a member of `pbft` has said itself and must not contradict, which is what goes to disk; it decides nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

from barnraise.consensus.agreement import Ballot, Persist
from barnraise.consensus.pbft_messages import Commit, PbftRecord, Prepare, PrePrepare, ViewChange, Vote
from barnraise.swarm.records import digest


@dataclass(kw_only=True, slots=True)
class Words:
    """Our newest message of each kind, and the certificate behind our newest commit."""

    me: str
    height: int
    change: ViewChange | None = None
    proposal: PrePrepare | None = None
    """Of our view: what we proposed, or voted for."""
    vote: Prepare | None = None
    commit: Commit | None = None
    prepared: PrePrepare | None = None
    """The proposal of our newest certificate, ..."""
    prepared_view: int = -1
    prepared_name: bytes = b""
    """... its view, the digest of its value, ..."""
    prepares: tuple[tuple[str, bytes], ...] = ()
    """... and its votes."""

    def certify(self, proposal: PrePrepare, name: bytes, prepares: Mapping[str, Vote], quorum: int) -> None:
        """Take a proposal, whose value has this digest, for our newest certificate."""
        self.prepared, self.prepared_view, self.prepared_name = proposal, proposal.view, name
        self.prepares = tuple((member, vote.signature) for member, vote in prepares.items())[:quorum]

    def certificate(self) -> list[Prepare]:
        """Return the votes of our newest certificate as their authors sent them."""
        return [
            Prepare(
                height=self.height,
                view=self.prepared_view,
                member=member,
                value=self.prepared_name,
                signature=signature,
            )
            for member, signature in self.prepares
        ]

    def has_voted(self, view: int) -> bool:
        """Tell whether nothing is left to vote for in a view."""
        return view <= self.prepared_view or (self.vote is not None and view <= self.vote.view)

    @property
    def own_proposal(self) -> PrePrepare | None:
        """Return what we proposed in our view ourselves."""
        return self.proposal if self.proposal is not None and self.proposal.member == self.me else None

    @property
    def certificates(self) -> set[tuple[int, bytes]]:
        """Return the views and values of our certificate, and of the one that binds our proposal."""
        named = {(self.prepared_view, self.prepared_name)} if self.prepared else set()
        if self.proposal is not None and self.proposal.prepared_view >= 0:
            named.add((self.proposal.prepared_view, digest(self.proposal.value)))
        return named

    def of_view(self, view: int) -> list[Ballot]:
        """Return what we said in this view, and that we came to it."""
        said: list[Ballot] = [message for message in (self.change, self.own_proposal) if message]
        return said + [vote for vote in (self.vote, self.commit) if vote and vote.view == view]

    def persist(self) -> Persist:
        """Return the effect that puts all this on disk."""
        return Persist(
            record=PbftRecord(
                height=self.height,
                change=self.change,
                proposal=self.proposal,
                vote=self.vote,
                prepared=self.prepared,
                prepares=self.prepares,
            )
        )

    @staticmethod
    def restored(me: str, record: PbftRecord) -> "Words":
        """Return what was said before a crash; our commit is for the caller to sign again."""
        words = Words(
            me=me,
            height=record.height,
            change=record.change,
            proposal=record.proposal,
            vote=record.vote,
            prepared=record.prepared,
            prepares=record.prepares,
        )
        if record.prepared:
            words.prepared_view, words.prepared_name = record.prepared.view, digest(record.prepared.value)
        return words
