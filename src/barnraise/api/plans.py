"""What one rank does in a collective: schedule, chunks and memory, as a function of the call and the members; no threads."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import blake3
import msgspec
import numpy as np

from barnraise.api.attempt import Work
from barnraise.api.choice import BY_LINKS, Choice, choose, is_raw, links_between
from barnraise.api.streams import Call
from barnraise.codec.chain import codec_of
from barnraise.codec.codec import Codec
from barnraise.codec.feedback import Residual
from barnraise.codec.level import level_named
from barnraise.collective import tree
from barnraise.collective.adoption import Graph
from barnraise.collective.alltoall import all_to_all
from barnraise.collective.buffers import (
    Buffers,
    Codecs,
    CodedBuffers,
    RawBuffers,
    Scratch,
    Store,
    Task,
    Vector,
    chunks_of,
)
from barnraise.collective.cost import GRAIN_ELEMENTS, Wire
from barnraise.collective.kinds import schedule_of
from barnraise.collective.program import Chunk, Program, program_of
from barnraise.collective.schedule import Schedule, all_gather, reduce_scatter
from barnraise.errors import ConfigError
from barnraise.ids import PeerId
from barnraise.net.frames import MAX_PAYLOAD_BYTES

ALIGNMENT: Final = 64
"""Parts begin at multiples of this many elements: whole cache lines of any type."""
MAX_ENCODED_ELEMENTS: Final = MAX_PAYLOAD_BYTES
"""Most elements of a chunk that is encoded to a byte an element or less; its encoding must fit a frame. What Python does
for a chunk counts: at 256 Ki elements instead of 128 Ki an int8 all-reduce of 25 MB took a quarter less CPU, at twice as
many a sixth less again."""
ENCODED_STEP: Final = 1024
"""Chunks that are encoded have so many elements more or less: whole blocks of all block codecs."""
NUM_PLANS: Final = 32


@dataclass(frozen=True, slots=True)
class HandOn:
    """A result that stands is copied, by place in the schedule."""

    holder: int
    incomplete: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that follows from call and members."""

    program: Program
    chunks: tuple[Chunk, ...]
    """Of the whole vector."""
    results: tuple[tuple[int, int], ...]
    """What of the vector is this rank's to have at the end."""
    codec: str
    """How values travel: the call's, or the one that was chosen for it."""
    digest: bytes
    """Equal on all ranks that do the same thing together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """What the user brings to a collective."""

    vector: Vector
    weight: float = 1.0
    residual: Residual | None = None


def part_of(size: int, place: int, num_members: int) -> tuple[int, int]:
    """Return ``(start, stop)`` of a member's part of a vector."""
    return all_to_all(num_members).bounds(size, ALIGNMENT)[place]


class Plans:
    """Plans that were made before, and the memory that they use: of two collectives, in turns.

    Args:
        group: the peers by rank.
    """

    def __init__(self, group: Sequence[PeerId]) -> None:
        self._group = tuple(group)
        self._known: dict[tuple[Call, tuple[int, ...], int, HandOn | None, Graph | None], Plan] = {}
        self._stores = (Store(), Store())
        self._scratch = Scratch()
        self._codecs: dict[tuple[str, int], Codecs] = {}

    def plan(
        self,
        call: Call,
        members: tuple[int, ...],
        place: int,
        hand_on: HandOn | None = None,
        graph: Graph | None = None,
    ) -> Plan:
        """Return a rank's plan.

        Args:
            call: what is to be done.
            members: ranks that take part.
            place: of this rank among them.
            hand_on: what is copied instead, where a result stands.
            graph: the links that all members plan by; None: all go by a rule that needs none.

        Raises:
            ConfigError: codec or schedule are none, or do not suit the call.
        """
        key = (call, members, place, hand_on, graph)
        found = self._known.get(key)  # once: a result is handed on from another thread, which may clear it
        if found is None:
            found = self._make(call, members, place, hand_on, graph)
            if len(self._known) >= NUM_PLANS:
                self._known.clear()
            self._known[key] = found
        return found

    def choice(self, call: Call, members: tuple[int, ...], graph: Graph | None) -> Choice:
        """Return how an all-reduce among the members goes by a graph, and why. Raises like `plan`."""
        links = None if graph is None else links_between(self._group, members, graph)
        return choose(call, len(members), links, is_whole=len(members) == len(self._group))

    def work(self, plan: Plan, call: Call, given: Input, weights: Sequence[float], sequence: int) -> Work:
        """Return what is to be done by a plan for a collective in which the members' inputs weigh so much."""
        is_plain = is_raw(plan.codec)
        task = Task(
            own=given.vector,
            weight=given.weight,
            divisor=sum(weights) if call.operation.endswith("mean") else 1.0,
            seed=sequence,
            residual=_made_good(given.residual) if is_plain else given.residual,
        )
        store = self._stores[sequence % 2]
        if is_plain:
            self._scratch.fit(MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES)
            buffers: Buffers = RawBuffers(task, plan.program, plan.results, store, self._scratch)
        else:
            codecs = self._codecs_of(plan.codec, len(weights))
            buffers = CodedBuffers(task, plan.program, store, self._scratch, codecs, plan.chunks)
        return Work(plan.program, buffers)

    def handing_on(self, plan: Plan, call: Call, vector: Vector, sequence: int, finished: Buffers | None) -> Work:
        """Return the work of copying a result as it is; ``finished`` has it, on the rank that hands it on."""
        self._scratch.fit(MAX_PAYLOAD_BYTES, MAX_PAYLOAD_BYTES)
        store = self._stores[sequence % 2]
        if finished is not None:
            vector = store.work(call.size, np.dtype(call.dtype))
            finished.write_result(vector)
        task = Task(own=vector)
        return Work(plan.program, RawBuffers(task, plan.program, plan.results, store, self._scratch))

    def _make(
        self, call: Call, members: tuple[int, ...], place: int, hand_on: HandOn | None, graph: Graph | None
    ) -> Plan:
        schedule, codec, elements = self._way(call, members, hand_on, graph)
        bounds = schedule.bounds(call.size, ALIGNMENT)
        is_whole = call.operation.partition(" ")[0] != "reduce_scatter"
        mine = tuple(bounds[part] for part, owner in enumerate(schedule.owners) if owner == place)
        return Plan(
            program=program_of(schedule, place, call.size, elements, ALIGNMENT),
            chunks=chunks_of(schedule, call.size, elements, ALIGNMENT),
            results=((0, call.size),) if is_whole else mine,
            codec=codec,
            digest=self._digest(call, members, schedule, codec, elements),
        )

    def _way(
        self, call: Call, members: tuple[int, ...], hand_on: HandOn | None, graph: Graph | None
    ) -> tuple[Schedule, str, int]:
        """Return schedule, codec, and the elements of a chunk."""
        raw_elements = MAX_PAYLOAD_BYTES // np.dtype(call.dtype).itemsize
        schedule = _fixed_schedule(call, members, hand_on)
        if schedule is not None and (hand_on is not None or is_raw(call.codec)):
            return schedule, call.codec, raw_elements
        if schedule is not None:
            return schedule, call.codec, chunk_elements(call.codec, len(members))
        chosen = self.choice(call, members, graph)
        most = raw_elements if is_raw(chosen.codec) else chunk_elements(chosen.codec, len(members))
        elements = chosen.chunk_elements
        # The planner goes by whole grains: its largest chunk is a little less than what fits, and a rest costs a frame.
        if elements is None or elements > most - GRAIN_ELEMENTS:
            elements = most
        return chosen.schedule, chosen.codec, elements

    def _digest(self, call: Call, members: tuple[int, ...], schedule: Schedule, codec: str, elements: int) -> bytes:
        """Hash who does what: where two machines' arithmetic made them choose differently, they find out here."""
        moves = [(move.step, move.sender, move.receiver, move.part, move.action.value) for move in schedule.transfers]
        cuts = [(cut.numerator, cut.denominator) for cut in schedule.cuts]
        said = (self._group, call, members, schedule.kind, cuts, schedule.owners, moves, codec, elements)
        return blake3.blake3(msgspec.msgpack.encode(said)).digest()

    def _codecs_of(self, name: str, count: int) -> Codecs:
        if (name, count) not in self._codecs:
            sending, receiving = codec_of(name, np.float32), codec_of(name, np.float32)
            finishing = codec_of(name, np.float32).for_aggregate(count)
            self._codecs[name, count] = Codecs(sending=sending, receiving=receiving, finishing=finishing)
        return self._codecs[name, count]


@functools.lru_cache(NUM_PLANS)
def check(call: Call) -> None:
    """Raise `ConfigError` where no ranks whatever could carry this out."""
    if level_named(call.codec) is not None:
        _check_level(call)
    elif not is_raw(call.codec):
        _check_codec(call)
    if call.schedule not in BY_LINKS:
        schedule_of(call.schedule, 2)


def _check_level(call: Call) -> None:
    if call.operation not in ("mean", "sum"):
        name = call.operation.partition(" ")[0]
        raise ConfigError(
            f"codec={call.codec!r} is for all_reduce: {name} has no feedback to make good later what a level may lose. "
            "Name a codec, such as 'bf16' or 'int8'."
        )


def _check_codec(call: Call) -> None:
    if call.dtype == "float64":
        raise ConfigError(f"codec={call.codec!r} is for float32; a float64 tensor travels as it is, with codec='fp32'")
    codec = codec_of(call.codec, np.float32)
    if call.schedule == "hierarchical" and Wire.of(codec, 3).is_once:
        raise ConfigError(
            f"codec={call.codec!r} loses too much to be applied at every hop of schedule='hierarchical'. Use "
            "schedule='auto' or 'shards', or codec 'int8'."
        )


def chunk_elements(name: str, count: int) -> int:
    """Return how many elements are encoded together: an encoding fits into a frame, on its way and finished."""
    codec: Codec = codec_of(name, np.float32)
    finishing = codec.for_aggregate(count)
    elements = MAX_ENCODED_ELEMENTS
    while max(codec.bound_bytes(elements), finishing.bound_bytes(elements)) > MAX_PAYLOAD_BYTES:
        elements -= ENCODED_STEP
    return elements


def _made_good(residual: Residual | None) -> Residual | None:
    """Return what is owed, to be brought in as it is: afterwards nothing is. None: nothing is now."""
    if residual is None:
        return None
    residual.staged.fill(0.0)
    return residual if residual.kept.any() else None


def _fixed_schedule(call: Call, members: tuple[int, ...], hand_on: HandOn | None) -> Schedule | None:
    """Return the schedule of what there is only one for; None: of an all-reduce."""
    count, name = len(members), call.operation.partition(" ")[0]
    if hand_on is not None:
        return tree.hand_on(count, hand_on.holder, hand_on.incomplete)
    if name == "broadcast":
        return tree.broadcast(count, members.index(call.root))
    if name == "reduce_scatter":
        return reduce_scatter(all_to_all(count))
    if name == "all_gather":
        return all_gather(all_to_all(count))
    return None
