"""The control plane of simulated ranks: in order on each link, whole as long as it lives, all on its way lost when it breaks."""

from collections import Counter
from collections.abc import Callable

from barnraise.collective.survival_effects import Effect
from barnraise.collective.survival_messages import Message, decode, encode
from barnraise.sim.ranks import Rank
from barnraise.sim.timeline import Timeline

Happen = Callable[[Rank, Callable[[], list[Effect]]], None]
"""Lets something happen to a rank, once it is awake."""


class Control:
    """All control links of a world.

    Args:
        time: When things happen.
        happen: How they do.
    """

    def __init__(self, time: Timeline, happen: Happen) -> None:
        self._time, self._happen = time, happen
        self._down: set[frozenset[int]] = set()
        self._num_lost: Counter[frozenset[int]] = Counter()

    def tell(self, sender: Rank, to: Rank, message: Message) -> None:
        """Send a message, encoded as on a real link."""
        pair = frozenset((sender.index, to.index))
        if to.is_alive and pair not in self._down:
            self._time.in_order(
                (sender.index, to.index), self._arrive, sender, to, encode(message), self._num_lost[pair]
            )

    def _arrive(self, sender: Rank, to: Rank, data: bytes, generation: int) -> None:
        if self._num_lost[frozenset((sender.index, to.index))] == generation:
            message = decode(data)
            self._happen(to, lambda: to.machine.heard(self._time.now, sender.index, message))

    def died(self, rank: Rank, other: Rank) -> None:
        """Tell ``other`` that its link to a rank that died is down, after all that was on its way."""
        if frozenset((rank.index, other.index)) not in self._down:
            key = (rank.index, other.index)
            self._time.in_order(key, self._happen, other, lambda: other.machine.peer_down(self._time.now, rank.index))

    def part(self, one: Rank, other: Rank) -> None:
        """Break the link of two ranks."""
        pair = frozenset((one.index, other.index))
        self._num_lost[pair] += 1
        self._down.add(pair)
        self._happen(one, lambda: one.machine.peer_down(self._time.now, other.index))
        self._happen(other, lambda: other.machine.peer_down(self._time.now, one.index))

    def join(self, one: Rank, other: Rank) -> None:
        """Let two ranks have a link again."""
        pair = frozenset((one.index, other.index))
        if pair in self._down:
            self._down.discard(pair)
            if one.is_alive and other.is_alive:
                self._happen(one, lambda: one.machine.peer_up(self._time.now, other.index))
                self._happen(other, lambda: other.machine.peer_up(self._time.now, one.index))
