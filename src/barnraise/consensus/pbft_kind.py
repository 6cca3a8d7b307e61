"""PBFT as a kind of agreement, for members of which some may lie: who votes, how many are enough, what a decision proves."""

from collections.abc import Collection, Sequence
from typing import Final

from barnraise.consensus import quorum
from barnraise.consensus.agreement import Decision, Record, Scope, Sign, Verify
from barnraise.consensus.pbft import Pbft
from barnraise.consensus.pbft_messages import PbftRecord
from barnraise.consensus.pbft_seals import holds
from barnraise.ids import PeerId


class PbftKind:
    """PBFT by name: for members of which fewer than a third may lie."""

    name = "pbft"
    min_members = quorum.MIN_MEMBERS
    trusts_members = False

    def committee(self, members: Sequence[PeerId], limit: int = quorum.MAX_COMMITTEE) -> tuple[PeerId, ...]:
        """Return who votes: the most senior members."""
        return quorum.committee(members, limit)

    def is_quorum(self, members: Sequence[PeerId], present: Collection[PeerId]) -> bool:
        """Tell whether ``present`` may act for ``members``: see `quorum`."""
        return quorum.is_quorum(members, present)

    def num_witnesses(self, members: Sequence[PeerId]) -> int:
        """Return f + 1."""
        return quorum.num_faulty(len(members)) + 1

    def explain(self, members: Sequence[PeerId], present: Collection[PeerId]) -> str:
        """Say in plain words why those present are not a quorum."""
        return quorum.explain(members, present)

    def is_cut(self, counting: Sequence[PeerId], able: Sequence[PeerId], contributors: Collection[PeerId]) -> bool:
        """Tell whether these may make up a round's aggregate: a quorum of those that were given samples.

        Who is down is one member's opinion, and a leader that lies would have many members down.
        """
        return quorum.is_quorum(counting, contributors)

    def holds(self, decision: Decision, scope: Scope, members: Sequence[PeerId], verify: Verify) -> bool:
        """Tell whether a decision's votes are the commits of a quorum."""
        return holds(decision, scope, members, verify)

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
        return Pbft(scope, members, me, sign=sign, verify=verify, record=ours)


PBFT: Final = PbftKind()
