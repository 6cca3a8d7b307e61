"""How fast the way to one peer is, from what was really sent there; from many threads."""

import threading
from typing import Final

from barnraise.net.seam import LinkSpeed

WEIGHT: Final = 0.2
"""Of the newest measurement in the moving average."""
MIN_TRANSFER_BYTES: Final = 256 * 1024
"""A smaller transfer measures the latency."""


class Gauge:
    """What is known of one way; nothing at first."""

    def __init__(self) -> None:
        """Know nothing."""
        self._lock = threading.Lock()
        self._round_trip_s = 0.0
        self._bandwidth_bytes_s = 0.0

    def transferred(self, size_bytes: int, seconds: float) -> None:
        """Note a transfer, from its first byte sent until the word that its last one was taken.

        That word and the first byte took a round trip between them, which is not the bandwidth's fault; at most half
        of the time is taken for it, since a round trip may have become shorter.
        """
        if size_bytes >= MIN_TRANSFER_BYTES and seconds > 0:
            with self._lock:
                net_s = seconds - min(self._round_trip_s, seconds / 2)
                self._average(size_bytes / net_s)

    def delivered(self, bandwidth_bytes_s: float, *, is_bound_by_us: bool) -> None:
        """Note what TCP measured on connections that are in use; if we held them up, only where it is more than known."""
        with self._lock:
            if bandwidth_bytes_s > (self._bandwidth_bytes_s if is_bound_by_us else 0.0):
                self._average(bandwidth_bytes_s)

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
        """Return the moving average, None before there is one."""
        return self._bandwidth_bytes_s or None

    def read(self) -> LinkSpeed | None:
        """Return what is known; None before both are."""
        with self._lock:
            if not self._bandwidth_bytes_s or not self._round_trip_s:
                return None
            return LinkSpeed(latency_s=self._round_trip_s / 2, bandwidth_bytes_s=self._bandwidth_bytes_s)

    def _average(self, bandwidth_bytes_s: float) -> None:
        known = self._bandwidth_bytes_s or bandwidth_bytes_s
        self._bandwidth_bytes_s = known + WEIGHT * (bandwidth_bytes_s - known)
