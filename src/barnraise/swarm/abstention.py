"""When a member casts no vote: its disk may have forgotten one that it cast before. Pure; one member's own business.

1. it votes for x at some height, is counted in a quorum, and loses its disk;
2. it comes back, is asked again at the same height, and votes for y: two quorums, two values.
So a member that has found nothing on its disk, and hears that others are further, abstains up to the height that they
have reached: it cannot have voted beyond. It stops abstaining when nothing is decided for long, since then its vote is
needed, and the others who were there at the time are gone (crash faults only; docs/explanation.md says what is lost).
"""

from dataclasses import dataclass


@dataclass(kw_only=True)
class Abstention:
    """Heights at which no vote is cast."""

    patience_s: float
    is_fresh: bool
    """The disk held nothing of the run, and no vote was cast since."""
    _to: int = -1
    _since: float = 0.0

    def voted(self) -> None:
        """Note that a vote is on disk: from here on nothing is forgotten."""
        self.is_fresh = False

    def heard(self, height: int, now: float) -> bool:
        """Note how far somebody else is; return whether that changes anything."""
        if not self.is_fresh or height <= self._to:
            return False
        self._to, self._since = height, now
        return True

    def covers(self, height: int) -> bool:
        """Tell whether no vote is cast at a height."""
        return height <= self._to

    def is_over(self, height: int, now: float) -> bool:
        """Tell whether a height has been left undecided for too long, once; votes are cast from then on."""
        if not self.covers(height) or now < self._since + self.patience_s:
            return False
        self._to = -1
        return True
