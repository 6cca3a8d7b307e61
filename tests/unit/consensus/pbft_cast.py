"""Members of a PBFT committee that say exactly what a test wants; signatures are ideal."""

from collections.abc import Sequence
from typing import Final

from barnraise.consensus.agreement import Ballot, Broadcast, Decision, Effect, Persist, Scope, Send
from barnraise.consensus.pbft import Pbft
from barnraise.consensus.pbft_kind import PBFT
from barnraise.consensus.pbft_messages import Commit, Fetch, PbftRecord, Prepare, PrePrepare, ViewChange
from barnraise.consensus.pbft_seals import Seals
from barnraise.ids import PeerId
from barnraise.swarm.records import digest

SCOPE: Final = Scope(run=b"run", epoch=3, height=7)
X: Final = b"value x"
Y: Final = b"value y"


def peers(size: int = 4) -> tuple[PeerId, ...]:
    return tuple(PeerId(f"peer-{place}") for place in range(size))


def sign_as(peer: PeerId, context: str, message: bytes) -> bytes:
    return f"{peer} {context} ".encode() + message


def verify(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
    return signature == sign_as(peer, context, message)


def member(place: int, size: int = 4, record: PbftRecord | None = None) -> Pbft:
    me = PeerId(f"peer-{place}")

    def sign(context: str, message: bytes) -> bytes:
        return sign_as(me, context, message)

    return PBFT.open(SCOPE, peers(size), me, sign=sign, verify=verify, record=record)


class Author:
    """A member that signs whatever it is told to."""

    def __init__(self, place: int, scope: Scope = SCOPE) -> None:
        self.peer = PeerId(f"peer-{place}")
        self._seals = Seals(scope, self.peer, lambda context, message: sign_as(self.peer, context, message), verify)

    def pre_prepare(self, view: int, value: bytes, prepared_view: int = -1) -> PrePrepare:
        return self._seals.proposal(view, value, digest(value), prepared_view)

    def prepare(self, view: int, value: bytes) -> Prepare:
        return self._seals.vote(Prepare, view, digest(value))

    def commit(self, view: int, value: bytes) -> Commit:
        return self._seals.vote(Commit, view, digest(value))

    def change(self, view: int, prepared_view: int = -1, value: bytes = b"") -> ViewChange:
        return self._seals.change(view, prepared_view, digest(value) if prepared_view >= 0 else b"")


def tell(agreement: Pbft, *messages: PrePrepare | Prepare | Commit | ViewChange) -> list[Effect]:
    """Hand in messages as if each came from its author; return what the last one led to."""
    effects: list[Effect] = []
    for message in messages:
        effects = agreement.receive(PeerId(message.member), message)
    return effects


def said(effects: Sequence[Effect]) -> list[Ballot]:
    """Return what is sent, to whomever."""
    return [effect.message for effect in effects if isinstance(effect, Broadcast | Send)]


def record_of(effects: Sequence[Effect]) -> PbftRecord:
    """Return what was put on disk last."""
    records = [effect.record for effect in effects if isinstance(effect, Persist)]
    assert isinstance(records[-1], PbftRecord)
    return records[-1]


def fetches(effects: Sequence[Effect]) -> list[tuple[PeerId, str, int, bytes]]:
    """Return whom is asked for what."""
    return [
        (effect.to, effect.message.what, effect.message.view, effect.message.value)
        for effect in effects
        if isinstance(effect, Send) and isinstance(effect.message, Fetch)
    ]


def prepare_all(agreement: Pbft, view: int, value: bytes, *places: int) -> list[Effect]:
    """Let these members prepare a value."""
    return tell(agreement, *(Author(place).prepare(view, value) for place in places))


def change_all(agreement: Pbft, view: int, *places: int) -> list[Effect]:
    """Let these members go on to a view, with nothing prepared."""
    return tell(agreement, *(Author(place).change(view) for place in places))


def decision_of(value: bytes, view: int, *places: int) -> Decision:
    votes = tuple((f"peer-{place}", Author(place).commit(view, value).signature) for place in places)
    return Decision(value=value, view=view, votes=votes)
