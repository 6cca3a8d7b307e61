"""How long each kind of schedule takes where all links are alike, as a formula of a few terms; pure.

The same model as `cost`, solved by hand: of one chunk, ``seal``, ``line`` and ``open`` are the times of its three stages.
Chunks follow each other every ``beat``, the longest of the three; one needs ``hop`` from the sender's thread through the
line and the latency to the end of the receiver's. With one chunk a part and no CPU time the forms are the well-known ones,
of `formulas`; with many chunks the latency hides behind them, and the forms say how far.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from barnraise.collective.cost import Job
from barnraise.collective.links import LinkProfile
from barnraise.collective.program import STEP_LAG
from barnraise.collective.schedule import Action
from barnraise.errors import LocalError


@dataclass(frozen=True, slots=True)
class _Phase:
    """The REDUCEs or the COPYs of one kind, on links that are all alike."""

    beat_s: float
    hop_s: float
    full_hop_s: float
    """Of a whole chunk; the others are of a mean one, since a part's last chunk is shorter."""


def closed_form_s(kind: str, world_size: int, profile: LinkProfile, job: Job) -> float:
    """Return the time of one collective of ``world_size`` ranks.

    Args:
        kind: ``shards``, ``ring``, ``butterfly``, ``tree`` or ``centralised``.
        world_size: Number of ranks.
        profile: Of each link, and of each host's limits.
        job: What is moved.

    Raises:
        LocalError: there is no form for the kind.
    """
    if kind not in _FORMS:
        raise LocalError(f"no closed form for {kind!r}: known are {', '.join(_FORMS)}")
    return sum(_FORMS[kind](world_size, profile, job)) if world_size > 1 and job.size else 0.0


def hierarchical_s(inner: tuple[str, int, LinkProfile], outer: tuple[str, int, LinkProfile], job: Job) -> float:
    """Return the time of a hierarchy of equal groups: inner REDUCEs, all of the outer kind on a share, inner COPYs.

    Nothing is taken off for what overlaps between the levels, so it is a little too much.

    Args:
        inner: Kind, ranks of a group, and the links inside.
        outer: Kind, number of groups, and the links across.
        job: What is moved.
    """
    kind, group_size, inside = inner
    share = Job(
        size=-(-job.size // group_size) if kind not in ("tree", "centralised") else job.size,
        wire=job.wire,
        chunk_elements=job.chunk_elements,
        effort=job.effort,
    )
    across_s = closed_form_s(outer[0], outer[1], outer[2], share)
    return across_s + (sum(_FORMS[kind](group_size, inside, job)) if group_size > 1 and job.size else 0.0)


Halves = tuple[float, float]
"""Seconds until all parts are finished, and until they are everywhere."""


class _Parts:
    """A vector cut into parts of ``count`` chunks each, and how one of them moves."""

    def __init__(self, profile: LinkProfile, job: Job, num_parts: int) -> None:
        elements = -(-job.size // num_parts)
        self.count = -(-elements // job.chunk_elements)
        self._profile, self._job, self._elements = profile, job, elements / self.count
        self._full = min(elements, job.chunk_elements) / self._elements
        self.finish_s = job.finish_s(self._elements)

    def up(self, turns: bool = False, finished: float = 0.0) -> _Phase:
        """Return how its REDUCEs go: whether to another peer each time, and what share of them finishes a chunk."""
        return self._phase(Action.REDUCE, turns, finished * self.finish_s)

    def down(self, turns: bool = False) -> _Phase:
        """Return how its COPYs go."""
        return self._phase(Action.COPY, turns, 0.0)

    def _phase(self, action: Action, turns: bool, more_s: float) -> _Phase:
        job, elements, factor = self._job, self._elements, self._job.effort.turn_factor if turns else 1.0
        line_s = factor * job.wire_bytes(action, elements) / self._profile.bandwidth_bytes_s
        seal_s, open_s = factor * job.send_s(action, elements), job.receive_s(action, elements) + more_s
        stages_s = seal_s + line_s + open_s
        latency_s = self._profile.latency_s
        return _Phase(max(seal_s, line_s, open_s), stages_s + latency_s, self._full * stages_s + latency_s)


def _shards(world_size: int, profile: LinkProfile, job: Job) -> Halves:
    parts, others = _Parts(profile, job, world_size), world_size - 1
    up, down = parts.up(others > 1, 1 / others), parts.down(others > 1)
    sent = others * parts.count * up.beat_s
    reduced = sent + up.hop_s - up.beat_s
    first_is_finished = others * up.beat_s + up.full_hop_s - up.beat_s
    last_chunk = reduced + others * down.beat_s
    from_the_first = max(first_is_finished, sent) + others * parts.count * down.beat_s
    return reduced, max(last_chunk, from_the_first) + down.hop_s - down.beat_s - reduced


def _ring(world_size: int, profile: LinkProfile, job: Job) -> Halves:
    parts, others = _Parts(profile, job, world_size), world_size - 1
    up, last_up, down = parts.up(), parts.up(finished=1.0), parts.down()
    up_turn, last_turn, down_turn = (max(parts.count * phase.beat_s, phase.full_hop_s) for phase in (up, last_up, down))
    before = (others - 1) * up_turn
    reduced = before + (parts.count - 1) * last_up.beat_s + last_up.hop_s
    ends = before + last_turn + (others - 1) * down_turn + (parts.count - 1) * down.beat_s + down.hop_s
    return reduced, ends - reduced


def _butterfly(world_size: int, profile: LinkProfile, job: Job) -> Halves:
    core = 1 << (world_size.bit_length() - 1)
    parts, rounds = _Parts(profile, job, core), core.bit_length() - 1
    halving = [parts.count * core >> number for number in range(1, rounds + 1)]
    flow = _Flow()
    if world_size > core:
        flow.step(parts.count * core, parts.up())
        flow.sent = 0.0  # by those who folded, and are done
    for moved in halving[:-1]:
        flow.step(moved, parts.up())
    flow.step(halving[-1], parts.up(finished=1.0))
    reduced = flow.ends
    for moved in halving[::-1]:
        flow.step(moved, parts.down())
    if world_size > core:
        flow.step(parts.count * core, parts.down())
    return reduced, flow.ends - reduced


class _Flow:
    """Steps that each pass on what the one before brought, chunk by chunk."""

    def __init__(self) -> None:
        self.first_here, self.sent, self.ends = 0.0, 0.0, 0.0

    def step(self, num_chunks: int, phase: _Phase) -> None:
        """Add a step: its chunks wait for the sender and for the first arrival, the last of them for the last one."""
        start = max(self.sent, self.first_here)
        self.sent = max(start + num_chunks * phase.beat_s, self.ends + phase.beat_s)
        self.first_here = start + phase.hop_s
        self.ends = self.sent + phase.hop_s - phase.beat_s


def _tree(world_size: int, profile: LinkProfile, job: Job) -> Halves:
    parts, depth = _Parts(profile, job, 2), (world_size - 1).bit_length()
    up, down = parts.up(depth > 1, finished=1.0 if depth == 1 else 0.0), parts.down(depth > 1)

    # The busiest rank sends so many halves of the vector. Who is a leaf in one tree is not in the other, and its next leaf
    # waits for a whole way of the other's chunk: of the one STEP_LAG chunks ago.
    num_halves = min(world_size, 4)

    def half(phase: _Phase) -> float:
        waiting = phase.full_hop_s / STEP_LAG if depth > 1 else 0.0
        turn = max(num_halves * phase.beat_s, waiting) / 2
        return depth * (phase.full_hop_s + phase.beat_s) + (parts.count - 1) * turn

    return half(up) + parts.finish_s, half(down)


def _centralised(world_size: int, profile: LinkProfile, job: Job) -> Halves:
    parts, others = _Parts(profile, job, 1), world_size - 1
    up, down = parts.up(finished=1 / others), parts.down(others > 1)
    reduced = others * parts.count * up.beat_s + up.hop_s - up.beat_s
    first_is_finished = others * up.beat_s + up.full_hop_s - up.beat_s
    ends = max(reduced + others * down.beat_s, first_is_finished + others * parts.count * down.beat_s)
    return reduced, ends + down.hop_s - down.beat_s - reduced


_FORMS: Final[Mapping[str, Callable[[int, LinkProfile, Job], Halves]]] = {
    "shards": _shards,
    "ring": _ring,
    "butterfly": _butterfly,
    "tree": _tree,
    "centralised": _centralised,
}
KINDS: Final = tuple(_FORMS)
