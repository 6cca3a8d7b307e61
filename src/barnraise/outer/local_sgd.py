"""Local SGD: some local steps, then the mean of the members' parameters (Stich 2018, arXiv 1805.09767)."""

from typing import Final

from barnraise.codec.grid import Float32
from barnraise.config import RunConfig
from barnraise.outer.average import average


class LocalSGD:
    """Members keep their local optimisers' state from round to round and average nothing but parameters."""

    name: Final = "local_sgd"
    keeps_inner_state: Final = True

    def steps(self, config: RunConfig) -> int:
        """Return the configured inner steps."""
        return config.round.steps

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
