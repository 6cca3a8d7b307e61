"""Deliberate defects of PBFT, each a rule left out, by which trials of agreement show that they would notice it.

Every one of them is a mistake that somebody could make. Nothing here is ever used by a run.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from barnraise.consensus.agreement import Ballot, Decision, Effect, Judge, Persist, Record, Scope, Sign, Verify
from barnraise.consensus.pbft import Pbft
from barnraise.consensus.pbft_kind import PbftKind
from barnraise.consensus.pbft_messages import Fetch, PbftRecord, Prepare, PrePrepare, ViewChange, Vote
from barnraise.consensus.pbft_seals import Seals
from barnraise.consensus.pbft_views import Views
from barnraise.consensus.pbft_words import Words
from barnraise.ids import Digest, PeerId
from barnraise.swarm.records import digest


class SmallQuorum(Pbft):
    """2f members are a quorum."""

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
        """Begin to decide."""
        super().__init__(scope, members, me, sign=sign, verify=verify, record=record)
        self._quorum -= 1
        self._views._quorum -= 1


class ForgetsItsCertificate(Pbft):
    """A view change claims nothing."""

    def _enter(self, view: int) -> list[Effect]:
        self._words.prepared, self._words.prepared_view, self._words.prepared_name = None, -1, b""
        return super()._enter(view)


class VotesTwice(Pbft):
    """It votes for every value that the primary proposes in a view."""

    def _on_pre_prepare(self, sender: PeerId, message: PrePrepare) -> list[Effect]:
        effects = super()._on_pre_prepare(sender, message)
        page, name = self._book.peek(message.view), digest(message.value)
        if self.decision or page is None or page.name in (b"", name) or message.view != self._views.ours:
            return effects
        self._seals.check(sender, message, name)
        page.proposals[name], page.name = message, name
        self._words.vote = None
        return [*effects, Judge(view=message.view, value=message.value)]


class CountsRepetitions(Pbft):
    """A vote counts whenever it arrives."""

    _arrived: Counter[tuple[type[Vote], int, bytes]]

    def _on_vote(self, sender: PeerId, vote: Vote) -> list[Effect]:
        effects = super()._on_vote(sender, vote)
        if not hasattr(self, "_arrived"):
            self._arrived = Counter()
        self._arrived[type(vote), vote.view, vote.value] += 1
        arrived = self._arrived[type(vote), vote.view, vote.value]
        return effects or ([] if self.decision else self._counted(sender, vote, arrived))


class SpeaksBeforeItIsOnDisk(Pbft):
    """A vote is sent, and then persisted."""

    def _cast(self, name: bytes, proposal: PrePrepare) -> list[Effect]:
        effects = super()._cast(name, proposal)
        return [*effects[1:], effects[0]] if effects and isinstance(effects[0], Persist) else effects


class TakesAnyNewView(Pbft):
    """A proposal of a later view needs no view changes and no certificate."""

    def _is_justified(self, proposal: PrePrepare, name: bytes) -> bool:
        return True


class BelievesInCertificates(Pbft):
    """That a proposal names a certificate is enough: nobody looks for its votes."""

    def _is_justified(self, proposal: PrePrepare, name: bytes) -> bool:
        return self._views.are_enough(proposal.prepared_view)


class _CarelessViews(Views):
    def are_enough(self, prepared_view: int) -> bool:
        return len(self._promises) >= self._quorum


class IgnoresTheHighestClaim(Pbft):
    """Any certificate will do in a new view, and none, too, whatever newer ones are claimed."""

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
        """Begin to decide."""
        super().__init__(scope, members, me, sign=sign, verify=verify, record=record)
        self._views.__class__ = _CarelessViews


class CommitsUnprepared(Pbft):
    """One prepare is a certificate."""

    def _counted(self, sender: PeerId, vote: Vote, num_votes: int) -> list[Effect]:
        return super()._counted(sender, vote, self._quorum if type(vote) is Prepare else num_votes)


class CommitsInOldViews(Pbft):
    """A certificate of a view that was given up is voted for as if it had not been."""

    def _on_certificate(self, view: int, name: bytes) -> list[Effect]:
        ours = self._views.ours
        self._views.ours = min(view, ours)
        effects = super()._on_certificate(view, name)
        self._views.ours = max(ours, self._views.ours)
        return effects


class _BlindSeals(Seals):
    def check_vote(self, sender: PeerId, vote: Vote) -> None:
        return

    def check(self, sender: PeerId, message: PrePrepare | ViewChange, name: bytes = b"") -> None:
        return


class ChecksNoSignature(Pbft):
    """Whoever a message names has said it."""

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
        """Begin to decide."""
        super().__init__(scope, members, me, sign=sign, verify=verify, record=record)
        self._seals.__class__ = _BlindSeals


class ProposesAgainAfterACrash(Pbft):
    """A primary that comes back knows nothing of what it proposed."""

    def _restore(self, words: Words) -> None:
        if words.vote is None or words.proposal is None or words.vote.view != words.proposal.view:
            words.proposal = None
        super()._restore(words)


class JudgesNothing(Pbft):
    """It votes for values without having found them valid."""

    def _put(self, name: bytes, proposal: PrePrepare) -> list[Effect]:
        self._asked = proposal.view
        return self._cast(name, proposal)


class AnswersNobody(Pbft):
    """What others lack, they do not get."""

    def receive(self, sender: PeerId, message: Ballot) -> list[Effect]:
        """Take in a message of this height."""
        return [] if isinstance(message, Fetch) else super().receive(sender, message)


class KeepsEverything(Pbft):
    """Whatever it hears of any view stays."""

    def _on_vote(self, sender: PeerId, vote: Vote) -> list[Effect]:
        self._book.pinned.add((vote.view, vote.value))
        self._book.own(vote.view)
        return super()._on_vote(sender, vote)


class Viewless(Scope):
    """What a vote signs does not say in which view."""

    def statement(self, view: int, value: Digest) -> bytes:
        """Return what is signed."""
        return super().statement(0, value)


class Defective(PbftKind):
    """PBFT with another machine."""

    def __init__(self, machine: type[Pbft]) -> None:
        """Take the machine."""
        self._machine = machine

    def open(
        self,
        scope: Scope,
        members: Sequence[PeerId],
        me: PeerId,
        *,
        sign: Sign,
        verify: Verify,
        record: Record | None = None,
    ) -> Pbft:
        """Begin to decide a height."""
        ours = record if isinstance(record, PbftRecord) and record.height == scope.height else None
        return self._machine(scope, members, me, sign=sign, verify=verify, record=ours)


class _WithoutViews(Defective):
    def open(
        self,
        scope: Scope,
        members: Sequence[PeerId],
        me: PeerId,
        *,
        sign: Sign,
        verify: Verify,
        record: Record | None = None,
    ) -> Pbft:
        viewless = Viewless(run=scope.run, epoch=scope.epoch, height=scope.height)
        return super().open(viewless, members, me, sign=sign, verify=verify, record=record)

    def holds(self, decision: Decision, scope: Scope, members: Sequence[PeerId], verify: Verify) -> bool:
        viewless = Viewless(run=scope.run, epoch=scope.epoch, height=scope.height)
        return super().holds(decision, viewless, members, verify)


class _WithoutDisk(Defective):
    """The disk is not read."""

    def open(
        self,
        scope: Scope,
        members: Sequence[PeerId],
        me: PeerId,
        *,
        sign: Sign,
        verify: Verify,
        record: Record | None = None,
    ) -> Pbft:
        return super().open(scope, members, me, sign=sign, verify=verify)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutant:
    """One defect."""

    says: str
    kind: PbftKind


def _mutant(machine: type[Pbft]) -> Mutant:
    assert machine.__doc__ is not None
    return Mutant(says=machine.__doc__, kind=Defective(machine))


MUTANTS: Final = {
    "small-quorum": _mutant(SmallQuorum),
    "forgotten-certificate": _mutant(ForgetsItsCertificate),
    "no-view-in-the-vote": Mutant(says=Viewless.__doc__ or "", kind=_WithoutViews(Pbft)),
    "votes-twice": _mutant(VotesTwice),
    "counts-repetitions": _mutant(CountsRepetitions),
    "unsynced-vote": _mutant(SpeaksBeforeItIsOnDisk),
    "unjustified-new-view": _mutant(TakesAnyNewView),
    "believed-certificate": _mutant(BelievesInCertificates),
    "ignored-claim": _mutant(IgnoresTheHighestClaim),
    "unprepared-commit": _mutant(CommitsUnprepared),
    "commit-in-an-old-view": _mutant(CommitsInOldViews),
    "unchecked-signature": _mutant(ChecksNoSignature),
    "disk-not-read": Mutant(says=_WithoutDisk.__doc__ or "", kind=_WithoutDisk(Pbft)),
    "second-proposal": _mutant(ProposesAgainAfterACrash),
    "unjudged-value": _mutant(JudgesNothing),
    "unanswered-question": _mutant(AnswersNobody),
    "unbounded-memory": _mutant(KeepsEverything),
}
"""By name, as `barnraise simulate --mutant` takes them."""
