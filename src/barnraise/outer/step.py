"""The outer step: how a round's aggregate moves the agreed parameters.

Multiplies and adds of float32 in one fixed order, element by element, so that IEEE 754 gives every machine the
same bits. No sums, square roots or exponentials (DiLoCo, arXiv 2311.08105; Nesterov as in Sutskever et al. 2013,
section 2, in the form of torch.optim.SGD).
"""

import numpy as np
import numpy.typing as npt

from barnraise.config import OuterConfig

CHUNK = 1 << 16
Float32 = npt.NDArray[np.float32]


def step(config: OuterConfig, theta: Float32, momentum: Float32, gradient: Float32) -> None:
    """Apply one outer step in place.

        v     <- m v + g
        theta <- theta - lr (g + m v)      nesterov
        theta <- theta - lr g              average (lr 1: plain parameter averaging)

    Args:
        config: Kind, lr and m.
        theta: float32[d], overwritten.
        momentum: v, float32[d], overwritten; ``average`` leaves it alone.
        gradient: g, float32[d], the mean of theta - w_i; used as scratch and overwritten.
    """
    lr, m = np.float32(config.lr), np.float32(config.momentum)
    for start in range(0, len(theta), CHUNK):
        part = slice(start, min(start + CHUNK, len(theta)))
        g = gradient[part]
        if config.optimizer == "nesterov":
            v = momentum[part]
            v *= m
            v += g
            g += m * v
        g *= lr
        theta[part] -= g
