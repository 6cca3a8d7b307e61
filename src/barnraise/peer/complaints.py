"""Bad messages, counted by sender: which are worth telling, and whom to stop listening to for a while; pure.

A channel is authenticated, so whoever sends what no honest member can send is to blame for it. Checking it costs more than
sending it (a signature takes 0.3 ms), hence a sender of many is not heard at all until it has been quiet for some time.
An honest peer is refused now and then, when its commitment crosses with the end of a round: that is what the bucket
is for.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from barnraise.ids import PeerId

BUCKET: Final = 32
"""Bad messages that are put up with at once, ..."""
REFILL_PER_S: Final = 0.5
"""... and so many a second on the long run."""
MUTE_S: Final = 30.0
"""Whoever goes beyond is not heard for this long."""
NUM_TOLD: Final = 16
"""Reasons told of each peer at once; after that one line for every doubling of their number."""
MAX_PEERS: Final = 1024
"""Beyond so many senders the book begins anew: identities are free."""


@dataclass(kw_only=True)
class _Sender:
    left: float = float(BUCKET)
    filled_at: float = 0.0
    muted_until: float = 0.0


@dataclass(kw_only=True)
class Complaints:
    """One peer's book of who has sent it what it had to drop."""

    counts: Counter[PeerId] = field(default_factory=Counter)
    _senders: dict[PeerId, _Sender] = field(default_factory=dict)

    def note(self, peer: PeerId, now: float) -> bool:
        """Count a bad message; return whether it is worth telling."""
        if len(self._senders) >= MAX_PEERS:
            self._senders.clear()
            self.counts.clear()
        sender = self._senders.setdefault(peer, _Sender(filled_at=now))
        sender.left = min(float(BUCKET), sender.left + (now - sender.filled_at) * REFILL_PER_S) - 1
        sender.filled_at = now
        if sender.left < 0:
            sender.muted_until = now + MUTE_S
        self.counts[peer] += 1
        return self.counts[peer] <= NUM_TOLD or self.counts[peer].bit_count() == 1

    def is_muted(self, peer: PeerId, now: float) -> bool:
        """Tell whether what a peer sends is dropped unread, which counts as well."""
        sender = self._senders.get(peer)
        if sender is None or now >= sender.muted_until:
            return False
        self.counts[peer] += 1
        return True
