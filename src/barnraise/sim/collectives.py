"""A seeded world of ranks that run collectives on whole numbers while some of them die: programs and survival that ship.

The clock jumps to the next event of a heap. A stream is a queue of a few chunks with random delays, one per direction,
pair and attempt; the control plane is in order on each link, with random delays. A chunk carries its sum and who is in
it, so that a result tells whose vectors it is made of. The same seed gives the same world, event for event;
`Broken` says which promise was not kept.
"""

import heapq
import itertools
import random
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import numpy as np

from barnraise.collective import survival_messages as messages
from barnraise.collective.program import Chunk, Program, Run, program_of
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
from barnraise.collective.tree import hand_on
from barnraise.sim import mishaps
from barnraise.sim.mishaps import Corrupt, Cut, Hang, Kill, KillSpeaker, Late, Mishap
from barnraise.sim.ranks import Attempt, Frame, Rank, Result, Whole

TICK_S: Final = 0.25
HOP_TIMEOUT_S: Final = 2.0
"""Without a chunk from a rank that has begun, or room for one to it."""
USER_TIMEOUT_S: Final = 300.0
KEEPALIVE_S: Final = 8.0
"""A rank that is stopped for so long loses its control links."""
RELINK_S: Final = 0.5
"""Later it has them again, once it is awake."""
STREAM_CHUNKS: Final = 2
"""Chunks that fit into a stream, on their way or not read."""
DELAY_S: Final = (0.001, 0.02)


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
        self.rng = random.Random(seed)
        self.now = 0.0
        self.num_collectives = num_collectives
        self.ranks = [self._rank(index, dict(enumerate(weights))) for index in range(len(weights))]
        self.struck: list[Mishap] = []
        """Mishaps that happened."""
        self._schedule_of, self._size, self._chunk_elements = schedule_of, size, chunk_elements
        self._horizon_s = horizon_s
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._streams: dict[tuple[int, int, int], deque[Frame]] = defaultdict(deque)
        self._fifo: dict[tuple[object, ...], float] = {}
        self._links_lost: dict[frozenset[int], int] = defaultdict(int)
        self._control_down: set[frozenset[int]] = set()
        self._data_down: set[frozenset[int]] = set()
        self._decisions: dict[int, messages.Decision] = {}
        self.mishaps = list(mishaps)
        self.last_kill_at = 0.0
        self._is_due = False
        """Something may have changed about whether it is over."""
        for mishap in mishaps:
            if isinstance(mishap, Cut):
                self._later(mishap.at_s, self._cut, mishap)
        for rank in self.ranks:
            self._call_next(rank)
            self._later(self.rng.uniform(0, TICK_S), self._tick, rank)

    def _rank(self, index: int, weights: dict[int, int]) -> Rank:
        machine = Survival(rank=index, weights=weights, waits_for=lambda: self._waits_for(index))
        return Rank(index=index, machine=machine, weight=weights[index])

    # ---- running ----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Let the world go on until all who live have all results and nothing is being decided.

        Raises:
            Broken: a promise was not kept.
        """
        while self._heap and not (self._is_due and self._is_over()):
            self._is_due = False
            self.now, _, act = heapq.heappop(self._heap)
            if self.now > self._horizon_s:
                where = {rank.index: (rank.machine.done, rank.machine.is_settled) for rank in self.survivors}
                raise Broken(f"no end after {self._horizon_s:g} simulated seconds: {where}")
            act()
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
                expected = sum(self._vector(self.ranks[member], sequence) for member in result.members)
                if not np.array_equal(result.values, expected):
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

    # ---- time and events --------------------------------------------------------------------------------------

    def _later(self, delay_s: float, act: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), lambda: act(*args)))

    def _in_order(self, key: tuple[object, ...], act: Callable[..., None], *args: object) -> float:
        """Do something after a random delay, but not before what was to be done earlier under the same key."""
        at = max(self._fifo.get(key, 0.0), self.now + self.rng.uniform(*DELAY_S))
        self._fifo[key] = at
        self._later(at - self.now, act, *args)
        return at

    def _sleeps(self, rank: Rank) -> bool:
        return self.now < rank.wakes_at

    def _event(self, rank: Rank, call: Callable[[], list[Effect]]) -> None:
        """Let something happen to a rank, once it is awake."""
        if not rank.is_alive:
            return
        if self._sleeps(rank):
            if rank.wakes_at < float("inf"):
                self._later(rank.wakes_at - self.now, self._event, rank, call)
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
        self._later(TICK_S, self._tick, rank)

    def _call_next(self, rank: Rank) -> None:
        sequence = rank.machine.done + 1
        if sequence > self.num_collectives:
            return
        late = sum(
            m.for_s for m in self.mishaps if isinstance(m, Late) and (m.rank, m.sequence) == (rank.index, sequence)
        )
        delay_s = self.rng.uniform(0, 0.05) + late
        self._later(delay_s, self._event, rank, lambda: rank.machine.entered(self.now, sequence, rank.weight))

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
        to, pair = self.ranks[effect.to], frozenset((rank.index, effect.to))
        if isinstance(effect.message, messages.Decided):
            self._agreed(effect.message.decision)
        if to.is_alive and pair not in self._control_down:
            data, generation = messages.encode(effect.message), self._links_lost[pair]

            def arrive() -> None:
                if self._links_lost[pair] == generation:
                    message = messages.decode(data)
                    self._event(to, lambda: to.machine.heard(self.now, rank.index, message))

            self._in_order(("control", rank.index, effect.to), arrive)
        rank.num_told += 1
        for mishap in self.mishaps:
            if isinstance(mishap, KillSpeaker) and (mishap.rank, mishap.nth) == (rank.index, rank.num_told):
                self.struck.append(mishap)
                self._kill(rank)

    def _agreed(self, decision: messages.Decision) -> None:
        if self._decisions.setdefault(decision.number, decision) != decision:
            raise Broken(f"two decisions have the number {decision.number}")

    # ---- the data plane ---------------------------------------------------------------------------------------

    def _vector(self, rank: Rank, sequence: int) -> Whole:
        """Return a rank's input, multiplied by its weight: int64[size]."""
        return (np.arange(self._size, dtype=np.int64) * (rank.index + 3) + 1000 * sequence) * rank.weight

    def _program(self, plan: AttemptPlan, index: int) -> Program:
        ranks = [member.rank for member in plan.members]
        if plan.holder is None:
            return _program(self._schedule_of, len(ranks), index, self._size, self._chunk_elements)
        schedule = hand_on(len(ranks), ranks.index(plan.holder), [ranks.index(rank) for rank in plan.incomplete])
        return program_of(schedule, index, self._size, self._chunk_elements)

    def _start(self, rank: Rank, plan: AttemptPlan) -> None:
        if rank.attempt is not None or (plan.attempt, plan.sequence) <= rank.started:
            raise Broken(f"rank {rank.index} starts {plan} after {rank.started}")
        ranks = tuple(member.rank for member in plan.members)
        values, members = self._vector(rank, plan.sequence), ranks
        if plan.holder == rank.index:
            if plan.sequence != rank.machine.done:
                raise Broken(f"rank {rank.index} is to hand on {plan.sequence}, which it does not keep")
            values, members = rank.results[plan.sequence].values, rank.results[plan.sequence].members
        run = Run(self._program(plan, ranks.index(rank.index)))
        rank.attempt = Attempt(plan, run, values.copy(), members, self.now, ranks)
        rank.started = (plan.attempt, plan.sequence)
        for other in self.ranks:
            if other.index in ranks and not self._has_stream(rank, other):
                self._later(self.rng.uniform(*DELAY_S), self._break_stream, rank, other)
        self._later(0.0, self._pump, rank)

    def _has_stream(self, rank: Rank, other: Rank) -> bool:
        return other.is_alive and frozenset((rank.index, other.index)) not in self._data_down

    def _pump(self, rank: Rank) -> None:
        """Send and receive what can be."""
        attempt = rank.attempt
        while attempt is not None and rank.attempt is attempt and not self._is_still(rank):
            doings = [self._send, self._receive]
            if self.rng.random() < 0.5:
                doings.reverse()
            if not any(doing(rank, attempt) for doing in doings):
                break
        if attempt is not None and rank.attempt is attempt and attempt.run.is_done and not self._is_still(rank):
            plan = attempt.plan
            self._event(rank, lambda: self._completed(rank, plan))

    def _completed(self, rank: Rank, plan: AttemptPlan) -> list[Effect]:
        attempt = rank.attempt
        if attempt is None or attempt.plan is not plan:
            return rank.machine.completed(self.now, plan.sequence, plan.attempt)
        effects = rank.machine.completed(self.now, plan.sequence, plan.attempt)
        if plan.holder == rank.index:
            rank.attempt = None
        return effects

    def _is_still(self, rank: Rank) -> bool:
        return not rank.is_alive or self._sleeps(rank) or rank.hangs

    def _send(self, rank: Rank, attempt: Attempt) -> bool:
        send = attempt.run.next_send()
        if send is None or rank.attempt is not attempt:
            return False
        to = self.ranks[attempt.ranks[send.to]]
        stream = self._streams[rank.index, to.index, attempt.plan.attempt]
        if len(stream) >= STREAM_CHUNKS or not self._has_stream(rank, to) or self._is_struck(rank, attempt):
            return False
        values = attempt.values[_slice(send.chunk)].copy()
        frame = Frame(attempt.plan.sequence, 0.0, values, attempt.members, self._damages(rank, attempt))
        frame.arrives_at = self._in_order(("data", rank.index, to.index), self._pump, to)
        stream.append(frame)
        attempt.run.note_sent()
        self._note_op(rank, attempt)
        return True

    def _receive(self, rank: Rank, attempt: Attempt) -> bool:
        receive = attempt.run.next_receive()
        if receive is None or rank.attempt is not attempt:
            return False
        sender, plan = self.ranks[attempt.ranks[receive.sender]], attempt.plan
        stream = self._streams[sender.index, rank.index, plan.attempt]
        if not stream or stream[0].arrives_at > self.now or self._is_struck(rank, attempt):
            return False
        frame = stream.popleft()
        self._later(0.0, self._pump, sender)
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
        if send is not None:
            to = attempt.ranks[send.to]
            if len(self._streams[index, to, epoch]) >= STREAM_CHUNKS:
                return to
        if receive is not None:
            sender = attempt.ranks[receive.sender]
            stream = self._streams[sender, index, epoch]
            if not stream or stream[0].arrives_at > self.now:
                return sender
        return None

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
        for mishap in self.mishaps:
            if (
                not isinstance(mishap, Kill | mishaps.Stop | Hang)
                or (mishap.rank, mishap.sequence, mishap.step) != (rank.index, sequence, rank.num_ops[sequence])
                or mishap in self.struck
            ):
                continue
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
                self._lose_link(rank, other)
                self._later(self.rng.uniform(*DELAY_S), self._break_stream, other, rank)

    def _lose_link(self, rank: Rank, other: Rank) -> None:
        """Tell ``other`` that its link to ``rank`` is down, after all that was on its way."""
        if frozenset((rank.index, other.index)) not in self._control_down:
            key = ("control", rank.index, other.index)
            self._in_order(key, self._event, other, lambda: other.machine.peer_down(self.now, rank.index))

    def _sleep(self, rank: Rank, for_s: float | None) -> None:
        rank.wakes_at = float("inf") if for_s is None else self.now + for_s
        self._later(KEEPALIVE_S, self._miss, rank, rank.wakes_at)
        if for_s is not None:
            self._later(for_s, self._pump, rank)

    def _miss(self, rank: Rank, wakes_at: float) -> None:
        """Let the others drop their links to a rank that is still asleep; it finds new ones when it wakes up."""
        if not (rank.is_alive and self._sleeps(rank) and rank.wakes_at == wakes_at):
            return
        for other in self.ranks:
            if other is not rank and other.is_alive:
                self._part(rank, other, has_data=True, has_control=True)
                if wakes_at < float("inf"):
                    self._later(wakes_at + RELINK_S - self.now, self._join, rank, other, True, True)

    def _cut(self, cut: Cut) -> None:
        self.struck.append(cut)
        one, other = self.ranks[cut.one], self.ranks[cut.other]
        self._part(one, other, has_data=cut.has_data, has_control=cut.has_control)
        self._later(cut.for_s, self._join, one, other, cut.has_data, cut.has_control)

    def _part(self, one: Rank, other: Rank, *, has_data: bool, has_control: bool) -> None:
        pair = frozenset((one.index, other.index))
        if has_control:
            self._links_lost[pair] += 1
            self._control_down.add(pair)
            self._event(one, lambda: one.machine.peer_down(self.now, other.index))
            self._event(other, lambda: other.machine.peer_down(self.now, one.index))
        if has_data:
            self._data_down.add(pair)
            self._break_stream(one, other)
            self._break_stream(other, one)

    def _join(self, one: Rank, other: Rank, has_data: bool, has_control: bool) -> None:
        pair = frozenset((one.index, other.index))
        if has_data:
            self._data_down.discard(pair)
        if has_control and pair in self._control_down:
            self._control_down.discard(pair)
            if one.is_alive and other.is_alive:
                self._event(one, lambda: one.machine.peer_up(self.now, other.index))
                self._event(other, lambda: other.machine.peer_up(self.now, one.index))


def _slice(chunk: Chunk) -> slice:
    return slice(chunk.start, chunk.stop)


@cache
def _program(
    schedule_of: Callable[[int], Schedule], world_size: int, index: int, size: int, chunk_elements: int
) -> Program:
    return program_of(schedule_of(world_size), index, size, chunk_elements)
