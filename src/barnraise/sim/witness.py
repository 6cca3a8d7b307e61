"""Sees everything that happens in a trial of agreement and says which promise was broken; it takes no part.

The promises, each checked whenever something happens that could break it:

    agreement        one value a height, whoever decides it, whenever
    validity         it was proposed, is valid, and enough honest members found so themselves
    certificates     the votes of a decision are a quorum's: by the protocol's word, and counted here
    durability       what a quorum has voted for is what is decided, even if nobody lived to count the votes
    integrity        a member decides each height once, in order, and an honest one says one thing in a view
    no slander       no honest member is blamed: neither by a `PeerError` nor by evidence
    memory           a member holds no more than a bound in the number of members
    messages         what a member says, asks and answers at a height is bounded by its views and repetitions
    liveness         in the calm, everybody decides within a bound (`sim.agreement` has the clock)

Signatures are ideal: a table of what was signed. Nobody can forge one, and a traitor signs as itself alone.
"""

from collections.abc import Collection
from typing import Any, Final

import msgspec

from barnraise.consensus.agreement import Agreement, Ballot, Decision, Kind, Scope, Sign
from barnraise.ids import PeerId
from barnraise.sim.schedules import num_faulty
from barnraise.sim.values import Values

VOTE_CONTEXTS: Final = {"pbft": "barnraise 1 commit", "raft": "barnraise 1 vote"}
"""What a vote that counts in a certificate is signed for; written down a second time, on purpose."""
MAX_HELD_PER_MEMBER: Final = 16
"""Things that an agreement may hold for each member."""
MAX_SAID_AT_FIRST: Final = 8
MAX_SAID_PER_VIEW: Final = 5
MAX_ANSWERS_PER_MEMBER: Final = 2
MAX_SAID_PER_REPETITION: Final = 4
"""The contract of `Agreement.repeat`."""


class Violation(AssertionError):
    """A promise of agreement was broken."""


class Signatures:
    """Ideal signatures."""

    def __init__(self) -> None:
        self._issued: dict[tuple[PeerId, str, bytes], bytes] = {}
        self._meant: dict[bytes, tuple[PeerId, str, bytes]] = {}

    def signer(self, peer: PeerId) -> Sign:
        """Return what signs as this peer."""
        issued, meant = self._issued, self._meant

        def sign(context: str, message: bytes) -> bytes:
            key = (peer, context, message)
            seal = issued.get(key)
            if seal is None:
                seal = issued[key] = b"%d signed" % len(issued)
                meant[seal] = key
            return seal

        return sign

    def verify(self, peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
        """Tell whether this peer signed this message in this context, and so."""
        return self._issued.get((peer, context, message)) == signature

    def meaning(self, signature: bytes) -> tuple[PeerId, str, bytes] | None:
        """Return who signed what in which context."""
        return self._meant.get(signature)


class Witness:
    """What was decided, approved and said in one trial.

    Args:
        kind: The protocol under test.
        honest: Who keeps to it.
        signatures: The trial's signatures.
        values: What was proposed in it.
    """

    def __init__(self, kind: Kind, honest: Collection[PeerId], signatures: Signatures, values: Values) -> None:
        self._kind = kind
        self._honest = frozenset(honest)
        self._signatures = signatures
        self._values = values
        self._vote_context = VOTE_CONTEXTS[kind.name]
        self._decided: dict[int, bytes] = {}
        """Digests, by height."""
        self._votes: dict[bytes, set[PeerId]] = {}
        """Who has voted for a statement, and let it be known."""
        self._approved: dict[bytes, set[PeerId]] = {}
        self._said: dict[tuple[PeerId, type, int, int], Ballot] = {}
        self._logs: dict[PeerId, int] = {}
        self.num_rejected = 0
        """Messages of traitors that were refused with a `PeerError`."""

    def approved(self, peer: PeerId, value: bytes) -> None:
        """An honest member found a value valid."""
        self._approved.setdefault(value, set()).add(peer)

    def said(self, peer: PeerId, message: Ballot, members: tuple[PeerId, ...]) -> None:
        """An honest member says something to all: it must be what it said before in this view, if it did."""
        signature = getattr(message, "signature", None)
        if signature is None:
            return
        before = self._said.setdefault((peer, type(message), message.height, message.view), message)
        if before is not message and before != message and not self._kind.trusts_members:
            name = type(message).__name__
            raise Violation(f"{peer} says two things in one view: {name} of view {message.view}")
        self.signed(signature, members)

    def signed(self, signature: bytes, members: tuple[PeerId, ...]) -> None:
        """A signature is out: if it completes a quorum's votes, their value is decided, whoever comes to know it."""
        meaning = self._signatures.meaning(signature)
        if meaning is None or meaning[1] != self._vote_context:
            return
        voter, _, statement = meaning
        voters = self._votes.setdefault(statement, set())
        if voter not in voters:
            voters.add(voter)
            if _are_enough(self._kind, members, voters):
                _, _, height, _, value = msgspec.msgpack.decode(statement)
                self._is_decided(height, value)

    def blamed(self, peer: PeerId, blamer: PeerId, why: str) -> None:
        """A member holds another one for a liar."""
        if peer in self._honest:
            raise Violation(f"{blamer} blames {peer}, which is honest: {why}")
        self.num_rejected += 1

    def decided(self, peer: PeerId, decision: Decision, scope: Scope, members: tuple[PeerId, ...]) -> None:
        """An honest member decides a height."""
        height = scope.height
        before = self._logs.get(peer, 0)
        if height != before:
            raise Violation(f"{peer} decides height {height}, and its log has {before} entries")
        self._logs[peer] = height + 1
        self._is_decided(height, decision.digest)
        self._check_certificate(peer, decision, scope, members)
        self._check_validity(peer, decision, height, members)

    def check_memory(self, peer: PeerId, agreement: Agreement, members: tuple[PeerId, ...]) -> None:
        """An honest member holds what it may hold, and its evidence names traitors alone."""
        held, limit = num_held(agreement), MAX_HELD_PER_MEMBER * (len(members) + 1)
        if held > limit:
            raise Violation(f"{peer} holds {held} things, {limit} are allowed with {len(members)} members")
        for evidence in getattr(agreement, "evidence", ()):
            if evidence.member in self._honest:
                raise Violation(f"{peer} has evidence against {evidence.member}, which is honest: {evidence}")

    def check_messages(self, peer: PeerId, num_said: int, *, views: int) -> None:
        """An honest member says no more at a height than the views that it was in explain."""
        limit = MAX_SAID_AT_FIRST + MAX_SAID_PER_VIEW * views
        if num_said > limit:
            raise Violation(f"{peer} said {num_said} things at one height, {limit} are allowed in {views} views")

    def check_answers(self, peer: PeerId, num_answers: int, *, turns: int, num_members: int) -> None:
        """An honest member asks and answers each other one so many times in a view, and between two repetitions."""
        limit = MAX_ANSWERS_PER_MEMBER * num_members * (1 + turns)
        if num_answers > limit:
            what = f"{turns} views and repetitions"
            raise Violation(
                f"{peer} sent {num_answers} questions and answers at one height, {limit} are allowed in {what}"
            )

    def repeated(self, peer: PeerId, num_said: int) -> None:
        """An honest member says again what may have been lost."""
        if num_said > MAX_SAID_PER_REPETITION:
            raise Violation(f"{peer} repeats {num_said} things at once, {MAX_SAID_PER_REPETITION} are allowed")

    def _is_decided(self, height: int, value: bytes) -> None:
        if self._decided.setdefault(height, value) != value:
            two = f"{self._decided[height].hex()[:8]} and {value.hex()[:8]}"
            raise Violation(f"two values are decided at height {height}: those with digests {two}")

    def _check_certificate(self, peer: PeerId, decision: Decision, scope: Scope, members: tuple[PeerId, ...]) -> None:
        if not self._kind.holds(decision, scope, members, self._signatures.verify):
            raise Violation(f"{peer} decides with votes that do not hold by {self._kind.name}'s own word")
        statement = scope.statement(decision.view, decision.digest)
        meant = {(PeerId(voter), self._signatures.meaning(seal)) for voter, seal in decision.votes}
        voters = {voter for voter, meaning in meant if meaning == (voter, self._vote_context, statement)}
        if not _are_enough(self._kind, members, voters):
            raise Violation(f"{peer} decides with {len(voters)} votes that hold, of {len(members)} members")

    def _check_validity(self, peer: PeerId, decision: Decision, height: int, members: tuple[PeerId, ...]) -> None:
        value = self._values.find(decision.value)
        if value is None or value.height != height:
            raise Violation(f"{peer} decides what nobody proposed for height {height}: {_short(decision.value)}")
        if not value.is_valid:
            raise Violation(f"{peer} decides what is not valid: {_short(decision.value)}")
        least = 1 if self._kind.trusts_members else num_faulty(len(members)) + 1
        found = len(self._approved.get(decision.value, ()))
        if found < least:
            raise Violation(f"{peer} decides what {found} honest members found valid, and {least} must")


def num_held(thing: Any, depth: int = 5) -> int:
    """Return how many things an agreement's containers hold, and those of the objects that it is made of."""
    if depth == 0:
        return 0
    if isinstance(thing, dict):
        return len(thing) + sum(num_held(item, depth - 1) for item in thing.values())
    if isinstance(thing, set | list):
        return len(thing) + sum(num_held(item, depth - 1) for item in thing)
    if isinstance(thing, msgspec.Struct) or not any(_is_ours(kind) for kind in type(thing).__mro__):
        return 0
    return sum(num_held(value, depth - 1) for value in _attributes(thing))


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("barnraise.consensus")


def _attributes(thing: Any) -> list[Any]:
    names = [name for kind in type(thing).__mro__ for name in kind.__dict__.get("__slots__", ())]
    return [*getattr(thing, "__dict__", {}).values(), *(getattr(thing, name) for name in names if hasattr(thing, name))]


def _are_enough(kind: Kind, members: tuple[PeerId, ...], voters: set[PeerId]) -> bool:
    """Count a quorum without the code under test."""
    present = [member for member in members if member in voters]
    if kind.trusts_members:
        return 2 * len(present) > len(members) or (2 * len(present) == len(members) and present[0] == members[0])
    return 2 * len(present) > len(members) + num_faulty(len(members))


def _short(value: bytes) -> str:
    return value[:60].decode(errors="replace")
