"""What may become of a round's aggregate: the one interface of all strategies, and the choice among them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from barnraise.codec.grid import Float32
from barnraise.config import RunConfig
from barnraise.outer.diloco import DiLoCo
from barnraise.outer.fedavg import FedAvg
from barnraise.outer.local_sgd import LocalSGD
from barnraise.outer.synchronous import Synchronous


class Strategy(Protocol):
    """How long the members train apart and how what they bring back moves the agreed parameters.

    Every machine must come to the same bits: multiplies and adds of float32 in one fixed order, element by element.
    No sums over elements, square roots or exponentials.
    """

    @property
    def name(self) -> str:
        """Return the name that the configuration knows it by."""
        ...

    @property
    def keeps_inner_state(self) -> bool:
        """Tell whether the local optimiser goes on from round to round, or starts afresh in each."""
        ...

    def steps(self, config: RunConfig) -> int:
        """Return the inner steps between two exchanges."""
        ...

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
        """Apply one outer step in place.

        Args:
            config: The run's.
            round_: Number of the round, from 0.
            theta: float32[d], overwritten.
            momentum: float32[d], overwritten; left alone by a strategy that has none.
            gradient: float32[d], the mean of theta - w_i; used as scratch and overwritten.
            holds_momentum: The momentum has no part in this step and stays as it is: `State.holds_momentum`.
        """
        ...


_STRATEGIES: Final[Mapping[str, Strategy]] = MappingProxyType(
    {strategy.name: strategy for strategy in (DiLoCo(), LocalSGD(), FedAvg(), Synchronous())}
)


def strategy_of(config: RunConfig) -> Strategy:
    """Return the run's strategy."""
    return _STRATEGIES[config.strategy]
