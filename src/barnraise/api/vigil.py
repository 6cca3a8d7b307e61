"""Whether an attempt at a collective moves, and who holds it up; a clock and judgement, no threads and no members."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from barnraise.api.pump import Attempt
from barnraise.collective.survival_messages import Fault
from barnraise.ids import PeerId
from barnraise.net.frames import MAX_PAYLOAD_BYTES
from barnraise.net.seam import LinkSpeed

MIN_HOP_S: Final = 2.0
"""A peer that has begun a collective is given so long for its next chunk, however fast its link is."""
HOP_FACTOR: Final = 4.0
"""Times what its link should need."""


@dataclass(frozen=True, slots=True)
class Late:
    """Somebody holds an attempt up."""

    fault: Fault
    rank: int
    reason: str


@dataclass(slots=True)
class _Watched:
    """How an attempt went when it was last looked at."""

    attempt: Attempt
    progress: tuple[int, int]
    since_s: float


class Vigil:
    """Looks at one attempt after the other.

    Args:
        speed: what was measured of the way to a peer.
    """

    def __init__(self, speed: Callable[[PeerId], LinkSpeed | None]) -> None:
        self._speed = speed
        self._watched: _Watched | None = None

    def stands_for(self, attempt: Attempt, now: float) -> float:
        """Return for how many seconds an attempt has not moved, as far as it was looked at."""
        watched, progress = self._watched, attempt.progress
        if watched is None or watched.attempt is not attempt or watched.progress != progress:
            self._watched = watched = _Watched(attempt, progress, now)
        return now - watched.since_s

    def late(self, attempt: Attempt, now: float, has_begun: Callable[[PeerId], bool], give_up_at: float) -> Late | None:
        """Return who holds an attempt up for too long.

        Args:
            attempt: what runs.
            now: seconds.
            has_begun: tells whether a peer is in the collective, too.
            give_up_at: when the user is tired of waiting for those that are not.
        """
        late = attempt.waits_for
        if late is None:
            return None
        stands_s, sequence = self.stands_for(attempt, now), attempt.begin.sequence
        if not has_begun(late.peer):
            if now <= give_up_at:
                return None
            return Late(Fault.LATE, late.rank, f"has not called collective {sequence} in time")
        if stands_s <= self._hop_s(late.peer, len(attempt.parties)):
            return None
        return Late(Fault.STALLED, late.rank, f"moved nothing for {stands_s:.1f} s")

    def _hop_s(self, peer: PeerId, num_members: int) -> float:
        """Return how long a chunk may take that comes in turns with others."""
        speed = self._speed(peer)
        if speed is None or speed.bandwidth_bytes_s <= 0:
            return MIN_HOP_S
        chunk_s = 2 * speed.latency_s + num_members * MAX_PAYLOAD_BYTES / speed.bandwidth_bytes_s
        return max(MIN_HOP_S, HOP_FACTOR * chunk_s)
