"""A trial of agreement: the code that ships, on a simulated network, clock and disk, among peers of which some lie.

One seed decides everything. A trial decides one height or a few in a row, of which each may replace a member; whoever
lags is told what was decided, with the votes. `sim.schedules` says what happens, `sim.stage` lets it happen,
`sim.replica` drives the code under test, `sim.adversary` lies, and `sim.witness` says which promise was broken.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final

from barnraise.consensus.agreement import Kind
from barnraise.sim.adversary import NUM_WAKES, Traitor
from barnraise.sim.replica import MAX_DOUBLINGS, MAX_REPEAT_S, PATIENCE_S, Replica
from barnraise.sim.schedules import RATES, Habit, Schedule, Treason, draw, num_faulty
from barnraise.sim.stage import Stage, Tell
from barnraise.sim.witness import Violation

FORGETFUL: Final = tuple((effect, 0.0) for effect in range(3, 40, 5))
"""When an amnesiac crashes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a trial came to in which no promise was broken."""

    took_s: float
    """On the trial's clock."""
    num_events: int
    num_messages: int
    num_rejected: int
    """Messages of traitors that were refused as such."""


class Trial:
    """One schedule.

    Args:
        schedule: What happens.
        kind: The protocol under test.
        tell: Hears each event in plain words.
    """

    def __init__(self, schedule: Schedule, kind: Kind, tell: Tell | None = None) -> None:
        self._stage = Stage(schedule, kind, tell)
        self._limit_s = float("inf")
        treasons = {treason.member: treason for treason in schedule.treasons}
        self._honest = [self._member(index) for index in range(schedule.num_peers) if index not in treasons]
        for treason in schedule.treasons:
            if not treason.is_silent:
                self._set_up(treason)
        self._stage.later(schedule.calm_s, self._grow_calm)

    def run(self) -> Outcome:
        """Let everything happen until every honest peer has decided every height.

        Raises:
            Violation: a promise was broken, or the code under test fell over.
        """
        stage = self._stage
        try:
            while stage.num_undecided:
                stage.step()
                if stage.now > self._limit_s:
                    raise Violation(self._stuck())
        except Violation:
            raise
        except Exception as error:
            raise Violation(f"the code under test fell over: {type(error).__name__}: {error}") from error
        return Outcome(
            took_s=stage.now,
            num_events=stage.num_events,
            num_messages=stage.num_messages,
            num_rejected=stage.witness.num_rejected,
        )

    def _member(self, index: int) -> Replica:
        """Set up an honest peer."""
        schedule = self._stage.schedule
        crashes = sorted((crash.effect, crash.down_s) for crash in schedule.crashes if crash.member == index)
        replica = Replica(self._stage, index, rate=schedule.clocks[index].rate, crashes=crashes)
        self._let_in(replica)
        return replica

    def _set_up(self, treason: Treason) -> None:
        """Set up a traitor, with the copies of the code that it runs."""
        stage, schedule = self._stage, self._stage.schedule
        traitor = Traitor(stage, treason)
        stage.attach(traitor)
        is_forgetful = Habit.AMNESIAC in treason.habits
        for face in range(treason.num_puppets):
            replica = Replica(
                stage,
                treason.member,
                rate=schedule.clocks[treason.member].rate,
                crashes=FORGETFUL if is_forgetful else (),
                passes=partial(traitor.passes, face),
                forgets=is_forgetful,
            )
            self._let_in(replica)
        for _ in range(NUM_WAKES):
            stage.later(stage.rng.uniform(0, schedule.calm_s + PATIENCE_S), traitor.wake)

    def _let_in(self, replica: Replica) -> None:
        self._stage.attach(replica)
        self._stage.later(self._stage.schedule.clocks[replica.index].offset_s, replica.start)

    def _grow_calm(self) -> None:
        """From now on the network is kind: set the moment by which everybody must have decided.

        It takes f views under traitors at most, and one under somebody honest; one more because members are in
        different views when the calm begins, and one because their clocks run at different rates.
        """
        schedule = self._stage.schedule
        for replica in self._honest:
            replica.grow_calm()
        self._stage.tell("from now on the network is kind")
        first = max(replica.view for replica in self._honest)
        views = range(first, first + num_faulty(schedule.num_members) + 3)
        wait_s = sum(PATIENCE_S / RATES[0] * 2.0 ** min(view, MAX_DOUBLINGS) for view in views)
        self._limit_s = self._stage.now + schedule.num_heights * (wait_s + MAX_REPEAT_S)

    def _stuck(self) -> str:
        places = ", ".join(f"{r.peer} in view {r.view} of height {r.height}" for r in self._honest)
        since = self._stage.now - self._stage.schedule.calm_s
        return f"no decision by everybody, {since:.0f} simulated seconds after the network became kind: {places}"


def simulate(
    seed: int, num_members: int, kind: Kind, *, num_traitors: int | None = None, tell: Tell | None = None
) -> Outcome:
    """Run one trial.

    Args:
        seed: Decides everything.
        num_members: Who vote.
        kind: The protocol under test, or a mutant of it.
        num_traitors: Exactly so many; default: what the protocol bears, at most.
        tell: Hears each event in plain words.

    Raises:
        Violation: a promise was broken.
    """
    schedule = draw(seed, num_members, num_traitors=num_traitors, trusts_members=kind.trusts_members)
    return Trial(schedule, kind, tell).run()
