"""DiLoCo: many local steps, then Nesterov momentum on the mean update (Douillard et al. 2023, arXiv 2311.08105)."""

from typing import Final

import numpy as np

from barnraise.codec.grid import Float32
from barnraise.config import OuterConfig, RunConfig

CHUNK: Final = 1 << 16
"""Elements worked on at once: the temporaries of a chunk stay in the L2 cache."""


class DiLoCo:
    """The outer optimiser is Nesterov's as in Sutskever et al. 2013, section 2, in the form of torch.optim.SGD."""

    name: Final = "diloco"
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
        """Apply one outer step in place, in exactly this order of operations.

        v     <- m v + g
        theta <- theta - lr (g + m v)

        While the momentum is held, v stays and theta <- theta - lr g.
        """
        lr, m = np.float32(config.outer.lr), momentum_of(config.outer, round_)
        for start in range(0, len(theta), CHUNK):
            part = slice(start, min(start + CHUNK, len(theta)))
            g, v = gradient[part], momentum[part]
            if not holds_momentum:
                v *= m
                v += g
                g += m * v
            g *= lr
            theta[part] -= g


def momentum_of(config: OuterConfig, round_: int) -> np.float32:
    """Return a round's momentum, m min(1, (r + 1) / n); the same on each machine, as float64 division is exact to its
    last bit everywhere and a float64 rounds to one float32."""
    if round_ + 1 >= config.momentum_rounds:
        return np.float32(config.momentum)
    return np.float32(config.momentum * ((round_ + 1) / config.momentum_rounds))
