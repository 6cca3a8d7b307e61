"""How long a schedule takes over given links, estimated by walking through it chunk by chunk; pure.

The model is alpha-beta-gamma. A chunk goes through these, each of which does one chunk at a time, in the schedule's order:

    the sender's thread     gamma: seals, and encodes where the codec says so; a fixed time a chunk and some a byte
    the sender's uplink     beta: bytes over what the host can send in all
    the link of the pair    beta, where that is slower than the uplink; others go on meanwhile. Links to other regions
                            share one line a host, out and in
    the way                 alpha: one latency, any number of chunks at a time
    the receiver's downlink beta
    the receiver's thread   gamma: opens, decodes, adds; encodes what is finished

So chunks follow each other as on an assembly line, and a latency is only felt where nobody has anything else to send.
Left out: slow start (connections are warm), loss, other traffic, cores shared by the ranks of one machine.
`closed_forms` has the same for links that are all alike; `sim.links` the same with real programs and a clock.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from barnraise.codec.codec import Codec
from barnraise.collective.links import Links
from barnraise.collective.program import place
from barnraise.collective.schedule import Action, Schedule, Transfer
from barnraise.errors import ConfigError

MAX_CHUNK_BYTES: Final = 512 * 1024
"""A frame's payload: the size at which sealed loopback was fastest (1.02 x Gloo; 32 KiB 1.95, 2 MiB 1.14)."""
CHUNK_BYTES: Final = (MAX_CHUNK_BYTES, 256 * 1024, 128 * 1024, 64 * 1024, 32 * 1024)
"""Sizes that are tried: a frame's limit down to where a chunk's own cost is half of it at 1 GB/s."""
GRAIN_ELEMENTS: Final = 4096
"""Chunks are whole multiples of it: of int8's blocks of 1024 and of top-k's of 4096."""
MAX_CHUNK_ELEMENTS: Final = 1 << 19
"""However few bytes they take: 2 MiB of float32 still fit a core's cache."""
MAX_MOVES: Final = 20_000
"""A walk takes some 2 us a chunk; past this many it goes in coarser chunks."""

_PROBE: Final = 1 << 20

CODING_NS: Final[Mapping[str, tuple[float, float]]] = {
    "fp32": (0.0, 0.0),
    "fp16": (0.3, 0.3),
    "bf16": (0.7, 0.4),
    "int8": (0.5, 0.4),
    "int8s": (1.0, 0.4),
    "int4": (1.0, 0.8),
    "int4s": (1.5, 0.8),
    "int2": (1.0, 0.8),
    "grid16": (0.3, 0.2),
    "topk": (6.0, 0.3),
    "topkc": (6.0, 0.3),
    "randomk": (1.0, 0.3),
    "powersgd": (1.5, 1.5),
    "zstd": (2.0, 1.0),
    "lz4": (1.0, 0.5),
    "snappy": (1.0, 0.5),
}
"""Nanoseconds to encode and decode one element, one thread of a 2023 server; ``barnraise bench allreduce`` measures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """CPU time that every chunk takes, whatever its codec. The same on all ranks, or their plans differ."""

    chunk_s: float = 40e-6
    """On each side: one system call, one AEAD call, the Python between."""
    byte_s: float = 1e-9
    """On each side: seal and write, or read and open; sealed loopback of two loaded processes."""
    turn_factor: float = 1.1
    """For a chunk that goes to another peer than the one before: connections that share a line fill it less well, and
    their state is cold. Shards took 1.12 x a ring's time on loopback and 1.11 x at 100 Mbit/s and 50 ms, same bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wire:
    """How elements travel: all that the cost model wants to know of a codec."""

    name: str
    reduce_bytes: float
    """Per element, of sums on their way to their owner."""
    copy_bytes: float
    """Per element, of finished values on their way to everybody."""
    head_bytes: float = 0.0
    """Per chunk."""
    encode_s: float = 0.0
    """Per element."""
    decode_s: float = 0.0
    is_lossy: bool = False
    """Each hop rounds sums again."""
    is_once: bool = False
    """What hops would lose is too much: inputs go straight to the owner, as sparse values and less than 8 bits want it."""

    @classmethod
    def of(cls, codec: Codec, world_size: int) -> "Wire":
        """Return what a codec's own bound says; lossless codecs count as if they saved nothing."""
        finished = codec.for_aggregate(world_size)
        reduce_bytes, head_bytes = _per_element(codec)
        copy_bytes, copy_head_bytes = _per_element(finished)
        nanoseconds = [CODING_NS.get(part.partition(":")[0], (1.0, 1.0)) for part in codec.name.split("+")]
        return cls(
            name=codec.name,
            reduce_bytes=reduce_bytes,
            copy_bytes=copy_bytes,
            head_bytes=max(head_bytes, copy_head_bytes),
            encode_s=1e-9 * sum(encode for encode, _ in nanoseconds),
            decode_s=1e-9 * sum(decode for _, decode in nanoseconds),
            is_lossy=not codec.is_lossless,
            is_once=finished.name != codec.name or reduce_bytes < 1,
        )

    def bytes_of(self, action: Action, elements: float) -> float:
        """Return the bytes that so many elements take, without the heads of their chunks."""
        return elements * (self.reduce_bytes if action is Action.REDUCE else self.copy_bytes)

    def bytes_of_chunk(self, elements: int) -> float:
        """Return the most bytes that a chunk takes."""
        return elements * max(self.reduce_bytes, self.copy_bytes) + self.head_bytes

    def chunk_elements(self, max_bytes: int = MAX_CHUNK_BYTES) -> int:
        """Return how many elements a chunk of at most so many bytes has.

        Raises:
            ConfigError: not even the smallest chunk fits.
        """
        fits = int((max_bytes - self.head_bytes) / max(self.reduce_bytes, self.copy_bytes))
        elements = min(fits, MAX_CHUNK_ELEMENTS) // GRAIN_ELEMENTS * GRAIN_ELEMENTS
        if elements < 1:
            raise ConfigError(f"{GRAIN_ELEMENTS} elements of {self.name} take more than a chunk of {max_bytes} bytes")
        return elements

    def chunk_choices(self) -> tuple[int, ...]:
        """Return the chunks worth trying, in elements, largest first.

        Raises:
            ConfigError: not even the smallest chunk fits a frame.
        """
        smallest = self.bytes_of_chunk(GRAIN_ELEMENTS)
        sizes = [MAX_CHUNK_BYTES, *(size for size in CHUNK_BYTES if size >= smallest)]
        return tuple(dict.fromkeys(map(self.chunk_elements, sizes)))


FLOAT32: Final = Wire(name="fp32", reduce_bytes=4.0, copy_bytes=4.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to be moved, and how."""

    size: int
    """Elements."""
    wire: Wire
    chunk_elements: int
    effort: Effort = Effort()

    def send_s(self, action: Action, elements: float, num_chunks: int = 1) -> float:
        """Return the sending thread's time. Finished values were encoded where they were finished."""
        coding = self.wire.encode_s * elements if action is Action.REDUCE else 0.0
        return coding + self._handling_s(action, elements, num_chunks)

    def receive_s(self, action: Action, elements: float, num_chunks: int = 1) -> float:
        """Return the receiving thread's time."""
        return self.wire.decode_s * elements + self._handling_s(action, elements, num_chunks)

    def finish_s(self, elements: float) -> float:
        """Return what the owner of a finished chunk does more: encode it, and read its own encoding."""
        return (self.wire.encode_s + self.wire.decode_s) * elements

    def wire_bytes(self, action: Action, elements: float, num_chunks: int = 1) -> float:
        """Return what goes over the line."""
        return self.wire.bytes_of(action, elements) + num_chunks * self.wire.head_bytes

    def _handling_s(self, action: Action, elements: float, num_chunks: int) -> float:
        return num_chunks * self.effort.chunk_s + self.wire_bytes(action, elements) * self.effort.byte_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a walk found."""

    makespan_s: float
    """From the start until the last rank has everything."""
    finish_s: tuple[float, ...]
    """By rank: its last receive or send."""


def estimate(schedule: Schedule, links: Links, job: Job, max_moves: int = MAX_MOVES) -> Estimate:
    """Return how long the schedule takes over these links, all ranks starting at once.

    Args:
        schedule: Of as many ranks as ``links`` has.
        links: Latency and bandwidth, by rank.
        job: What is moved.
        max_moves: Chunks that may be walked; with more, several count as one, which makes it look slower.
    """
    walk = _Walk(links, job, schedule)
    step = coarse_chunk(schedule, job, max_moves)
    for transfer, index, elements in chunk_moves(schedule, job.size, step):
        walk.move(transfer, index, elements, -(-elements // job.chunk_elements))
    finish = tuple(max(ends) for ends in zip(walk.sending, walk.receiving, strict=True))
    return Estimate(makespan_s=max(finish), finish_s=finish)


class _Walk:
    """When everything is free again: threads and lines by rank, links by pair."""

    def __init__(self, links: Links, job: Job, schedule: Schedule) -> None:
        self.job, self.turn = job, job.effort.turn_factor
        self.latency: list[list[float]] = links.latency_s.tolist()
        self.bandwidth: list[list[float]] = np.minimum(links.bandwidth_bytes_s, links.uplink_bytes_s[:, None]).tolist()
        self.up: list[float] = links.uplink_bytes_s.tolist()
        self.down: list[float] = links.downlink_bytes_s.tolist()
        self.region: list[int] = links.region.tolist()
        count = links.world_size
        self.sending, self.receiving = [0.0] * count, [0.0] * count
        self.uplink, self.far_out = [0.0] * count, [0.0] * count
        self.downlink, self.far_in = [(0.0, 0.0, 0.0)] * count, [(0.0, 0.0, 0.0)] * count
        self.link: dict[tuple[int, int], float] = {}
        self.last_to = [-1] * count
        self.ready: dict[tuple[int, int, int], float] = {}
        self.sealed: dict[tuple[int, int, int], float] = {}
        self.costs: dict[tuple[bool, int], tuple[float, float, float]] = {}
        self.finishing = {id(move) for move in finishing(schedule)}

    def move(self, transfer: Transfer, index: int, elements: int, num_chunks: int) -> None:
        """Take one chunk from its sender's thread to its receiver's."""
        sender, receiver, part = transfer.sender, transfer.receiver, transfer.part
        key = (transfer.action is Action.REDUCE, elements)
        seal_s, size_bytes, open_s = self.costs.get(key) or self._cost(key, num_chunks)
        if self.last_to[sender] not in (-1, receiver):
            seal_s, size_bytes = seal_s * self.turn, size_bytes * self.turn
        self.last_to[sender] = receiver
        own = (sender, part, index)
        sealed = max(self.sending[sender], self.ready.get(own, 0.0)) + seal_s
        self.sending[sender] = self.sealed[own] = sealed
        arrived = self._arrival(sender, receiver, sealed, size_bytes)
        if id(transfer) in self.finishing:
            open_s += self.job.finish_s(elements)
        theirs = (receiver, part, index)
        done = max(arrived, self.receiving[receiver], self.sealed.get(theirs, 0.0)) + open_s
        self.receiving[receiver] = self.ready[theirs] = done

    def _arrival(self, sender: int, receiver: int, sealed: float, size_bytes: float) -> float:
        leaves = max(sealed, self.uplink[sender])
        self.uplink[sender] = leaves + size_bytes / self.up[sender]
        line_s = size_bytes / self.bandwidth[sender][receiver]
        latency_s = self.latency[sender][receiver]
        if self.region[sender] == self.region[receiver]:
            pair = (sender, receiver)
            self.link[pair] = max(leaves, self.link.get(pair, 0.0)) + line_s
            arrived = self.link[pair] + latency_s
        else:
            self.far_out[sender] = max(leaves, self.far_out[sender]) + line_s
            arrived = self.far_out[sender] + latency_s
            arrived = self._through(self.far_in, receiver, arrived, line_s)
        return self._through(self.downlink, receiver, arrived, size_bytes / self.down[receiver])

    def _through(self, line: list[tuple[float, float, float]], rank: int, arrives: float, took_s: float) -> float:
        """Return when a chunk is through a line on the receiver's side.

        The walk comes to chunks in the schedule's order, but lines carry them as they come: one that arrives sooner than
        those before it takes what idle time there was, and puts off the following ones by the rest.
        """
        free, latest, idle_s = line[rank]
        if arrives < latest:
            line[rank] = (free + max(0.0, took_s - idle_s), latest, max(0.0, idle_s - took_s))
            return arrives
        through = max(arrives, free + took_s)
        line[rank] = (through, arrives, idle_s + through - took_s - free)
        return through

    def _cost(self, key: tuple[bool, int], num_chunks: int) -> tuple[float, float, float]:
        job, action, elements = self.job, Action.REDUCE if key[0] else Action.COPY, key[1]
        self.costs[key] = (
            job.send_s(action, elements, num_chunks),
            job.wire_bytes(action, elements, num_chunks),
            job.receive_s(action, elements, num_chunks),
        )
        return self.costs[key]


def chunk_moves(schedule: Schedule, size: int, chunk_elements: int) -> Iterator[tuple[Transfer, int, int]]:
    """Yield each chunk's transfer, its number in its part and its elements, in the total order of `program.place`."""
    sizes = [stop - start for start, stop in schedule.bounds(size)]
    counts = [-(-size // chunk_elements) for size in sizes]
    transfers = schedule.transfers
    keyed = sorted(
        (place(schedule, number, index), index)
        for number, transfer in enumerate(transfers)
        for index in range(counts[transfer.part])
    )
    for (_, _, number), index in keyed:
        transfer = transfers[number]
        yield transfer, index, min(chunk_elements, sizes[transfer.part] - index * chunk_elements)


def finishing(schedule: Schedule) -> list[Transfer]:
    """Return the last transfer that is added to each part at its owner."""
    last = {
        move.part: move
        for move in schedule.transfers
        if move.action is Action.REDUCE and move.receiver == schedule.owners[move.part]
    }
    return list(last.values())


def coarse_chunk(schedule: Schedule, job: Job, max_moves: int) -> int:
    """Return chunks, whole multiples of the real ones, few enough to be walked; a part is one at the coarsest."""
    sizes = [stop - start for start, stop in schedule.bounds(job.size)]
    uses = [0] * len(sizes)
    for transfer in schedule.transfers:
        uses[transfer.part] += 1
    step = job.chunk_elements
    while step < max(sizes) and sum(use * -(-size // step) for use, size in zip(uses, sizes, strict=True)) > max_moves:
        step *= 2
    return step


def _per_element(codec: Codec) -> tuple[float, float]:
    """Return a codec's bytes per element, and those per chunk beside."""
    one, two = codec.bound_bytes(_PROBE), codec.bound_bytes(2 * _PROBE)
    return (two - one) / _PROBE, max(0.0, 2 * one - two)
