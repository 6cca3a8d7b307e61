"""When a member stops waiting: for late commitments, for an exchange, for its leader. Opinions, never agreed."""

from dataclasses import dataclass

from barnraise.config import RoundConfig

MAX_DOUBLINGS = 6


@dataclass(kw_only=True)
class Pace:
    """Marks on the member's clock, in seconds, and what follows from them."""

    rules: RoundConfig
    agree_timeout_s: float
    phase_since: float
    view_since: float
    enough_since: float | None = None
    """When the commitments at hand became enough for a cut."""
    behind_since: float | None = None
    """When others were first heard to be further than this entry."""
    train_took_s: float = 0.0

    def next_entry(self, now: float) -> None:
        """Mark that a new log entry is to be agreed."""
        self.enough_since = self.behind_since = None
        self.view_since = now

    def note_enough(self, now: float, is_enough: bool) -> bool:
        """Remember since when there are enough commitments; return whether there are."""
        if not is_enough:
            self.enough_since = None
        elif self.enough_since is None:
            self.enough_since = now
        return is_enough

    def grace_is_over(self, now: float) -> bool:
        """Tell whether late commitments have had their time."""
        return self.enough_since is not None and now >= self.enough_since + self._grace_s

    def exchange_is_overdue(self, now: float) -> bool:
        """Tell whether the exchange has taken too long."""
        return now >= self.phase_since + self.rules.exchange_timeout_s

    def is_owed_long(self, now: float) -> bool:
        """Tell whether a decided result has been missing its tensors for too long."""
        return now >= self.view_since + self.agree_timeout_s

    def is_behind_long(self, now: float) -> bool:
        """Tell whether others have been further for so long that it does not help to ask them for the next entry.

        Its votes may be too many for a message.
        """
        if self.behind_since is None:
            self.behind_since = now
        return now >= self.behind_since + self.agree_timeout_s

    def leader_is_overdue(self, now: float, views: int, *, has_cut: bool) -> bool:
        """Tell whether whoever is to lead has had time enough; each of the ``views`` that this entry took gives twice it."""
        patience = self.agree_timeout_s * float(2 ** min(views, MAX_DOUBLINGS))
        if has_cut:
            turn: float | None = self.phase_since + self.rules.exchange_timeout_s
        else:
            turn = None if self.enough_since is None else self.enough_since + self._grace_s
        return turn is not None and now >= max(turn, self.view_since) + patience

    @property
    def _grace_s(self) -> float:
        return max(self.rules.grace_min_s, self.rules.grace_factor * self.train_took_s)
