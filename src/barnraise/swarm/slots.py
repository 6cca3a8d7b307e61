"""Which samples go to whom, exactly once: pure arithmetic on ranges of sample numbers.

Samples are numbers in an endless stream (the data module maps them to text). A round gives each counting member the
next ones, first those that came back from members whose update was not in. So over the agreed log every sample is
trained on exactly once, whoever died.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from barnraise.ids import PeerId


class Segment(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Samples ``first .. first + count - 1`` of the run's endless, shuffled stream."""

    first: int
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """One round's samples, and what is left for the next."""

    slots: dict[PeerId, tuple[Segment, ...]]
    requeued: tuple[Segment, ...]
    cursor: int
    """First sample of the stream that nobody was given."""

    def rest(self, used: Mapping[str, int]) -> tuple[Segment, ...]:
        """Return the queue after the round: what comes back is each slot behind its first ``used`` samples."""
        returned = [segment for peer, slot in self.slots.items() for segment in _behind(slot, used.get(peer, 0))]
        return _merge([*self.requeued, *returned])


def assign(requeued: Sequence[Segment], cursor: int, peers: Sequence[PeerId], count: int) -> Assignment:
    """Give each peer ``count`` samples, from the queue first and then from the stream at ``cursor``."""
    queue = list(requeued)
    slots: dict[PeerId, tuple[Segment, ...]] = {}
    for peer in peers:
        taken = _take(queue, count)
        missing = count - sum(segment.count for segment in taken)
        if missing:
            taken.append(Segment(cursor, missing))
            cursor += missing
        slots[peer] = tuple(taken)
    return Assignment(slots=slots, requeued=tuple(queue), cursor=cursor)


def _behind(slot: Sequence[Segment], count: int) -> list[Segment]:
    """Return what is left of a slot without its first ``count`` samples."""
    queue = list(slot)
    _take(queue, count)
    return queue


def _take(queue: list[Segment], count: int) -> list[Segment]:
    """Remove up to ``count`` samples from the front of the queue and return them."""
    taken: list[Segment] = []
    while count and queue:
        segment = queue.pop(0)
        used = min(count, segment.count)
        taken.append(Segment(segment.first, used))
        count -= used
        if used < segment.count:
            queue.insert(0, Segment(segment.first + used, segment.count - used))
    return taken


def _merge(segments: list[Segment]) -> tuple[Segment, ...]:
    """Return the segments in order, neighbours joined."""
    merged: list[Segment] = []
    for segment in sorted(segments, key=lambda item: item.first):
        if merged and merged[-1].first + merged[-1].count == segment.first:
            merged[-1] = Segment(merged[-1].first, merged[-1].count + segment.count)
        else:
            merged.append(segment)
    return tuple(merged)
