"""One rank's part in a collective: what it sends and receives, chunk by chunk, and how far it is; no I/O, no arithmetic.

Theory of operation. `program_of` cuts a schedule's parts into chunks and lists one rank's sends and one rank's receives,
each in the schedule's total order. Since both are carried out in order, "this chunk is complete" is nothing but a number:
so many receives are done. Each send carries that number, and each receive carries how many sends must be out before it
may overwrite what they read. A `Run` counts; two threads, or a simulator, ask it what is next.

    next_send()      the next send, if all it needs was received; None: wait, or all is sent
    note_sent()      it is sealed: its memory may change
    next_receive()   the next receive, if all it overwrites was sent; None: wait, or all is received
    note_received()  it is added or copied

Why it does not deadlock, with room for one chunk on each link, is said in `schedule`: both lists and the two kinds of
"needs" follow one total order over the chunks of all transfers. Payloads, codecs and sums are `buffers`', deadlines and
death `survival`'s.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter

from barnraise.collective.schedule import Action, Schedule, Transfer
from barnraise.errors import LocalError

STEP_LAG = 8
"""In a pipelined schedule chunk c of step s goes with chunk c - 8 of step s + 1. A rank may both serve a step and wait for
what a later step brings, and so many chunks are on their way meanwhile. In a model of two trees, 8 ranks and 256 chunks,
an all-reduce takes 2.04 times the vector's own time where the latency is a chunk's time, 2.36 times where it is 20; with 1
instead of 8 it takes 2.03 and 9.29, with each step moving all its chunks 3.01 and 3.16."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Elements ``start .. stop`` of the vector."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Send:
    """A chunk to be sent."""

    to: int
    chunk: Chunk
    action: Action
    """REDUCE: our sum so far; COPY: a finished chunk, as it came or as we finished it."""
    is_first: bool
    """Nothing was added to it here: what is sent is our own input. Never so of a COPY."""
    needs: int
    """So many receives must be in before it may be read."""


@dataclass(frozen=True, slots=True)
class Receive:
    """A chunk to be received."""

    sender: int
    chunk: Chunk
    action: Action
    is_first: bool
    """The first one to be added, to our own input. Never so of a COPY."""
    finishes: bool
    """Afterwards the sum is of all ranks, and this rank has it to finish."""
    needs: int
    """So many sends must be out before it may be written. Among honest ranks they are: a finished value has our sum in it.
    So it holds off a peer out of turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """All that one rank does in one collective."""

    rank: int
    sends: tuple[Send, ...]
    receives: tuple[Receive, ...]
    finished: tuple[Chunk, ...]
    """Chunks that this rank finishes without receiving anything: it is alone, or only hands its own on."""


def program_of(schedule: Schedule, rank: int, size: int, chunk_elements: int, alignment: int = 1) -> Program:
    """Return one rank's program.

    Args:
        schedule: The collective.
        rank: 0 .. world_size - 1.
        size: Elements of the vector.
        chunk_elements: Most elements of a chunk.
        alignment: Inner borders of parts are multiples of it.

    Raises:
        LocalError: ``chunk_elements`` is not positive.
    """
    if chunk_elements < 1:
        raise LocalError(f"chunks of {chunk_elements} elements")
    bounds = schedule.bounds(size, alignment)
    sends: list[Send] = []
    receives: list[Receive] = []
    read_by: dict[Chunk, int] = {}
    written_by: dict[Chunk, int] = {}
    last_reduce = _last_reduces(schedule, rank)
    for transfer, chunk in _in_order(schedule, rank, bounds, chunk_elements):
        is_first = transfer.action is Action.REDUCE and chunk not in written_by
        if transfer.sender == rank:
            sends.append(Send(transfer.receiver, chunk, transfer.action, is_first, written_by.get(chunk, 0)))
            read_by[chunk] = len(sends)
        else:
            finishes = last_reduce.get(transfer.part) is transfer
            receives.append(Receive(transfer.sender, chunk, transfer.action, is_first, finishes, read_by.get(chunk, 0)))
            written_by[chunk] = len(receives)
    finished = tuple(
        chunk
        for part, owner in enumerate(schedule.owners)
        if owner == rank and part not in last_reduce
        for chunk in _chunks(bounds[part], chunk_elements)
    )
    return Program(rank=rank, sends=tuple(sends), receives=tuple(receives), finished=finished)


def place(schedule: Schedule, number: int, index: int) -> tuple[int, int, int]:
    """Return the place of chunk ``index`` of transfer ``number`` in the total order of all chunks: sort by it.

    Within a step the chunks go in turns over its transfers, so that all links of a rank are in use. In a pipelined
    schedule each step trails the one before by `STEP_LAG` chunks.
    """
    step = schedule.transfers[number].step
    return (STEP_LAG * step + index, step, number) if schedule.is_pipelined else (step, index, number)


class Run:
    """How far one rank is in its program. Not locked: whoever shares it between threads holds a lock of its own."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.num_sent = 0
        self.num_received = 0
        self._sends, self._receives = program.sends, program.receives

    @property
    def is_sent(self) -> bool:
        """Tell whether all sends are out."""
        return self.num_sent == len(self.program.sends)

    @property
    def is_received(self) -> bool:
        """Tell whether all receives are in."""
        return self.num_received == len(self.program.receives)

    @property
    def is_done(self) -> bool:
        """Tell whether nothing is left."""
        return self.is_sent and self.is_received

    def next_send(self) -> Send | None:
        """Return the next send if it can go."""
        if self.num_sent == len(self._sends):
            return None
        send = self._sends[self.num_sent]
        return send if send.needs <= self.num_received else None

    def next_receive(self) -> Receive | None:
        """Return the next receive if it may be written."""
        if self.num_received == len(self._receives):
            return None
        receive = self._receives[self.num_received]
        return receive if receive.needs <= self.num_sent else None

    def note_sent(self) -> None:
        """Count a send."""
        self.num_sent += 1

    def note_received(self) -> None:
        """Count a receive."""
        self.num_received += 1

    @property
    def waits_for(self) -> int | None:
        """Return the rank whose chunk is due next; None: none is."""
        return None if self.is_received else self.program.receives[self.num_received].sender


def _last_reduces(schedule: Schedule, rank: int) -> dict[int, Transfer]:
    """Return the last transfer that is added to each part that ``rank`` owns."""
    return {
        transfer.part: transfer
        for transfer in schedule.transfers
        if transfer.action is Action.REDUCE and transfer.receiver == rank and schedule.owners[transfer.part] == rank
    }


def _in_order(
    schedule: Schedule, rank: int, bounds: tuple[tuple[int, int], ...], chunk_elements: int
) -> Iterator[tuple[Transfer, Chunk]]:
    """Yield the rank's transfers chunk by chunk, in the total order of all chunks."""
    keyed = [
        (place(schedule, number, index), transfer, chunk)
        for number, transfer in enumerate(schedule.transfers)
        if rank == transfer.sender or rank == transfer.receiver
        for index, chunk in enumerate(_chunks(bounds[transfer.part], chunk_elements))
    ]
    keyed.sort(key=itemgetter(0))
    for _, transfer, chunk in keyed:
        yield transfer, chunk


def _chunks(bounds: tuple[int, int], chunk_elements: int) -> Iterator[Chunk]:
    for start in range(bounds[0], bounds[1], chunk_elements):
        yield Chunk(start, min(start + chunk_elements, bounds[1]))
