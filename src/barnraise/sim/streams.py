"""Streams between simulated ranks: queues of a few chunks, one a direction, pair and attempt; and which pairs have none."""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Whole = npt.NDArray[np.int64]

STREAM_CHUNKS: Final = 2
"""Chunks that fit into a stream, on their way or not read."""


@dataclass(slots=True)
class Frame:
    """A chunk on its way."""

    sequence: int
    arrives_at: float
    values: Whole
    members: tuple[int, ...]
    is_damaged: bool


Stream = deque[Frame]


class Streams:
    """All streams of a world."""

    def __init__(self) -> None:
        self._queues: dict[tuple[int, int, int], Stream] = {}
        self._cut: set[frozenset[int]] = set()

    def between(self, sender: int, receiver: int, attempt: int) -> Stream:
        """Return the stream from one rank to another in one attempt."""
        return self._queues.setdefault((sender, receiver, attempt), deque())

    def is_full(self, sender: int, receiver: int, attempt: int) -> bool:
        """Tell whether a sender must wait for room."""
        return len(self.between(sender, receiver, attempt)) >= STREAM_CHUNKS

    def has_arrived(self, sender: int, receiver: int, attempt: int, now: float) -> bool:
        """Tell whether there is something to receive."""
        stream = self.between(sender, receiver, attempt)
        return bool(stream) and stream[0].arrives_at <= now

    def is_cut(self, one: int, other: int) -> bool:
        """Tell whether two ranks cannot reach each other."""
        return bool(self._cut) and frozenset((one, other)) in self._cut

    def cut(self, one: int, other: int) -> None:
        """Part two ranks."""
        self._cut.add(frozenset((one, other)))

    def join(self, one: int, other: int) -> None:
        """Let two ranks reach each other again."""
        self._cut.discard(frozenset((one, other)))
