"""Raft as a kind of agreement, for one owner's machines: who leads, how many are enough, what a decision proves itself by."""

from collections.abc import Collection, Sequence
from typing import Final

from barnraise.consensus import seniority
from barnraise.consensus.agreement import Decision, Record, Scope, Sign, Verify
from barnraise.consensus.raft import Raft, is_certified
from barnraise.consensus.raft_messages import RaftRecord
from barnraise.consensus.seniority import is_quorum
from barnraise.ids import PeerId


class RaftKind:
    """Machines that crash and do not lie."""

    name = "raft"
    min_members = 1
    trusts_members = True

    def committee(self, members: Sequence[PeerId], limit: int) -> tuple[PeerId, ...]:
        """Return all members: one owner's machines are few."""
        return tuple(members)

    def is_quorum(self, members: Sequence[PeerId], present: Collection[PeerId]) -> bool:
        """Tell whether ``present`` may act for ``members``: see `seniority`."""
        return is_quorum(members, present)

    def num_witnesses(self, members: Sequence[PeerId]) -> int:
        """Return 1: nobody lies."""
        return 1

    def explain(self, members: Sequence[PeerId], present: Collection[PeerId]) -> str:
        """Say in plain words why those present are not a quorum."""
        return seniority.explain(members, present)

    def is_cut(self, counting: Sequence[PeerId], able: Sequence[PeerId], contributors: Collection[PeerId]) -> bool:
        """Tell whether these may make up a round's aggregate: a quorum of those that are not known to be down."""
        return is_quorum(able, contributors)

    def holds(self, decision: Decision, scope: Scope, members: Sequence[PeerId], verify: Verify) -> bool:
        """Tell whether a decision's votes are a quorum's acknowledgements."""
        return is_certified(decision, scope, members, verify)

    def open(
        self,
        scope: Scope,
        members: Sequence[PeerId],
        me: PeerId,
        *,
        sign: Sign,
        verify: Verify,
        record: Record | None = None,
    ) -> Raft:
        """Begin to decide a height, in the term that ``record`` leaves us in."""
        known = record if isinstance(record, RaftRecord) else None
        return Raft(scope, members, me, sign=sign, verify=verify, record=known)


RAFT: Final = RaftKind()
