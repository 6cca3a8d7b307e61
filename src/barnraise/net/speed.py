"""How fast the way to one peer is, from what was really sent there; from many threads."""

import threading
from collections import deque
from typing import Final

from barnraise.net.frames import preferred_suite, sealing_bytes_s
from barnraise.net.seam import LinkSpeed

WEIGHT: Final = 0.2
"""Of the newest transfer in the moving average."""
MIN_TRANSFER_BYTES: Final = 256 * 1024
"""A smaller transfer measures the latency."""
KEPT_RATES: Final = 16
"""What TCP delivers varies: it starts slowly, probes, recovers from losses, and shares the host's line with other
streams. The link is as fast as the best of so many looks in a row, a maximum that forgets, as BBR's (Cardwell et al.
2016). A moving average saw links that are all alike up to twice as fast as one another."""


class Gauge:
    """What is known of one way; nothing at first.

    Args:
        most_bytes_s: nothing above this is believed; None: what one thread can seal, and no stream of ours is faster.
            Over loopback TCP's own figure is that of a burst between two buffers, five times what a stream really moves.
    """

    def __init__(self, most_bytes_s: float | None = None) -> None:
        """Know nothing."""
        self._most_bytes_s = sealing_bytes_s(preferred_suite()) if most_bytes_s is None else most_bytes_s
        self._lock = threading.Lock()
        self._round_trip_s = 0.0
        self._bandwidth_bytes_s = 0.0
        self._rates_bytes_s: deque[float] = deque(maxlen=KEPT_RATES)
        self._is_at_least = True
        self.is_held_by_loss = False
        """See `seam.LinkSpeed`."""

    def transferred(self, size_bytes: int, seconds: float) -> None:
        """Note a transfer, from its first byte sent until the word that its last one was taken.

        That word and the first byte took a round trip between them, which is not the bandwidth's fault; at most half
        of the time is taken for it, since a round trip may have become shorter.
        """
        if size_bytes >= MIN_TRANSFER_BYTES and seconds > 0:
            with self._lock:
                net_s = seconds - min(self._round_trip_s, seconds / 2)
                rate = min(size_bytes / net_s, self._most_bytes_s)
                known = self._bandwidth_bytes_s or rate
                self._bandwidth_bytes_s = known + WEIGHT * (rate - known)
                self._is_at_least = False

    def delivered(self, bandwidth_bytes_s: float, *, is_bound_by_us: bool, in_all_bytes_s: float = 0.0) -> None:
        """Note what TCP delivered on connections that are in use; if we held them up, only where it is more than known.

        ``in_all_bytes_s`` is what the host sent meanwhile to all. Its streams share its line, so alone this one may be
        faster than it was: as fast as is known of it, if the line as a whole was.
        """
        with self._lock:
            known = self._bandwidth_bytes_s
            rate = min(max(bandwidth_bytes_s, min(known, in_all_bytes_s)), self._most_bytes_s)
            self._is_at_least &= is_bound_by_us
            if rate > (known if is_bound_by_us else 0.0):
                self._rates_bytes_s.append(rate)
                self._bandwidth_bytes_s = max(self._rates_bytes_s)

    def round_trip(self, seconds: float) -> None:
        """Note the shortest round trip of a connection."""
        with self._lock:
            self._round_trip_s = seconds

    @property
    def round_trip_s(self) -> float:
        """Return the last round trip that was noted, 0 before."""
        return self._round_trip_s

    @property
    def bandwidth_bytes_s(self) -> float | None:
        """Return what is known, None before anything is."""
        return self._bandwidth_bytes_s or None

    def read(self) -> LinkSpeed | None:
        """Return what is known; None before both are."""
        with self._lock:
            if not self._bandwidth_bytes_s or not self._round_trip_s:
                return None
            return LinkSpeed(
                latency_s=self._round_trip_s / 2,
                bandwidth_bytes_s=self._bandwidth_bytes_s,
                is_at_least=self._is_at_least,
                is_held_by_loss=self.is_held_by_loss,
            )
