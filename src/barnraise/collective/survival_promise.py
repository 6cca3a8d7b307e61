"""What one rank has noticed, promised and accepted until the decision that comes next is made; it sends nothing."""

from collections.abc import Collection

from barnraise.collective.survival_effects import AttemptPlan
from barnraise.collective.survival_messages import (
    MAX_COMPLAINTS,
    Accepted,
    Ballot,
    Complaint,
    Fault,
    Work,
)


class Promise:
    """A rank's part in one decision that it does not lead. With the decision it ends, and another one begins."""

    def __init__(self) -> None:
        self.stopped_at: float | None = None
        """When this rank stopped, or was last told to be patient; None: it is settled."""
        self.ballot: Ballot | None = None
        """The newest one that was promised: no older one is followed."""
        self.accepted: Accepted | None = None
        self.had = Work.NOTHING
        """What ran when this rank stopped."""
        self.waited_for: int | None = None
        """Whose chunk was due then."""
        self.alarmed_by: set[int] = set()
        self.heard_leader_at = 0.0
        self._complaints: dict[tuple[Fault, int], Complaint] = {}
        self._silent: set[int] = set()

    @property
    def complaints(self) -> tuple[Complaint, ...]:
        """Return what went wrong here."""
        return tuple(self._complaints.values())

    def complain(self, complaint: Complaint) -> None:
        """Note what went wrong; of too many kinds the later ones are dropped."""
        if len(self._complaints) < MAX_COMPLAINTS:
            self._complaints[complaint.fault, complaint.rank] = complaint

    def stop(self, now: float, plan: AttemptPlan | None, waits_for: int | None) -> None:
        """Note when this rank stopped, what ran, and whose chunk was due."""
        self.stopped_at = self.heard_leader_at = now
        if plan is not None:
            self.had, self.waited_for = Work.HAND_ON if plan.is_hand_on else Work.COLLECTIVE, waits_for

    def leader(self, members: Collection[int], down: Collection[int]) -> int:
        """Return whom this rank follows: whom it promised to, or the lowest one; but nobody who is down or silent."""
        lost = {*down} | self._silent
        if self.ballot is not None and self.ballot.leader not in lost:
            return self.ballot.leader
        return min(set(members) - lost)

    def give_up_on(self, now: float, leader: int) -> None:
        """Note that a leader was silent for too long; the next one gets as long."""
        self._silent.add(leader)
        self.heard_leader_at = now

    def give(self, now: float, ballot: Ballot) -> None:
        """Promise to follow no older ballot."""
        self.ballot, self.heard_leader_at = ballot, now
        self._silent.discard(ballot.leader)

    def accept(self, now: float, accepted: Accepted) -> bool:
        """Accept a decision if its ballot is the promised one; tell whether it is."""
        if accepted.ballot != self.ballot:
            return False
        self.accepted, self.heard_leader_at = accepted, now
        return True
