"""The weighted mean on the grid: exact integer sums, rounded once. It withstands no liar at all (f = 0)."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from barnraise.errors import LocalError

CHUNK = 1 << 16
Int16 = npt.NDArray[np.int16]

MAX_TOTAL_WEIGHT = 1 << 36
"""Sums of int16 values stay below 2**52, where float64 division still tells every tie apart."""


def weighted_mean(updates: Sequence[Int16], weights: Sequence[int], out: Int16) -> None:
    """Write ``round_half_even(sum_i w_i x_i / sum_i w_i)`` to ``out``.

    The result depends on neither order, thread count nor instruction set: the sum is integer, and the one
    division is correctly rounded in float64, where no quotient of such integers lies near enough to a tie to be
    mistaken for one.

    Args:
        updates: n arrays int16[d]; a weight of zero takes an update out.
        weights: n integers >= 0 (samples behind each update).
        out: int16[d].

    Raises:
        LocalError: no weight is positive, or their sum is over ``MAX_TOTAL_WEIGHT``.
    """
    divisor = math.gcd(*weights)
    if min(weights) < 0 or divisor == 0:
        raise LocalError(f"weights {list(weights)} have no positive sum")
    reduced = [weight // divisor for weight in weights]
    total = sum(reduced)
    if total > MAX_TOTAL_WEIGHT:
        raise LocalError(f"the weights sum to {total}, over the limit of {MAX_TOTAL_WEIGHT}")
    kind = np.int32 if total * 32768 < 2**31 else np.int64
    for start in range(0, len(out), CHUNK):
        stop = min(start + CHUNK, len(out))
        total_sum = np.zeros(stop - start, kind)
        for update, weight in zip(updates, reduced, strict=True):
            np.add(total_sum, update[start:stop] * kind(weight), out=total_sum)
        out[start:stop] = np.rint(np.true_divide(total_sum, total))
