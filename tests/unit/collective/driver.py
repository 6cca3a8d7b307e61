"""Runs all ranks of a collective in memory, one small event at a time, in any order that the rules allow; no threads."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from barnraise.collective.program import Chunk, Program, Receive, Run, Send, program_of
from barnraise.collective.schedule import Action, Schedule

GARBAGE = 77


@dataclass
class Rank:
    """One rank: its input, which nobody changes, and the memory where the result grows."""

    run: Run
    given: npt.NDArray[Any]
    work: npt.NDArray[Any]
    factor: int
    """What a finished value is multiplied with, once: stands for the division by the weights and the codec."""
    sending: Send | None = None
    seen: npt.NDArray[Any] | None = None
    receiving: Receive | None = None
    held: npt.NDArray[Any] | None = None

    def read(self, send: Send) -> npt.NDArray[Any]:
        """Return a copy of what a send reads now."""
        source = self.given if send.is_first else self.work
        return source[_span(send.chunk)].copy()


@dataclass
class Driver:
    """All ranks and the links between them.

    A send is begun as soon as its program allows it, and reads its memory when it ends, as late as chance has it. A
    receive writes garbage into its memory when it begins, and the right values when it ends. So whatever is read too
    early or overwritten too soon shows.
    """

    ranks: list[Rank]
    capacity: int
    links: dict[tuple[int, int], deque[tuple[Chunk, npt.NDArray[Any]]]] = field(default_factory=dict)

    def events(self) -> list[tuple[str, int]]:
        """Return everything that may happen next."""
        found = []
        for number, rank in enumerate(self.ranks):
            if rank.sending is None:
                if rank.run.next_send() is not None:
                    found.append(("begin_send", number))
            elif len(self._link(number, rank.sending.to)) < self.capacity:
                found.append(("end_send", number))
            if rank.receiving is not None:
                found.append(("end_receive", number))
            else:
                due = rank.run.next_receive()
                if due is not None and self._link(due.sender, number):
                    found.append(("begin_receive", number))
        return found

    def happen(self, event: str, number: int) -> None:
        """Let one of the events happen."""
        getattr(self, f"_{event}")(number, self.ranks[number])

    @property
    def is_done(self) -> bool:
        """Tell whether all ranks are done and nothing is left on the way."""
        return all(rank.run.is_done for rank in self.ranks) and not any(self.links.values())

    def _link(self, sender: int, receiver: int) -> deque[tuple[Chunk, npt.NDArray[Any]]]:
        return self.links.setdefault((sender, receiver), deque())

    def _begin_send(self, number: int, rank: Rank) -> None:
        rank.sending = rank.run.next_send()
        assert rank.sending is not None
        rank.seen = rank.read(rank.sending)

    def _end_send(self, number: int, rank: Rank) -> None:
        send, seen = rank.sending, rank.seen
        assert send is not None
        assert seen is not None
        values = rank.read(send)
        assert values.tobytes() == seen.tobytes(), f"rank {number}: {send} was overwritten before it was out"
        self._link(number, send.to).append((send.chunk, values))
        rank.sending = rank.seen = None
        rank.run.note_sent()

    def _begin_receive(self, number: int, rank: Rank) -> None:
        receive = rank.run.next_receive()
        assert receive is not None
        chunk, values = self._link(receive.sender, number).popleft()
        assert chunk == receive.chunk, f"rank {number} expects {receive} and gets {chunk}"
        span = _span(chunk)
        if receive.action is Action.REDUCE:
            values = values + (rank.given if receive.is_first else rank.work)[span]
        rank.receiving, rank.held = receive, values * rank.factor if receive.finishes else values
        rank.work[span] = GARBAGE

    def _end_receive(self, number: int, rank: Rank) -> None:
        receive, values = rank.receiving, rank.held
        assert receive is not None
        assert values is not None
        rank.work[_span(receive.chunk)] = values
        rank.receiving = rank.held = None
        rank.run.note_received()


def programs_of(schedule: Schedule, size: int, chunk_elements: int, alignment: int = 1) -> list[Program]:
    """Return the programs of all ranks."""
    return [program_of(schedule, rank, size, chunk_elements, alignment) for rank in range(schedule.world_size)]


def drive(
    programs: Sequence[Program],
    inputs: Sequence[npt.NDArray[Any]],
    random: Random,
    *,
    capacity: int = 1,
    factor: int = 1,
) -> list[npt.NDArray[Any]]:
    """Run all programs to their end in a random order, and return what each rank has then.

    Raises:
        AssertionError: nothing can happen though something is left (a deadlock), or memory is misused.
    """
    ranks = [
        Rank(run=Run(program), given=given, work=np.full_like(given, GARBAGE), factor=factor)
        for program, given in zip(programs, inputs, strict=True)
    ]
    for rank in ranks:
        for chunk in rank.run.program.finished:
            rank.work[_span(chunk)] = rank.given[_span(chunk)] * factor
    driver = Driver(ranks, capacity)
    while events := driver.events():
        driver.happen(*random.choice(events))
    assert driver.is_done, f"deadlock: {[(rank.run.num_sent, rank.run.num_received) for rank in ranks]}"
    return [rank.work for rank in ranks]


def drive_in_step(programs: Sequence[Program], *, latency: int = 1, capacity: int = 1 << 30) -> int:
    """Return how many ticks all programs take where each rank sends one chunk and receives one in a tick.

    A chunk may be received ``latency`` ticks after it was sent. All chunks count as equally long.
    """
    runs = [Run(program) for program in programs]
    links: dict[tuple[int, int], deque[int]] = {}
    tick = 0
    while not all(run.is_done for run in runs):
        tick += 1
        arriving = []
        for rank, run in enumerate(runs):
            due = run.next_receive()
            if due is not None and (link := links.get((due.sender, rank))) and link[0] <= tick:
                arriving.append((run, link))
        for rank, run in enumerate(runs):
            send = run.next_send()
            link = links.setdefault((rank, send.to), deque()) if send is not None else None
            if link is not None and len(link) < capacity:
                link.append(tick + latency)
                run.note_sent()
        for run, link in arriving:
            link.popleft()
            run.note_received()
        assert tick < 1_000_000, "deadlock"
    return tick


def _span(chunk: Chunk) -> slice:
    return slice(chunk.start, chunk.stop)
