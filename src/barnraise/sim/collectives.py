"""A seeded world of ranks that run collectives on whole numbers while some of them die: programs and survival that ship.

The clock jumps to the next event of a heap. A stream is a queue of a few chunks with random delays, one per direction,
pair and attempt; the control plane is in order on each link, with random delays. A chunk carries its sum and who is in
it, so that a result tells whose vectors it is made of. The same seed gives the same world, event for event;
`Broken` says which promise was not kept.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from barnraise.collective import survival_messages as messages
from barnraise.collective.program import Chunk, Run
from barnraise.collective.schedule import Action, Schedule
from barnraise.collective.survival import Survival
from barnraise.collective.survival_effects import (
    AttemptPlan,
    Deliver,
    Effect,
    Ended,
    Lost,
    Named,
    Start,
    Stop,
    Tell,
)
from barnraise.collective.survival_messages import Fault
from barnraise.sim import mishaps
from barnraise.sim.control import Control
from barnraise.sim.mishaps import Corrupt, Cut, Hang, Kill, KillSpeaker, Late, Mishap, Strike
from barnraise.sim.ranks import Attempt, Rank, Result
from barnraise.sim.streams import Frame, Streams
from barnraise.sim.sums import Sums
from barnraise.sim.timeline import Timeline

TICK_S: Final = 0.25
HOP_TIMEOUT_S: Final = 2.0
"""Without a chunk from a rank that has begun, or room for one to it."""
USER_TIMEOUT_S: Final = 300.0
KEEPALIVE_S: Final = 8.0
"""A rank that is stopped for so long loses its control links."""
RELINK_S: Final = 0.5
"""Later it has them again, once it is awake."""


class Broken(AssertionError):
    """A promise was broken in this world."""


class World:
    """Some ranks, a schedule, a seed, some mishaps. `run` until everybody who lives has all results.

    Args:
        seed: Draws all delays.
        schedule_of: Returns the schedule for a number of ranks.
        weights: Of the vectors of rank 0, 1, ...
        num_collectives: Each rank calls so many, one after the other.
        mishaps: What goes wrong.
        size: Elements of a vector.
        chunk_elements: Most elements of a chunk.
    """

    def __init__(
        self,
        *,
        seed: int,
        schedule_of: Callable[[int], Schedule],
        weights: Sequence[int],
        num_collectives: int = 2,
        mishaps: Sequence[Mishap] = (),
        size: int = 24,
        chunk_elements: int = 24,
        horizon_s: float = 3000.0,
    ) -> None:
        self.num_collectives = num_collectives
        self.ranks = [self._rank(index, dict(enumerate(weights))) for index in range(len(weights))]
        self.struck: list[Mishap] = []
        """Mishaps that happened."""
        self._sums = Sums(schedule_of, weights, size, chunk_elements)
        self._horizon_s = horizon_s
        self._time = Timeline(seed)
        self._streams = Streams()
        self._control = Control(self._time, self._event)
        self._decisions: dict[int, messages.Decision] = {}
        self.mishaps = list(mishaps)
        self._strikes: dict[tuple[int, int, int], list[Strike]] = defaultdict(list)
        """Before which send or receive, by rank, collective and number."""
        self.last_kill_at = 0.0
        self._is_due = False
        """Something may have changed about whether it is over."""
        for mishap in mishaps:
            if isinstance(mishap, Cut):
                self._time.later(mishap.at_s, self._cut, mishap)
            elif isinstance(mishap, Strike):
                self._strikes[mishap.rank, mishap.sequence, mishap.step].append(mishap)
        for rank in self.ranks:
            self._call_next(rank)
            self._time.later(self._time.rng.uniform(0, TICK_S), self._tick, rank)

    def _rank(self, index: int, weights: dict[int, int]) -> Rank:
        machine = Survival(rank=index, weights=weights, waits_for=lambda: self._waits_for(index))
        return Rank(index=index, machine=machine, weight=weights[index])

    @property
    def now(self) -> float:
        """Return the simulated seconds since the start."""
        return self._time.now

    # ---- running ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Let the world go on until all who live have all results and nothing is being decided.

        Raises:
            Broken: a promise was not kept.
        """
        while not self._time.is_over and not (self._is_due and self._is_over()):
            self._is_due = False
            self._time.step()
            if self.now > self._horizon_s:
                where = {rank.index: (rank.machine.done, rank.machine.is_settled) for rank in self.survivors}
                raise Broken(f"no end after {self._horizon_s:g} simulated seconds: {where}")
        self._check()

    @property
    def survivors(self) -> list[Rank]:
        """Return the ranks that live and are in, by the newest decision."""
        members = {rank.index for rank in self.ranks}
        if self._decisions:
            members = {member.rank for member in self._decisions[max(self._decisions)].members}
        return [rank for rank in self._fit if rank.index in members]

    @property
    def _fit(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.is_well and not self._sleeps(rank) and not rank.hangs]

    def _is_over(self) -> bool:
        waking = [rank for rank in self.ranks if rank.is_alive and 0 < rank.wakes_at < float("inf")]
        if any(self.now < rank.wakes_at + 2 * RELINK_S for rank in waking):
            return False
        if not all(rank.machine.is_settled and rank.attempt is None for rank in self._fit):
            return False
        return all(rank.machine.done == self.num_collectives for rank in self.survivors)

    def _check(self) -> None:
        for rank in self.ranks:
            for sequence, result in rank.results.items():
                if not self._sums.is_sum(result.values, result.members, sequence):
                    raise Broken(
                        f"rank {rank.index} has a result of {sequence} that is not the sum of {result.members}"
                    )
        for sequence in range(1, self.num_collectives + 1):
            ends = {rank.results[sequence].members for rank in self.survivors if sequence in rank.results}
            if len(ends) > 1:
                raise Broken(f"collective {sequence} came to {ends}")
        for rank in self.survivors:
            if sorted(rank.results) != [*range(1, self.num_collectives + 1)]:
                raise Broken(f"rank {rank.index} has the results of {sorted(rank.results)} only")

    # ---- events and calls -------------------------------------------------------------------------------------

    def _sleeps(self, rank: Rank) -> bool:
        return self.now < rank.wakes_at

    def _event(self, rank: Rank, call: Callable[[], list[Effect]]) -> None:
        """Let something happen to a rank, once it is awake."""
        if not rank.is_alive:
            return
        if self._sleeps(rank):
            if rank.wakes_at < float("inf"):
                self._time.later(rank.wakes_at - self.now, self._event, rank, call)
            return
        for effect in call():
            if not rank.is_alive:
                return
            self._perform(rank, effect)

    def _tick(self, rank: Rank) -> None:
        if not rank.is_alive:
            return
        self._event(rank, lambda: rank.machine.tick(self.now))
        self._look_for_stall(rank)
        self._is_due = True
        self._time.later(TICK_S, self._tick, rank)

    def _call_next(self, rank: Rank) -> None:
        sequence = rank.machine.done + 1
        if sequence > self.num_collectives:
            return
        late = sum(
            m.for_s for m in self.mishaps if isinstance(m, Late) and (m.rank, m.sequence) == (rank.index, sequence)
        )
        delay_s = self._time.rng.uniform(0, 0.05) + late
        self._time.later(delay_s, self._event, rank, lambda: rank.machine.entered(self.now, sequence, rank.weight))

    # ---- performing effects -----------------------------------------------------------------------------------

    def _perform(self, rank: Rank, effect: Effect) -> None:
        match effect:
            case Tell():
                self._tell(rank, effect)
            case Start():
                self._start(rank, effect.plan)
            case Stop():
                if rank.attempt is None or rank.started != (effect.attempt, effect.sequence):
                    raise Broken(f"rank {rank.index} stops {effect} that does not run")
                rank.attempt = None
            case Deliver():
                self._deliver(rank, effect.sequence)
            case Lost():
                rank.lost[effect.rank] = effect.reason
                rank.last_loss_at = self.now
            case Named():
                rank.named[effect.rank] = effect.reason
            case Ended():
                rank.ended = effect.reason

    def _deliver(self, rank: Rank, sequence: int) -> None:
        attempt = rank.attempt
        if attempt is None or attempt.plan.sequence != sequence or sequence in rank.results or not attempt.run.is_done:
            raise Broken(f"rank {rank.index} delivers {sequence}, which it has not completed")
        rank.results[sequence] = Result(attempt.values, attempt.members)
        rank.attempt = None
        self._call_next(rank)

    def _tell(self, rank: Rank, effect: Tell) -> None:
        if isinstance(effect.message, messages.Decided):
            decision = effect.message.decision
            if self._decisions.setdefault(decision.number, decision) != decision:
                raise Broken(f"two decisions have the number {decision.number}")
        self._control.tell(rank, self.ranks[effect.to], effect.message)
        rank.num_told += 1
        for mishap in self.mishaps:
            if isinstance(mishap, KillSpeaker) and (mishap.rank, mishap.nth) == (rank.index, rank.num_told):
                self.struck.append(mishap)
                self._kill(rank)

    # ---- the data plane ---------------------------------------------------------------------------------------

    def _start(self, rank: Rank, plan: AttemptPlan) -> None:
        if rank.attempt is not None or (plan.attempt, plan.sequence) <= rank.started:
            raise Broken(f"rank {rank.index} starts {plan} after {rank.started}")
        ranks = tuple(member.rank for member in plan.members)
        values, members = self._sums.vector(rank.index, plan.sequence), ranks
        if plan.holder == rank.index:
            if plan.sequence != rank.machine.done:
                raise Broken(f"rank {rank.index} is to hand on {plan.sequence}, which it does not keep")
            values, members = rank.results[plan.sequence].values, rank.results[plan.sequence].members
        run = Run(self._sums.program(plan, rank.index))
        rank.attempt = Attempt(plan, run, values.copy(), members, self.now, ranks)
        rank.started = (plan.attempt, plan.sequence)
        for other in self.ranks:
            if other.index in ranks and not self._has_stream(rank, other):
                self._time.delayed(self._break_stream, rank, other)
        self._time.later(0.0, self._pump, rank)

    def _has_stream(self, rank: Rank, other: Rank) -> bool:
        return other.is_alive and not self._streams.is_cut(rank.index, other.index)

    def _pump(self, rank: Rank) -> None:
        """Send and receive what can be."""
        attempt = rank.attempt
        if attempt is None or self._is_still(rank):
            return
        random = self._time.rng.random
        while self._send_or_receive(rank, attempt, is_send_first=random() < 0.5):
            pass
        if rank.attempt is attempt and attempt.run.is_done and not self._is_still(rank):
            plan = attempt.plan
            self._event(rank, lambda: self._completed(rank, plan))

    def _send_or_receive(self, rank: Rank, attempt: Attempt, *, is_send_first: bool) -> bool:
        """Move one chunk; tell whether one could be moved."""
        if is_send_first:
            return self._send(rank, attempt) or self._receive(rank, attempt)
        return self._receive(rank, attempt) or self._send(rank, attempt)

    def _completed(self, rank: Rank, plan: AttemptPlan) -> list[Effect]:
        if rank.attempt is not None and rank.attempt.plan is plan and plan.holder == rank.index:
            rank.attempt = None
        return rank.machine.completed(self.now, plan.sequence, plan.attempt)

    def _is_still(self, rank: Rank) -> bool:
        return not rank.is_alive or self._sleeps(rank) or rank.hangs

    def _send(self, rank: Rank, attempt: Attempt) -> bool:
        send = attempt.run.next_send()
        if send is None or rank.attempt is not attempt:
            return False
        to, way = self.ranks[attempt.ranks[send.to]], (rank.index, attempt.ranks[send.to], attempt.plan.attempt)
        if self._streams.is_full(*way) or not self._has_stream(rank, to) or self._is_struck(rank, attempt):
            return False
        values = attempt.values[_slice(send.chunk)].copy()
        frame = Frame(attempt.plan.sequence, 0.0, values, attempt.members, self._damages(rank, attempt))
        frame.arrives_at = self._time.in_order(("data", rank.index, to.index), self._pump, to)
        self._streams.between(*way).append(frame)
        attempt.run.note_sent()
        self._note_op(rank, attempt)
        return True

    def _receive(self, rank: Rank, attempt: Attempt) -> bool:
        receive = attempt.run.next_receive()
        if receive is None or rank.attempt is not attempt:
            return False
        sender, plan = self.ranks[attempt.ranks[receive.sender]], attempt.plan
        way = (sender.index, rank.index, plan.attempt)
        if not self._streams.has_arrived(*way, self.now) or self._is_struck(rank, attempt):
            return False
        if self._streams.is_full(*way):
            self._time.later(0.0, self._pump, sender)
        frame = self._streams.between(*way).popleft()
        if frame.sequence != plan.sequence:
            raise Broken(f"rank {rank.index} in {plan.sequence} reads a chunk of {frame.sequence}")
        if frame.is_damaged:
            self._failed(rank, attempt, Fault.DAMAGED, sender.index, "a chunk does not authenticate")
            return False
        if receive.action is Action.REDUCE:
            attempt.values[_slice(receive.chunk)] += frame.values
        else:
            attempt.values[_slice(receive.chunk)] = frame.values
        attempt.members = frame.members
        attempt.run.note_received()
        self._note_op(rank, attempt)
        return True

    def _note_op(self, rank: Rank, attempt: Attempt) -> None:
        attempt.progress_at = self.now
        rank.num_ops[attempt.plan.sequence] += 1

    def _failed(self, rank: Rank, attempt: Attempt, fault: Fault, culprit: int, reason: str) -> None:
        plan = attempt.plan
        self._event(rank, lambda: rank.machine.failed(self.now, plan.sequence, plan.attempt, fault, culprit, reason))

    def _break_stream(self, rank: Rank, other: Rank) -> None:
        """Let a rank notice that it can't reach another one, if it needs to."""
        attempt = rank.attempt
        if attempt is None or self._is_still(rank) or self._has_stream(rank, other):
            return
        run = attempt.run
        ends = {send.to for send in run.program.sends[run.num_sent :]}
        ends |= {receive.sender for receive in run.program.receives[run.num_received :]}
        if other.index in {attempt.ranks[end] for end in ends}:
            self._failed(rank, attempt, Fault.BROKEN, other.index, "the stream broke")

    def _waits_for(self, index: int) -> int | None:
        rank = self.ranks[index]
        attempt = rank.attempt
        if attempt is None or rank.hangs:
            return None
        send, receive, epoch = attempt.run.next_send(), attempt.run.next_receive(), attempt.plan.attempt
        to = None if send is None else attempt.ranks[send.to]
        sender = None if receive is None else attempt.ranks[receive.sender]
        if to is not None and self._streams.is_full(index, to, epoch):
            return to
        is_waiting = sender is not None and not self._streams.has_arrived(sender, index, epoch, self.now)
        return sender if is_waiting else None

    def _look_for_stall(self, rank: Rank) -> None:
        attempt = rank.attempt
        if attempt is None or self._is_still(rank) or self.now < attempt.progress_at + HOP_TIMEOUT_S:
            return
        culprit = self._waits_for(rank.index)
        if culprit is None:
            return
        if self.ranks[culprit].started >= rank.started:
            self._failed(rank, attempt, Fault.STALLED, culprit, f"nothing moved for {HOP_TIMEOUT_S:g} s")
        elif self.now >= attempt.progress_at + USER_TIMEOUT_S:
            self._failed(rank, attempt, Fault.LATE, culprit, f"it did not call within {USER_TIMEOUT_S:g} s")

    # ---- mishaps ----------------------------------------------------------------------------------------------

    def _is_struck(self, rank: Rank, attempt: Attempt) -> bool:
        """Let happen what is to happen before this send or receive; tell whether the rank can't go on."""
        sequence = attempt.plan.sequence
        for mishap in self._strikes.pop((rank.index, sequence, rank.num_ops[sequence]), ()):
            self.struck.append(mishap)
            match mishap:
                case Kill():
                    self._kill(rank)
                case mishaps.Stop():
                    self._sleep(rank, mishap.for_s)
                case Hang():
                    rank.hangs = True
        return self._is_still(rank)

    def _damages(self, rank: Rank, attempt: Attempt) -> bool:
        """Tell whether the chunk that is being sent arrives damaged."""
        for mishap in self.mishaps:
            if (
                isinstance(mishap, Corrupt)
                and (mishap.rank, mishap.sequence) == (rank.index, attempt.plan.sequence)
                and rank.num_ops[mishap.sequence] >= mishap.step
                and not attempt.is_damaged
                and (mishap.is_lasting or mishap not in self.struck)
            ):
                attempt.is_damaged = True
                self.struck.append(mishap)
                return True
        return False

    def _kill(self, rank: Rank) -> None:
        rank.is_alive = False
        rank.attempt = None
        self.last_kill_at = self.now
        for other in self.ranks:
            if other is not rank:
                self._control.died(rank, other)
                self._time.delayed(self._break_stream, other, rank)

    def _sleep(self, rank: Rank, for_s: float | None) -> None:
        rank.wakes_at = float("inf") if for_s is None else self.now + for_s
        self._time.later(KEEPALIVE_S, self._miss, rank, rank.wakes_at)
        if for_s is not None:
            self._time.later(for_s, self._pump, rank)

    def _miss(self, rank: Rank, wakes_at: float) -> None:
        """Let the others drop their links to a rank that is still asleep; it finds new ones when it wakes up."""
        if not (rank.is_alive and self._sleeps(rank) and rank.wakes_at == wakes_at):
            return
        for other in self.ranks:
            if other is not rank and other.is_alive:
                self._part(rank, other, has_data=True, has_control=True)
                if wakes_at < float("inf"):
                    self._time.later(wakes_at + RELINK_S - self.now, self._join, rank, other, True, True)

    def _cut(self, cut: Cut) -> None:
        self.struck.append(cut)
        one, other = self.ranks[cut.one], self.ranks[cut.other]
        self._part(one, other, has_data=cut.has_data, has_control=cut.has_control)
        self._time.later(cut.for_s, self._join, one, other, cut.has_data, cut.has_control)

    def _part(self, one: Rank, other: Rank, *, has_data: bool, has_control: bool) -> None:
        if has_control:
            self._control.part(one, other)
        if has_data:
            self._streams.cut(one.index, other.index)
            self._break_stream(one, other)
            self._break_stream(other, one)

    def _join(self, one: Rank, other: Rank, has_data: bool, has_control: bool) -> None:
        if has_data:
            self._streams.join(one.index, other.index)
        if has_control:
            self._control.join(one, other)


def _slice(chunk: Chunk) -> slice:
    return slice(chunk.start, chunk.stop)
