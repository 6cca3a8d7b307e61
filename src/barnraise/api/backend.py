"""What a context asks of whoever carries out its collectives: five calls. A new way to do so is a class beside this."""

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Operation = Literal["mean", "sum"]
Vector = npt.NDArray[np.float32] | npt.NDArray[np.float64]


class Backend(Protocol):
    """One machine's end of a group of ranked peers. All calls block; one thread makes them, one at a time.

    After a collective has failed, every later one raises `Unavailable`: the ranks may disagree on what was done.
    """

    @property
    def rank(self) -> int:
        """This peer's place, 0 .. world_size - 1. Raises `ConfigError` before the group is there."""
        ...

    @property
    def world_size(self) -> int:
        """Number of peers in the group. Raises like ``rank``."""
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

    def all_reduce(self, vector: Vector, operation: Operation, timeout_s: float) -> Vector:
        """Return the sum or mean of all ranks' vectors: the same bits on every rank.

        Args:
            vector: float32[d] or float64[d]; neither changed nor kept.
            operation: ``mean`` or ``sum``.
            timeout_s: after so long it is given up.

        Raises:
            Unavailable: a peer is gone or too slow; the message names it.
            ConfigError: the ranks did not ask for the same thing.
        """
        ...

    def barrier(self, timeout_s: float) -> None:
        """Return once every rank has called this as often as we have. Raises like ``all_reduce``."""
        ...

    def close(self) -> None:
        """Leave the group; may be called twice."""
        ...
