"""Federated averaging: as local SGD, but who takes part starts afresh each round (McMahan et al. 2017, 1602.05629)."""

from typing import Final

from barnraise.codec.grid import Float32
from barnraise.config import RunConfig
from barnraise.outer.average import average


class FedAvg:
    """A member brings nothing along from its last round: its local optimiser is a new one. Each update weighs as much
    as the samples behind it, which is the aggregate's doing."""

    name: Final = "fedavg"
    keeps_inner_state: Final = False

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
