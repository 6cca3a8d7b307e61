"""Collectives of many ranks over a link graph, in simulated time: the real programs of all ranks, no bytes, no sockets.

Theory of operation. Every rank has its `Run`, the same that a real rank's threads ask what is next, and a sending and a
receiving thread that each do one chunk at a time. What they take, and how lines are shared, is the cost model's
(`collective.cost`); but nothing here walks a schedule in its own order. Events go by time, from a heap:

    sealed     the sending thread is done with a chunk, which goes onto the uplink; the thread asks for the next one
    reaches    it is at the other end of its link, and takes its turn on the downlink
    arrived    it waits in its connection until the receiving thread wants it
    opened     the receiving thread is done with it, and both threads ask for the next one

So an error in a program, a deadlock or a wrong dependency shows here, and so does a cost model that is wrong about order.
An event takes some 3 us: trees, rooted stars and hierarchies of thousands of ranks take seconds; a schedule of N parts that
all move between N ranks has 2 N (N - 1) transfers, and past N = 512 `collective.closed_forms` stands for it.
"""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

import numpy as np

from barnraise.collective.cost import Job
from barnraise.collective.links import Links
from barnraise.collective.program import Program, Receive, Run, Send, program_of
from barnraise.collective.schedule import Schedule, Transfer
from barnraise.errors import LocalError

MAX_TRANSFERS: Final = 600_000
"""Some 1 GB of programs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a simulated collective took."""

    makespan_s: float
    """Until the last rank had everything."""
    finish_s: tuple[float, ...]
    """By rank."""
    idle_s: tuple[float, ...]
    """By rank: how much of the makespan its uplink had nothing to send."""
    num_events: int


def simulate(schedule: Schedule, links: Links, job: Job) -> Outcome:
    """Return what a collective takes over these links, all ranks starting at once.

    Args:
        schedule: Of as many ranks as ``links`` has.
        links: Latency and bandwidth, by rank.
        job: What is moved, in which chunks.

    Raises:
        LocalError: the schedule has too many transfers for this machine.
    """
    if len(schedule.transfers) > MAX_TRANSFERS:
        raise LocalError(
            f"{len(schedule.transfers)} transfers, more than {MAX_TRANSFERS}: take collective.closed_forms instead"
        )
    return run_programs(programs(schedule, job), links, job)


def run_programs(all_programs: Sequence[Program], links: Links, job: Job) -> Outcome:
    """Return what the programs of all ranks take.

    Raises:
        LocalError: they deadlock.
    """
    return _World(all_programs, links, job).run()


def programs(schedule: Schedule, job: Job) -> list[Program]:
    """Return all ranks' programs, each made from the transfers that concern it: N times faster than from all."""
    own: list[list[Transfer]] = [[] for _ in range(schedule.world_size)]
    for transfer in schedule.transfers:
        own[transfer.sender].append(transfer)
        own[transfer.receiver].append(transfer)
    return [
        program_of(replace(schedule, transfers=tuple(transfers)), rank, job.size, job.chunk_elements)
        for rank, transfers in enumerate(own)
    ]


class _Event(Enum):
    SEALED = auto()
    REACHES = auto()
    ARRIVED = auto()
    OPENED = auto()


class _Rank:
    """One rank's program, threads and lines."""

    def __init__(self, program: Program) -> None:
        self.run = Run(program)
        self.is_sealing = self.is_opening = False
        self.last_to = -1
        self.uplink_free = self.far_out_free = 0.0
        self.downlink_free = self.far_in_free = 0.0
        self.uplink_busy_s = self.finish_s = 0.0
        self.arrived: Counter[int] = Counter()
        """Chunks that wait in the connections, by sender; each connection keeps its order."""


class _World:
    """All ranks and the events to come."""

    def __init__(self, all_programs: Sequence[Program], links: Links, job: Job) -> None:
        self.job = job
        self.ranks = [_Rank(program) for program in all_programs]
        self.latency: list[list[float]] = links.latency_s.tolist()
        self.speed: list[list[float]] = np.minimum(links.bandwidth_bytes_s, links.uplink_bytes_s[:, None]).tolist()
        self.up: list[float] = links.uplink_bytes_s.tolist()
        self.down: list[float] = links.downlink_bytes_s.tolist()
        self.region: list[int] = links.region.tolist()
        self.link_free: dict[tuple[int, int], float] = {}
        self.events: list[tuple[float, int, _Event, int, int, float]] = []
        """(when, number, what, sender or rank, receiver, bytes)."""
        self.num_events = 0
        self.now = 0.0

    def run(self) -> Outcome:
        """Carry out all programs."""
        for rank in range(len(self.ranks)):
            self._next(rank)
        while self.events:
            self.now, _, event, sender, receiver, size_bytes = heapq.heappop(self.events)
            self._happen(event, sender, receiver, size_bytes)
        stuck = [number for number, rank in enumerate(self.ranks) if not rank.run.is_done]
        if stuck:
            raise LocalError(f"the schedule deadlocks: ranks {stuck[:8]} wait for ever")
        makespan_s = max((rank.finish_s for rank in self.ranks), default=0.0)
        return Outcome(
            makespan_s=makespan_s,
            finish_s=tuple(rank.finish_s for rank in self.ranks),
            idle_s=tuple(max(0.0, makespan_s - rank.uplink_busy_s) for rank in self.ranks),
            num_events=self.num_events,
        )

    def _happen(self, event: _Event, sender: int, receiver: int, size_bytes: float) -> None:
        match event:
            case _Event.SEALED:
                rank = self.ranks[sender]
                rank.is_sealing, rank.finish_s = False, self.now
                rank.run.note_sent()
                self._depart(sender, receiver, size_bytes)
                self._next(sender)
            case _Event.REACHES:
                self._push(self._landed(sender, receiver, size_bytes), _Event.ARRIVED, sender, receiver)
            case _Event.ARRIVED:
                self.ranks[receiver].arrived[sender] += 1
                self._open(receiver)
            case _Event.OPENED:
                rank = self.ranks[receiver]
                rank.is_opening, rank.finish_s = False, self.now
                rank.run.note_received()
                self._next(receiver)

    def _next(self, rank: int) -> None:
        self._seal(rank)
        self._open(rank)

    def _seal(self, number: int) -> None:
        """Give the sending thread its next chunk, if it is free and the chunk is ready."""
        rank = self.ranks[number]
        send = None if rank.is_sealing else rank.run.next_send()
        if send is None:
            return
        elements, factor = _elements(send), 1.0
        if rank.last_to not in (-1, send.to):
            factor = self.job.effort.turn_factor
        rank.is_sealing, rank.last_to = True, send.to
        size_bytes = factor * self.job.wire_bytes(send.action, elements)
        took_s = factor * self.job.send_s(send.action, elements)
        self._push(self.now + took_s, _Event.SEALED, number, send.to, size_bytes)

    def _open(self, number: int) -> None:
        """Give the receiving thread the chunk that is due, if it is free and the chunk is here."""
        rank = self.ranks[number]
        receive = None if rank.is_opening else rank.run.next_receive()
        if receive is None or not rank.arrived[receive.sender]:
            return
        rank.arrived[receive.sender] -= 1
        rank.is_opening = True
        elements = _elements(receive)
        took_s = self.job.receive_s(receive.action, elements)
        if receive.finishes:
            took_s += self.job.finish_s(elements)
        self._push(self.now + took_s, _Event.OPENED, receive.sender, number)

    def _depart(self, sender: int, receiver: int, size_bytes: float) -> None:
        """Put a sealed chunk on the uplink and on its link, behind what is there."""
        rank = self.ranks[sender]
        leaves = max(self.now, rank.uplink_free)
        took_s = size_bytes / self.up[sender]
        rank.uplink_free = leaves + took_s
        rank.uplink_busy_s += took_s
        line_s = size_bytes / self.speed[sender][receiver]
        if self.region[sender] == self.region[receiver]:
            through = max(leaves, self.link_free.get((sender, receiver), 0.0)) + line_s
            self.link_free[sender, receiver] = through
        else:
            through = rank.far_out_free = max(leaves, rank.far_out_free) + line_s
        self._push(through + self.latency[sender][receiver], _Event.REACHES, sender, receiver, size_bytes)

    def _landed(self, sender: int, receiver: int, size_bytes: float) -> float:
        """Return when a chunk is through the receiver's lines, behind what came before it."""
        rank, arrived = self.ranks[receiver], self.now
        if self.region[sender] != self.region[receiver]:
            arrived = max(arrived, rank.far_in_free + size_bytes / self.speed[sender][receiver])
            rank.far_in_free = arrived
        rank.downlink_free = max(arrived, rank.downlink_free + size_bytes / self.down[receiver])
        return rank.downlink_free

    def _push(self, when: float, event: _Event, sender: int, receiver: int, size_bytes: float = 0.0) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (when, self.num_events, event, sender, receiver, size_bytes))


def _elements(move: Send | Receive) -> int:
    return move.chunk.stop - move.chunk.start
