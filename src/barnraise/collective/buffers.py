"""A collective's memory and arithmetic on one rank: what is sent, where what comes goes, and what is added; pure.

Theory of operation. The input is only read, until `write_result` at the very end: an attempt that fails leaves no trace,
and can be made again. Sums grow in ``Store.work``. The first chunk that comes for a place writes input + chunk there, so
the input is never copied; what is sent before anything came is sealed straight from the input.

    RawBuffers     chunks travel as they are in memory. A finished chunk is opened straight into ``work``: no copy.
    CodedBuffers   chunks are encoded on each hop, decoded and added in float32. Whoever finishes one encodes it once
                   more; these bytes go to everybody verbatim, and everybody's result is what they decode to.

One thread calls ``payload``, another one all the rest; the program's order keeps them off each other's chunks. What
comes from a peer is checked, and raises `Malformed`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from barnraise.codec.codec import PIECE, Codec, Malformed, Place, Reader
from barnraise.codec.feedback import Residual
from barnraise.codec.grid import Bytes, Float32
from barnraise.collective.program import Chunk, Program, Receive, Send
from barnraise.collective.schedule import Action, Schedule

Vector = npt.NDArray[np.float32] | npt.NDArray[np.float64]

CACHE_LINE_BYTES: Final = 64
MOST: Final = 2.0**100
"""Of a sum that is encoded: so many of them do not overflow."""


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
        if len(self.receiving) < frame_bytes:
            self.sending, self.receiving = aligned(frame_bytes), aligned(frame_bytes)
        if len(self.own_sending) < chunk_bytes:
            self.own_sending, self.own_receiving = aligned(chunk_bytes), aligned(chunk_bytes)


class Buffers(Protocol):
    """What two threads ask of a collective's memory."""

    def payload(self, send: Send) -> memoryview:
        """Return what to send: a view that holds until the next call, or for good."""
        ...

    def room(self, receive: Receive) -> memoryview:
        """Return where the next chunk goes, as large as it may be."""
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
            _divide(self._work[chunk.start : chunk.stop], task.divisor)

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
        return self._receiving[: high - low]

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
            _divide(sums, self._task.divisor)

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
        store: where sums and finished encodings are put.
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
        self._own = _Own(task)
        self._work = store.work(len(task.own), np.dtype(np.float32))
        counts = {chunk.stop - chunk.start for chunk in chunks}
        # Not of the longest chunk alone: a codec may send a short one in another way, which takes more.
        scratch.fit(max(map(codecs.sending.bound_bytes, counts), default=0), 4 * max(counts, default=0))
        self._places = {chunk: Place(task.seed, index) for index, chunk in enumerate(chunks)}
        bounds = [codecs.finishing.bound_bytes(chunk.stop - chunk.start) for chunk in chunks]
        ends = np.cumsum([0, *bounds]).tolist()
        self._arena = store.arena(ends[-1])
        self._slots = dict(zip(chunks, pairwise(ends), strict=True))
        self._sizes: dict[Chunk, int] = {}
        self._readers: dict[Chunk, Reader] = {}
        for chunk in program.finished:
            self._own.write(chunk, self._sums(chunk))
            self._finish(chunk)

    def payload(self, send: Send) -> memoryview:
        """Encode a sum, or hand on a finished chunk's bytes."""
        chunk = send.chunk
        if send.action is Action.COPY:
            start = self._slots[chunk][0]
            return self._arena[start : start + self._sizes[chunk]].data
        values = self._given(chunk, self._scratch.own_sending) if send.is_first else self._sums(chunk)
        codec, place, room = self._codecs.sending, self._places[chunk], self._scratch.sending
        if not send.is_first:
            _tame(values)
        size = codec.encode(values, room, place)
        if self._task.residual is not None:
            reader = codec.reader(room[:size], len(values), place)
            self._note_loss(chunk, values, reader, self._task.weight)
        return room[:size].data

    def room(self, receive: Receive) -> memoryview:
        """Return where the next encoding goes."""
        chunk = receive.chunk
        if receive.action is Action.COPY:
            start, stop = self._slots[chunk]
            return self._arena[start:stop].data
        return self._scratch.receiving[: self._codecs.receiving.bound_bytes(chunk.stop - chunk.start)].data

    def arrived(self, receive: Receive, size_bytes: int) -> None:
        """Decode and add a sum, or check and keep a finished chunk."""
        chunk = receive.chunk
        if receive.action is Action.COPY:
            self._keep(chunk, size_bytes)
            return
        data = self._scratch.receiving[:size_bytes]
        reader = self._codecs.receiving.reader(data, chunk.stop - chunk.start, self._places[chunk])
        sums = self._sums(chunk)
        base = self._given(chunk, self._scratch.own_receiving) if receive.is_first else sums
        reader.add(0, len(sums), base, sums)
        if receive.finishes:
            self._finish(chunk)

    def write_result(self, out: Vector) -> None:
        """Decode all chunks that were finished, here or elsewhere, straight into ``out``."""
        for chunk, reader in self._readers.items():
            reader.read(0, chunk.stop - chunk.start, out[chunk.start : chunk.stop])  # type: ignore[arg-type]  # float32, as the task is

    def _finish(self, chunk: Chunk) -> None:
        sums = self._sums(chunk)
        _divide(sums, self._task.divisor)
        _tame(sums)
        start, stop = self._slots[chunk]
        size = self._codecs.finishing.encode(sums, self._arena[start:stop], self._places[chunk])
        reader = self._keep(chunk, size)
        if self._task.residual is not None:
            self._note_loss(chunk, sums, reader, self._task.weight / self._task.divisor)

    def _keep(self, chunk: Chunk, size: int) -> Reader:
        start = self._slots[chunk][0]
        data = self._arena[start : start + size]
        reader = self._codecs.finishing.reader(data, chunk.stop - chunk.start, self._places[chunk])
        self._readers[chunk] = reader
        self._sizes[chunk] = size
        return reader

    def _note_loss(self, chunk: Chunk, values: Float32, reader: Reader, factor: float) -> None:
        """Stage what an encoding of ours lost, as a part of our own input, ``factor`` times which is in ``values``.

        Each element is in one encoding of ours: a rank gives a part's sum away once, or finishes it.
        """
        residual = self._task.residual
        assert residual is not None
        staged = residual.staged[chunk.start : chunk.stop]
        for start, stop in _pieces(len(values)):
            decoded = np.empty(stop - start, np.float32)
            reader.read(start, stop, decoded)
            np.subtract(values[start:stop], decoded, out=staged[start:stop])
        if factor != 1.0:
            np.true_divide(staged, np.float32(factor), out=staged)

    def _given(self, chunk: Chunk, room: Bytes) -> Float32:
        values: Float32 = self._own.values(chunk, room)  # type: ignore[assignment]  # float32, as the task is
        return values

    def _sums(self, chunk: Chunk) -> Float32:
        sums: Float32 = self._work[chunk.start : chunk.stop]  # type: ignore[assignment]  # made as float32
        return sums


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


def _divide(values: Vector, divisor: float) -> None:
    """Divide in place. By a power of two it is a product, which is the same and faster; by others it is not: three times
    a whole number is three times too much exactly."""
    if divisor == 1.0:
        return
    kind = values.dtype.type
    if np.frexp(divisor)[0] == 0.5:
        np.multiply(values, kind(1.0 / divisor), out=values)
    else:
        np.true_divide(values, kind(divisor), out=values)


def _tame(values: Float32) -> None:
    """Bring a sum that peers' numbers drove out of what codecs take (2**127) back into it; what is no number is 0.

    Each number that comes is finite, their sum need not be; an error here would be ours, and what is lost is fed back.
    """
    if len(values) and not max(float(values.max()), -float(values.min())) < MOST:  # true for nan, too
        np.nan_to_num(values, copy=False, nan=0.0, posinf=MOST, neginf=-MOST)
        np.clip(values, -MOST, MOST, out=values)


def _view(values: Vector) -> memoryview:
    return values.view(np.uint8).data


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, PIECE):
        yield start, min(start + PIECE, count)
