"""Signs what a member of `pbft` says, verifies what others say, and keeps what proves that one of them lies."""

from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from barnraise.consensus import quorum
from barnraise.consensus.agreement import Decision, Scope, Sign, Verify
from barnraise.consensus.pbft_messages import (
    Commit,
    Evidence,
    Prepare,
    PrePrepare,
    Signed,
    ViewChange,
    Vote,
    change_statement,
    proposal_statement,
)
from barnraise.errors import PeerError
from barnraise.ids import Digest, PeerId

V = TypeVar("V", Prepare, Commit)

_MAX_STATEMENTS: Final = 64
"""What votes stand over, made once for all members that say the same."""


class Seals:
    """A member's keys, and its knowledge of the others' at one height."""

    def __init__(self, scope: Scope, me: PeerId, sign: Sign, verify: Verify) -> None:
        """Take up the keys."""
        self.evidence: list[Evidence] = []
        self._scope = scope
        self._me = me
        self._sign = sign
        self._verify = verify
        self._caught: set[tuple[str, str]] = set()
        self._statements: dict[tuple[int, bytes], bytes] = {}

    def vote(self, kind: type[V], view: int, name: bytes) -> V:
        """Return our vote for the value with this digest."""
        signature = self._sign(kind.context, self._vote_statement(view, name))
        return kind(height=self._scope.height, view=view, member=self._me, value=name, signature=signature)

    def proposal(self, view: int, value: bytes, name: bytes, prepared_view: int) -> PrePrepare:
        """Return our pre-prepare."""
        unsigned = PrePrepare(
            height=self._scope.height, view=view, member=self._me, value=value, prepared_view=prepared_view
        )
        signature = self._sign(PrePrepare.context, self.statement(unsigned, name))
        return msgspec.structs.replace(unsigned, signature=signature)

    def change(self, view: int, prepared_view: int, prepared: bytes) -> ViewChange:
        """Return our view change."""
        unsigned = ViewChange(
            height=self._scope.height, view=view, member=self._me, prepared_view=prepared_view, prepared=prepared
        )
        return msgspec.structs.replace(unsigned, signature=self._sign(ViewChange.context, self.statement(unsigned)))

    def statement(self, message: Signed, name: bytes = b"") -> bytes:
        """Return what a message signs; ``name`` is the digest of a pre-prepare's value."""
        if isinstance(message, Prepare | Commit):
            return self._vote_statement(message.view, message.value)
        if isinstance(message, PrePrepare):
            return proposal_statement(self._scope, message.view, Digest(name), message.prepared_view)
        return change_statement(self._scope, message)

    def check_vote(self, sender: PeerId, vote: Vote) -> None:
        """Raise `PeerError` unless a vote is its member's own."""
        statement = self._statements.get((vote.view, vote.value)) or self._vote_statement(vote.view, vote.value)
        if not self._verify(PeerId(vote.member), vote.context, statement, vote.signature):
            raise _forged(sender, vote)

    def check(self, sender: PeerId, message: PrePrepare | ViewChange, name: bytes = b"") -> None:
        """Raise `PeerError` unless a message is its member's own."""
        if not self._verify(PeerId(message.member), message.context, self.statement(message, name), message.signature):
            raise _forged(sender, message)

    def is_caught(self, message: Signed) -> bool:
        """Tell whether there is evidence already that its member says two things by messages of this kind."""
        return (message.member, message.context) in self._caught

    def catch(self, first: Signed, second: Signed, first_name: bytes = b"", second_name: bytes = b"") -> None:
        """Keep two messages, both checked, that no honest member signs both of."""
        if not self.is_caught(second):
            self._caught.add((second.member, second.context))
            self.evidence.append(
                Evidence(
                    member=PeerId(second.member),
                    context=second.context,
                    first=(self.statement(first, first_name), first.signature),
                    second=(self.statement(second, second_name), second.signature),
                )
            )

    def _vote_statement(self, view: int, name: bytes) -> bytes:
        if len(self._statements) >= _MAX_STATEMENTS:
            self._statements.clear()
        statement = self._statements[view, name] = self._scope.statement(view, Digest(name))
        return statement


def holds(decision: Decision, scope: Scope, members: Sequence[PeerId], verify: Verify) -> bool:
    """Tell whether a decision's votes are the commits of a quorum and nothing else: what can be checked from files."""
    voters = {PeerId(member) for member, _ in decision.votes}
    if len(voters) != len(decision.votes) or not voters.issubset(members) or not quorum.is_quorum(members, voters):
        return False
    statement = scope.statement(decision.view, decision.digest)
    return all(verify(PeerId(member), Commit.context, statement, seal) for member, seal in decision.votes)


def _forged(sender: PeerId, message: Signed) -> PeerError:
    what = f"{type(message).__name__} of view {message.view}"
    return PeerError(sender, f"passes on a {what} that {message.member} has not signed", message.signature)
