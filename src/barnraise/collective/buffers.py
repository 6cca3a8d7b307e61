"""A collective's memory and arithmetic on one rank: what is sent, where what comes goes, and what is added; pure.

Theory of operation. The input is only read, until `write_result` at the very end: an attempt that fails leaves no trace,
and can be made again. Sums grow in ``Store.work``. The first chunk that comes for a place writes input + chunk there, so
the input is never copied; what is sent before anything came is sealed straight from the input.

    RawBuffers     chunks travel as they are in memory. A finished chunk is opened straight into ``work``: no copy.
    CodedBuffers   chunks are encoded on each hop, decoded and added in float32. Whoever finishes one encodes it once
                   more; these bytes go to everybody verbatim, and everybody's result is what they decode to. What comes
                   stays encoded until it is added up and encoded in its turn, in one pass where the codec has one.

One thread calls ``payload``, another one all the rest; the program's order keeps them off each other's chunks. What
comes from a peer is checked, and raises `Malformed`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from barnraise.codec.blockwise import BlockReader
from barnraise.codec.codec import Codec, Malformed, Place, Reader
from barnraise.codec.feedback import Residual
from barnraise.codec.grid import Bytes, Float32
from barnraise.codec.plain import Terms, divide
from barnraise.codec.sums import add_up, encode_sum
from barnraise.collective.program import Chunk, Program, Receive, Send
from barnraise.collective.schedule import Action, Schedule

Vector = npt.NDArray[np.float32] | npt.NDArray[np.float64]

CACHE_LINE_BYTES: Final = 64
SPARE_BYTES: Final = CACHE_LINE_BYTES
"""Behind a chunk that is only passing through: a stream opens a frame where it came to lie, if its seal has room there."""
MAX_WAITING: Final = 4
"""Encodings of a chunk that wait to be added up together: one over 4 bytes an element each, whatever the schedule."""
LARGE_BYTES: Final = 4 << 20
"""From here on a result is written past the caches: it takes a third less, and more would not stay in a core's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What a rank brings in, and what becomes of the sum."""

    own: Vector
    """float[d], contiguous; read only."""
    weight: float = 1.0
    """Of our input in the sum."""
    divisor: float = 1.0
    """Of the sum in the result: for a mean, the weights of all members together."""
    seed: int = 0
    """Of codecs that draw: the same on all ranks, another one each time."""
    residual: Residual | None = None


class Store:
    """Memory that outlives a collective: the next ones of its size allocate nothing.

    It holds the last collective's result until it is used again.
    """

    def __init__(self) -> None:
        self._work = aligned(0)
        self._arena = aligned(0)

    def work(self, size: int, dtype: np.dtype[np.float32] | np.dtype[np.float64]) -> Vector:
        """Return room for sums, of whatever content."""
        if len(self._work) < size * dtype.itemsize:
            self._work = aligned(size * dtype.itemsize)
        work: Vector = self._work[: size * dtype.itemsize].view(dtype)
        return work

    def arena(self, size_bytes: int) -> Bytes:
        """Return room for encodings, of whatever content."""
        if len(self._arena) < size_bytes:
            self._arena = aligned(size_bytes)
        return self._arena[:size_bytes]


@dataclass(kw_only=True, slots=True)
class Scratch:
    """What the two threads need for a moment, each for itself; it stays in the cache."""

    sending: Bytes = field(default_factory=lambda: aligned(0))
    own_sending: Bytes = field(default_factory=lambda: aligned(0))
    receiving: Bytes = field(default_factory=lambda: aligned(0))
    own_receiving: Bytes = field(default_factory=lambda: aligned(0))

    def fit(self, frame_bytes: int, chunk_bytes: int) -> None:
        """Make room for frames and for chunks of numbers."""
        if len(self.sending) < frame_bytes:
            self.sending, self.receiving = aligned(frame_bytes), aligned(frame_bytes + SPARE_BYTES)
        if len(self.own_sending) < chunk_bytes:
            self.own_sending, self.own_receiving = aligned(chunk_bytes), aligned(chunk_bytes)


class Buffers(Protocol):
    """What two threads ask of a collective's memory."""

    def payload(self, send: Send) -> memoryview:
        """Return what to send: a view that holds until the next call, or for good."""
        ...

    def room(self, receive: Receive) -> memoryview:
        """Return where the next chunk goes, at least as large as it may be; all of it may be overwritten."""
        ...

    def arrived(self, receive: Receive, size_bytes: int) -> None:
        """Take in what lies in ``room``. Raises `Malformed`."""
        ...

    def write_result(self, out: Vector) -> None:
        """Write the result, of which all is here, to float[d]; the task's own input may be it."""
        ...


class RawBuffers:
    """Chunks of float32 or float64 as they are in memory, little-endian on all machines that we know of.

    Args:
        task: what to do.
        program: this rank's.
        results: the parts of the vector that are this rank's to have at the end, as ``(start, stop)``.
        store: where sums are put together.
        scratch: for chunks under way; `Scratch.fit` was called.
    """

    def __init__(
        self, task: Task, program: Program, results: Sequence[tuple[int, int]], store: Store, scratch: Scratch
    ) -> None:
        own = task.own
        self._task, self._results, self._scratch = task, results, scratch
        self._item_bytes = own.dtype.itemsize
        self._own = _Own(task)
        self._work = store.work(len(own), own.dtype)
        self._work_bytes = _view(self._work)
        self._own_bytes = _view(own) if self._own.is_plain else None
        self._receiving = scratch.receiving.data
        self._values = scratch.receiving.view(own.dtype)
        for chunk in program.finished:
            self._own.write(chunk, self._work[chunk.start : chunk.stop])
            divide(self._work[chunk.start : chunk.stop], task.divisor)

    def payload(self, send: Send) -> memoryview:
        """Return what to send."""
        chunk = send.chunk
        low, high = chunk.start * self._item_bytes, chunk.stop * self._item_bytes
        if not send.is_first:
            return self._work_bytes[low:high]
        if self._own_bytes is not None:
            return self._own_bytes[low:high]
        values = self._scratch.own_sending[: high - low]
        self._own.write(chunk, values.view(self._work.dtype))
        return values.data

    def room(self, receive: Receive) -> memoryview:
        """Return where the next chunk goes."""
        low, high = receive.chunk.start * self._item_bytes, receive.chunk.stop * self._item_bytes
        if receive.action is Action.COPY:
            return self._work_bytes[low:high]
        return self._receiving[: high - low + SPARE_BYTES]

    def arrived(self, receive: Receive, size_bytes: int) -> None:
        """Add what came; a finished chunk is where it belongs already."""
        chunk = receive.chunk
        count = chunk.stop - chunk.start
        if size_bytes != count * self._item_bytes:
            raise Malformed(f"{size_bytes} bytes for {count} elements of {self._item_bytes} bytes each")
        if receive.action is Action.COPY:
            return
        sums = self._work[chunk.start : chunk.stop]
        if receive.is_first:
            np.add(self._own.values(chunk, self._scratch.own_receiving), self._values[:count], out=sums)
        else:
            np.add(sums, self._values[:count], out=sums)
        if receive.finishes:
            divide(sums, self._task.divisor)

    def write_result(self, out: Vector) -> None:
        """Copy the result."""
        for start, stop in self._results:
            np.copyto(out[start:stop], self._work[start:stop])


@dataclass(frozen=True, kw_only=True, slots=True)
class Codecs:
    """One codec in three places, since two threads use it at once."""

    sending: Codec
    """Of sums on their way."""
    receiving: Codec
    """The same one."""
    finishing: Codec
    """Of finished chunks."""


class CodedBuffers:
    """Chunks of float32 that are encoded on each hop.

    Args:
        task: what to do, in float32.
        program: this rank's.
        store: where encodings are put, and sums of more than `MAX_WAITING` of them.
        scratch: for chunks under way.
        codecs: how they travel.
        chunks: all chunks of the vector, in order, the same list on all ranks.
    """

    def __init__(
        self,
        task: Task,
        program: Program,
        store: Store,
        scratch: Scratch,
        codecs: Codecs,
        chunks: Sequence[Chunk],
    ) -> None:
        self._task, self._scratch, self._codecs = task, scratch, codecs
        # Not of the longest chunk alone: a codec may send a short one in another way, which takes more.
        counts = {chunk.stop - chunk.start for chunk in chunks}
        coming = {count: _slot_bytes(codecs.receiving, count) for count in counts}
        finished = {count: _slot_bytes(codecs.finishing, count) for count in counts}
        scratch.fit(max(coming.values(), default=0), 4 * max(counts, default=0))
        terms = Counter(receive.chunk for receive in program.receives if receive.action is Action.REDUCE)
        self._parts: dict[int, _Part] = {}
        end = 0
        for index, chunk in enumerate(chunks):
            count = chunk.stop - chunk.start
            ends = [end, end + finished[count]]
            ends += [ends[1] + coming[count] * (place + 1) for place in range(min(terms[chunk], MAX_WAITING))]
            end = ends[-1]
            self._parts[chunk.start] = _Part(chunk, Place(task.seed, index), ends)
        self._arena = store.arena(end)
        is_full = max(terms.values(), default=0) > MAX_WAITING
        self._work = store.work(len(task.own) if is_full else 0, np.dtype(np.float32))
        for chunk in program.finished:
            self._finish(self._parts[chunk.start])

    def payload(self, send: Send) -> memoryview:
        """Encode a sum, or hand on a finished chunk's bytes."""
        part = self._parts[send.chunk.start]
        if send.action is Action.COPY:
            start = part.ends[0]
            return self._arena[start : start + part.size_bytes].data
        room = self._scratch.sending
        terms = self._terms(part, 1.0, cuts_off=not send.is_first)
        size = encode_sum(self._codecs.sending, terms, part.waiting, room, part.place, self._scratch.own_sending)
        part.waiting.clear()
        return room[:size].data

    def room(self, receive: Receive) -> memoryview:
        """Return where the next encoding goes."""
        part = self._parts[receive.chunk.start]
        if receive.action is Action.COPY:
            return self._arena[part.ends[0] : part.ends[1]].data
        if len(part.waiting) == MAX_WAITING:
            self._add_up(part)
        place = 1 + len(part.waiting)
        return self._arena[part.ends[place] : part.ends[place + 1]].data

    def arrived(self, receive: Receive, size_bytes: int) -> None:
        """Check and keep what came; where it was the last term of a sum that is ours, finish that."""
        part = self._parts[receive.chunk.start]
        if receive.action is Action.COPY:
            self._keep(part, size_bytes)
            return
        start = part.ends[1 + len(part.waiting)]
        data, count = self._arena[start : start + size_bytes], part.stop - part.start
        part.waiting.append(self._codecs.receiving.reader(data, count, part.place))
        if receive.finishes:
            self._finish(part)

    def write_result(self, out: Vector) -> None:
        """Decode all chunks that were finished, here or elsewhere, straight into ``out``."""
        is_large = out.nbytes >= LARGE_BYTES
        for part in self._parts.values():
            room: Float32 = out[part.start : part.stop]  # type: ignore[assignment]  # float32, as the task is
            if is_large and isinstance(part.reader, BlockReader):
                part.reader.read_past_cache(room)
            elif part.reader is not None:
                part.reader.read(0, len(room), room)

    def _finish(self, part: "_Part") -> None:
        terms = self._terms(part, self._task.divisor, cuts_off=True)
        out, room = self._arena[part.ends[0] : part.ends[1]], self._scratch.own_receiving
        self._keep(part, encode_sum(self._codecs.finishing, terms, part.waiting, out, part.place, room))
        part.waiting.clear()

    def _keep(self, part: "_Part", size_bytes: int) -> None:
        data = self._arena[part.ends[0] : part.ends[0] + size_bytes]
        part.reader = self._codecs.finishing.reader(data, part.stop - part.start, part.place)
        part.size_bytes = size_bytes

    def _terms(self, part: "_Part", divisor: float, *, cuts_off: bool) -> Terms:
        """Return what we bring into a sum. What encoding it loses is staged as a part of our own input.

        Each element is in one encoding of ours: a rank gives a part's sum away once, or finishes it.
        """
        task, start, stop = self._task, part.start, part.stop
        terms = Terms(own=task.own[start:stop], weight=task.weight, divisor=divisor, cuts_off=cuts_off)  # type: ignore[arg-type]  # float32, as the task is
        if task.residual is not None:
            terms.owed = task.residual.kept[start:stop]
            terms.lost, terms.share = task.residual.staged[start:stop], task.weight / divisor
        if part.is_added:
            terms.own, terms.owed, terms.weight = self._work[start:stop], None, 1.0  # type: ignore[assignment]  # made as float32
        return terms

    def _add_up(self, part: "_Part") -> None:
        """Make room for more terms of a sum."""
        sums: Float32 = self._work[part.start : part.stop]  # type: ignore[assignment]  # made as float32
        add_up(self._terms(part, 1.0, cuts_off=False), part.waiting, sums)
        part.waiting.clear()
        part.is_added = True


class _Part:
    """A chunk, and what of it is here.

    Args:
        chunk: which one.
        place: the same for codecs.
        ends: where in the arena its finished encoding lies, and behind it those that wait to be added up: the start of the
            first, and the end of each.
    """

    __slots__ = ("ends", "is_added", "place", "reader", "size_bytes", "start", "stop", "waiting")

    def __init__(self, chunk: Chunk, place: Place, ends: Sequence[int]) -> None:
        self.start, self.stop, self.place, self.ends = chunk.start, chunk.stop, place, ends
        self.waiting: list[Reader] = []
        self.is_added = False
        """Our own values, and what waited once, are in ``Store.work``."""
        self.reader: Reader | None = None
        """Of the finished encoding."""
        self.size_bytes = 0
        """That it has."""


def _slot_bytes(codec: Codec, count: int) -> int:
    """Return how much room an encoding of so many elements gets, in whole cache lines."""
    return -(-(codec.bound_bytes(count) + SPARE_BYTES) // CACHE_LINE_BYTES) * CACHE_LINE_BYTES


class _Own:
    """A rank's own contribution: the input, what was lost before, times the weight."""

    def __init__(self, task: Task) -> None:
        self._input = task.own
        self._residual = task.residual.kept if task.residual is not None else None
        self._weight = task.own.dtype.type(task.weight)
        self.is_plain = self._residual is None and task.weight == 1.0
        """It is the input as it is."""

    def values(self, chunk: Chunk, room: Bytes) -> Vector:
        """Return it: a view of the input, or computed into ``room``."""
        if self.is_plain:
            return self._input[chunk.start : chunk.stop]
        values: Vector = room[: (chunk.stop - chunk.start) * self._input.dtype.itemsize].view(self._input.dtype)
        self.write(chunk, values)
        return values

    def write(self, chunk: Chunk, out: Vector) -> None:
        """Write it to ``out``."""
        part = self._input[chunk.start : chunk.stop]
        if self._residual is not None:
            np.add(part, self._residual[chunk.start : chunk.stop], out=out)
        else:
            np.copyto(out, part)
        if self._weight != 1:
            np.multiply(out, self._weight, out=out)


def chunks_of(schedule: Schedule, size: int, chunk_elements: int, alignment: int = 1) -> tuple[Chunk, ...]:
    """Return all chunks into which `program_of` cuts a vector, in order: the same ones on every rank."""
    return tuple(
        Chunk(start, min(start + chunk_elements, stop))
        for low, stop in schedule.bounds(size, alignment)
        for start in range(low, stop, chunk_elements)
    )


def aligned(size_bytes: int) -> Bytes:
    """Return uninitialised bytes that begin with a cache line."""
    raw = np.empty(size_bytes + CACHE_LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE_BYTES
    return raw[start : start + size_bytes]


def _view(values: Vector) -> memoryview:
    return values.view(np.uint8).data
