"""What a context asks of whoever carries out its collectives. A new way to do so is a class beside this."""

from collections.abc import Mapping
from typing import Protocol

from barnraise.api.choice import Choice
from barnraise.api.plans import Input
from barnraise.api.streams import Call
from barnraise.collective.buffers import Vector


class Backend(Protocol):
    """One machine's end of a group of ranked peers. All calls block; one thread makes them, one at a time."""

    @property
    def rank(self) -> int:
        """This peer's place, 0 .. world_size - 1. Raises `ConfigError` before the group is there."""
        ...

    @property
    def world_size(self) -> int:
        """Number of peers that formed the group. Raises like ``rank``."""
        ...

    @property
    def members(self) -> tuple[int, ...]:
        """Ranks that are in, ascending. Raises like ``rank``."""
        ...

    @property
    def lost(self) -> Mapping[int, str]:
        """Ranks that are out, and why. Raises like ``rank``."""
        ...

    @property
    def address(self) -> str:
        """Where others reach this peer."""
        ...

    def wait_for_peers(self, count: int | None, timeout_s: float) -> None:
        """Return once ``count`` peers, this one included, are connected and ranked; None: all that are named.

        Raises:
            Unavailable: they did not come in time.
            ConfigError: no such group can be; two peers claim one rank.
        """
        ...

    def carry_out(self, call: Call, given: Input, out: Vector, timeout_s: float) -> None:
        """Carry a collective out among the members; those that die meanwhile are no members any more.

        Args:
            call: what it is, the same on all ranks.
            given: what this rank brings: float[d], only read.
            out: float[d], perhaps the same array; written when the result stands, and else left as it is.
            timeout_s: how long to wait for the others to call it too.

        Raises:
            Unavailable: this rank is no member any more, or too few are left.
            ConfigError: the ranks did not ask for the same thing.
        """
        ...

    def choice(self, call: Call) -> Choice:
        """Return how an all-reduce would go by what this peer knows now of the links, and why. Raises like ``rank``."""
        ...

    def close(self) -> None:
        """Leave the group; may be called twice."""
        ...
