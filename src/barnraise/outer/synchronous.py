"""Synchronous data parallelism: the members average after every step."""

from typing import Final

from barnraise.codec.grid import Float32
from barnraise.config import RunConfig
from barnraise.outer.average import average


class Synchronous:
    """With plain SGD inside, one round is one step of SGD on all members' samples together."""

    name: Final = "synchronous"
    keeps_inner_state: Final = True

    def steps(self, config: RunConfig) -> int:
        """Return 1, whatever is configured."""
        return 1

    def step(
        self,
        config: RunConfig,
        round_: int,
        theta: Float32,
        momentum: Float32,
        gradient: Float32,
        *,
        holds_momentum: bool = False,
    ) -> None:
        """Move theta to the mean of the members' parameters; the momentum stays as it is."""
        average(theta, gradient)
