"""What one rank computes: what its user has called, what was delivered, among whom, and the attempt that runs."""

from collections.abc import Mapping

from barnraise.collective.survival_effects import AttemptPlan, Deliver, Effect, Start, Stop
from barnraise.collective.survival_messages import Decision, Fault, Member
from barnraise.errors import LocalError


class Attempts:
    """One rank's attempts, one at a time. It decides nothing: it is told to start, to stop, and what holds from now on.

    Args:
        rank: This one.
        weights: Of all ranks that form the group.
    """

    def __init__(self, rank: int, weights: Mapping[int, int]) -> None:
        self.weights = dict(sorted(weights.items()))
        """Of the ranks that are in."""
        self.epoch = 0
        """Decisions made."""
        self.done = 0
        """The last collective that was delivered here."""
        self.called = 0
        """The last one that the user called."""
        self.running: AttemptPlan | None = None
        self._rank = rank
        self._hand_on: AttemptPlan | None = None
        """How this rank gets the result that stands, once its user calls for it."""
        self._times: dict[tuple[Fault, int], int] = {}

    @property
    def members(self) -> tuple[Member, ...]:
        """Return who is in, ascending."""
        return tuple(Member(rank, weight) for rank, weight in self.weights.items())

    @property
    def is_busy(self) -> bool:
        """Tell whether something runs, or the user waits for something."""
        return self.running is not None or self.called > self.done

    def call(self, sequence: int) -> None:
        """Note that the user calls the next collective.

        Raises:
            LocalError: the one before is not delivered, or was not called.
        """
        if sequence != self.done + 1 or sequence == self.called:
            raise LocalError(f"collective {sequence} was called after {self.done} and {self.called}")
        self.called = sequence

    def start(self) -> list[Effect]:
        """Start what the user waits for, if anything."""
        if self.called == self.done:
            return []
        if self._hand_on is not None and self._hand_on.sequence == self.called:
            self.running = self._hand_on
        else:
            self.running = AttemptPlan(sequence=self.called, attempt=self.epoch, members=self.members)
        return [Start(self.running)]

    def complete(self) -> list[Effect]:
        """Note that the running attempt came to its end: deliver it; or start the next one, if it only handed on."""
        plan, self.running = self.running, None
        if plan is None:
            return []
        if plan.holder == self._rank:
            return self.start()
        self.done, self._hand_on = plan.sequence, None
        if not plan.is_hand_on:
            self._times.clear()
        return [Deliver(plan.sequence)]

    def count_fault(self, fault: Fault, accused: int) -> int:
        """Return for how many attempts in a row a rank was at fault, with this one: until a collective is complete."""
        key = (fault, accused)
        self._times[key] = self._times.get(key, 0) + 1
        return self._times[key]

    def stop(self) -> list[Effect]:
        """Forget the running attempt, if there is one: nothing that it still does counts."""
        plan, self.running = self.running, None
        return [] if plan is None else [Stop(plan.sequence, plan.attempt)]

    def decided(self, decision: Decision) -> None:
        """Begin the epoch of a decision; nothing runs yet."""
        self.epoch, self._hand_on = decision.number, None
        self.weights = {member.rank: member.weight for member in decision.members}

    def resume(self, decision: Decision) -> list[Effect]:
        """Start what a decision that has just begun its epoch, and the user, ask for."""
        hand_on = decision.hand_on
        if hand_on is None or self._rank not in (hand_on.holder, *hand_on.incomplete):
            return self.start()
        plan = AttemptPlan(
            sequence=hand_on.sequence,
            attempt=self.epoch,
            members=self.members,
            holder=hand_on.holder,
            incomplete=hand_on.incomplete,
        )
        if self._rank != hand_on.holder:
            self._hand_on = plan
            return self.start()
        self.running = plan
        return [Start(plan)]
