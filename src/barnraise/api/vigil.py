"""Whether an attempt at a collective moves, and who holds it up; a clock and judgement, no threads and no members."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from barnraise.api.attempt import Attempt
from barnraise.collective.links import (
    DEADLINE_FLOOR_S,
    DEFAULT_BANDWIDTH_BYTES_S,
    DEFAULT_LATENCY_S,
    LinkProfile,
    deadline_s,
)
from barnraise.collective.survival_messages import Fault
from barnraise.ids import PeerId
from barnraise.net.frames import MAX_PAYLOAD_BYTES
from barnraise.net.seam import LinkSpeed

MIN_HOP_S: Final = DEADLINE_FLOOR_S
"""However fast all links are."""
UNKNOWN: Final = LinkSpeed(latency_s=DEFAULT_LATENCY_S, bandwidth_bytes_s=DEFAULT_BANDWIDTH_BYTES_S)
"""What is taken for a link that nothing was sent on yet."""


@dataclass(frozen=True, slots=True)
class Late:
    """Somebody holds an attempt up."""

    fault: Fault
    rank: int
    reason: str


@dataclass(slots=True)
class _Watched:
    """How an attempt went when it was last looked at."""

    progress: tuple[int, int]
    since_s: float


class Vigil:
    """Looks at attempts: at two in turns where one was stopped and a thread is still in it.

    Args:
        speed: what was measured of the way to a peer.
    """

    def __init__(self, speed: Callable[[PeerId], LinkSpeed | None]) -> None:
        self._speed = speed
        self._watched: WeakKeyDictionary[Attempt, _Watched] = WeakKeyDictionary()

    def stands_for(self, attempt: Attempt, now: float) -> float:
        """Return for how many seconds an attempt has not moved, as far as it was looked at."""
        watched, progress = self._watched.get(attempt), attempt.progress
        if watched is None or watched.progress != progress:
            self._watched[attempt] = watched = _Watched(progress, now)
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
        others = (party.peer for place, party in enumerate(attempt.parties) if place != attempt.place)
        if stands_s <= hop_s(self._speed(peer) for peer in others):
            return None
        return Late(Fault.STALLED, late.rank, f"moved nothing for {stands_s:.1f} s")


def hop_s(speeds: Iterable[LinkSpeed | None]) -> float:
    """Return how long one rank may stand still before somebody is at fault: 5 s where all are near, more over long links.

    A peer on a fast link may itself wait for one on a slow link, so the slowest counts, whoever is waited for. Before our
    chunk a link may have to carry one of everybody's, where all of them share it; how much slower than measured a link
    may be is `deadline_s`'s. A process or machine that hangs is found by its heartbeats, sooner: this is for data alone.

    Args:
        speeds: of the ways to all others that take part; None: not measured.
    """
    known = [speed if speed is not None and speed.bandwidth_bytes_s > 0 else UNKNOWN for speed in speeds]
    profiles = [LinkProfile(latency_s=each.latency_s, bandwidth_bytes_s=each.bandwidth_bytes_s) for each in known]
    ahead_bytes = (len(known) + 1) * MAX_PAYLOAD_BYTES
    return max([MIN_HOP_S, *(deadline_s(profile, ahead_bytes) for profile in profiles)])
