"""Counters and histograms of what happens again and again, such as an exchange: how often, how long, how much; pure.

Counts only grow, so that whoever reads them twice knows what happened between; they begin anew with the process.
"""

from bisect import bisect_left
from typing import Final

import msgspec

SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Half a decade each: a collective on loopback takes 1 ms, an exchange over a modem minutes."""
BYTES: Final = (1e3, 1e4, 1e5, 1e6, 3e6, 1e7, 3e7, 1e8, 3e8, 1e9, 1e10)


class Histogram(msgspec.Struct, frozen=True, kw_only=True):
    """How often a figure lay in each of some ranges."""

    limits: tuple[float, ...]
    """Upper ends of the ranges, each within its range; the last range has none."""
    counts: tuple[int, ...]
    """One a range, so one more than there are limits."""
    total: float = 0.0
    """Sum of the figures."""

    @classmethod
    def empty(cls, limits: tuple[float, ...]) -> "Histogram":
        """Return a histogram of nothing; ``limits`` ascend."""
        return cls(limits=limits, counts=(0,) * (len(limits) + 1))

    def plus(self, figure: float) -> "Histogram":
        """Return the histogram with one more figure in it."""
        place = bisect_left(self.limits, figure)
        counts = (*self.counts[:place], self.counts[place] + 1, *self.counts[place + 1 :])
        return msgspec.structs.replace(self, counts=counts, total=self.total + figure)

    @property
    def count(self) -> int:
        """Return how many figures there were."""
        return sum(self.counts)


class Meter(msgspec.Struct, frozen=True, kw_only=True):
    """All that happened of one kind since the process began."""

    failed: int = 0
    """Attempts that came to nothing."""
    seconds: Histogram = Histogram.empty(SECONDS)
    """Of those that did not fail."""
    sent_bytes: Histogram = Histogram.empty(BYTES)
    """Likewise, by this peer alone."""
    received_bytes: Histogram = Histogram.empty(BYTES)

    def plus(self, *, took_s: float, sent_bytes: int, received_bytes: int, failed: int = 0) -> "Meter":
        """Return the meter after one more, which succeeded after ``failed`` attempts in vain."""
        return Meter(
            failed=self.failed + failed,
            seconds=self.seconds.plus(took_s),
            sent_bytes=self.sent_bytes.plus(sent_bytes),
            received_bytes=self.received_bytes.plus(received_bytes),
        )
