"""Whom to fetch the run's state from: an opinion of one member, which remembers who failed to deliver."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from barnraise.ids import PeerId

MAX_ASKED = 4
"""Peers that are asked for the same commitments at a time: each passes on all that it has of a round."""
SHUN_S = 60.0
"""A donor that did not deliver what it claimed to have is not asked again for this long."""


@dataclass(kw_only=True)
class Donors:
    """Takes those who have something in turn; one at a time is asked."""

    asked: PeerId
    """Who was asked last."""
    _num_asked: int = 0
    _shunned_until: dict[PeerId, float] = field(default_factory=dict)

    def is_shunned(self, peer: PeerId, now: float) -> bool:
        """Tell whether a peer has failed to deliver not long ago."""
        return now < self._shunned_until.get(peer, now)

    def ask(self, donor: PeerId) -> None:
        """Note who is asked."""
        self.asked = donor

    def some(self, peers: Sequence[PeerId]) -> tuple[PeerId, ...]:
        """Return a few of the peers, at each call the next ones."""
        start = self._num_asked % len(peers) if peers else 0
        self._num_asked += MAX_ASKED
        return tuple((*peers[start:], *peers[:start])[:MAX_ASKED])

    def failed(self, now: float) -> None:
        """Note that whoever was asked has not delivered."""
        self._shunned_until[self.asked] = now + SHUN_S

    def choose(
        self, now: float, ahead: Sequence[PeerId], otherwise: Sequence[PeerId], down: Collection[PeerId]
    ) -> PeerId:
        """Return one of those known to be ahead, in turn; where there is none, one of the others."""
        able = [peer for peer in ahead if peer not in down and not self.is_shunned(peer, now)] or list(otherwise)
        self._num_asked += 1
        return able[self._num_asked % len(able)]
