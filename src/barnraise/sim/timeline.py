"""Simulated time: what is to happen when, in order, with random delays drawn from one seed; nothing of collectives."""

import heapq
import itertools
import random
from collections.abc import Callable, Hashable
from typing import Any, Final

DELAY_S: Final = (0.001, 0.02)
"""A message's way takes between these."""


class Timeline:
    """A clock that jumps from one event to the next. The same seed and calls give the same order.

    Args:
        seed: Draws all delays.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._fifo: dict[Hashable, float] = {}

    @property
    def is_over(self) -> bool:
        """Tell whether nothing is to happen any more."""
        return not self._heap

    def step(self) -> None:
        """Jump to the next event and let it happen."""
        self.now, _, act, args = heapq.heappop(self._heap)
        act(*args)

    def later(self, delay_s: float, act: Callable[..., None], *args: object) -> None:
        """Do something after a while."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), act, args))

    def delayed(self, act: Callable[..., None], *args: object) -> None:
        """Do something after a random delay."""
        self.later(self.rng.uniform(*DELAY_S), act, *args)

    def in_order(self, key: Hashable, act: Callable[..., None], *args: object) -> float:
        """Do something after a random delay, but not before what was to be done earlier under the same key."""
        at = max(self._fifo.get(key, 0.0), self.now + self.rng.uniform(*DELAY_S))
        self._fifo[key] = at
        heapq.heappush(self._heap, (at, next(self._order), act, args))
        return at
