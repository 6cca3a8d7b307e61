"""Signed messages of PBFT that a traitor makes up: it has its own key, its imagination, and what it heard; no plans."""

import random
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgspec

from barnraise.consensus.agreement import MAX_VALUE_BYTES, Ballot, Decided, Scope, Sign
from barnraise.consensus.pbft_messages import Commit, Fetch, Prepare, PrePrepare, ViewChange
from barnraise.consensus.pbft_seals import Seals
from barnraise.ids import PeerId
from barnraise.swarm.records import digest

FAR_VIEW: Final = 1 << 39
ASKABLE: Final[tuple[Literal["changes", "prepares", "commits", "value"], ...]] = (
    "changes",
    "prepares",
    "commits",
    "value",
)


class Forger:
    """Makes messages of one traitor.

    Args:
        peer: Who it is.
        sign: With its own keys.
        scopes: What is agreed on at each height, as far as that is clear.
        rng: The trial's dice.
    """

    def __init__(self, peer: PeerId, sign: Sign, scopes: Mapping[int, Scope], rng: random.Random) -> None:
        self._peer = peer
        self._sign = sign
        self._scopes = scopes
        self._rng = rng

    def pre_prepare(self, height: int, view: int, value: bytes, prepared_view: int = -1) -> PrePrepare:
        """Return a proposal, whoever leads."""
        return self._seals(height).proposal(view, value, digest(value), prepared_view)

    def votes(self, height: int, view: int, name: bytes) -> tuple[Prepare, Commit]:
        """Return both votes for what has this digest."""
        seals = self._seals(height)
        return seals.vote(Prepare, view, name), seals.vote(Commit, view, name)

    def view_change(self, height: int, view: int, prepared_view: int, prepared: bytes) -> ViewChange:
        """Return a promise with a claim, true or not."""
        return self._seals(height).change(view, prepared_view, prepared)

    def decided(self, height: int, view: int, value: bytes, votes: tuple[tuple[str, bytes], ...]) -> Decided:
        """Return a decision with these votes, and ours, which also stand in for some that are missing."""
        ours = self.votes(height, view, digest(value))[1].signature
        members = (PeerId(f"peer-{index}") for index in range(self._rng.randrange(1, 8)))
        made_up = ((member, ours) for member in members)
        return Decided(height=height, view=view, value=value, votes=(*votes, (self._peer, ours), *made_up))

    def fetch(self, height: int, view: int, name: bytes) -> Fetch:
        """Return a question for everything that there is."""
        what = self._rng.choice(ASKABLE)
        return Fetch(height=height, view=view, what=what, value=b"" if what == "changes" else name, held=b"")

    def twisted(self, message: Ballot, others: tuple[PeerId, ...]) -> Ballot:
        """Return a message with one thing changed in it: its view, its author, its signature, its content."""
        rng = self._rng
        twists: list[Callable[[], Ballot]] = [
            lambda: msgspec.structs.replace(message, view=message.view + rng.randrange(1, 4)),
            lambda: msgspec.structs.replace(message, view=FAR_VIEW),
            lambda: msgspec.structs.replace(message, height=message.height + 1),
        ]
        if isinstance(message, PrePrepare | Prepare | Commit | ViewChange):
            twists += [
                lambda: msgspec.structs.replace(message, member=rng.choice(others)),
                lambda: msgspec.structs.replace(message, member="nobody"),
                lambda: msgspec.structs.replace(message, signature=b"not a signature"),
                lambda: msgspec.structs.replace(message, signature=b""),
            ]
        if isinstance(message, PrePrepare | Prepare | Commit):
            twists += [
                lambda: msgspec.structs.replace(message, value=b""),
                lambda: msgspec.structs.replace(message, value=bytes(MAX_VALUE_BYTES + 1)),
            ]
        return rng.choice(twists)()

    def _seals(self, height: int) -> Seals:
        return Seals(self._scopes[height], self._peer, self._sign, verify=_unused)


def _unused(peer: PeerId, context: str, message: bytes, signature: bytes) -> bool:
    raise AssertionError("a traitor verifies nothing")
