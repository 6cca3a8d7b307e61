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
MAX_FLOAT32_WEIGHT = 1 << 7
"""Up to here float32 is as exact and three times as fast: sums stay below 2**23, and a quotient that is no tie lies
2**-8 from one, more than the 2**-10 by which division rounds below 2**15."""


def weighted_mean(updates: Sequence[Int16], weights: Sequence[int], out: Int16) -> None:
    """Write ``round_half_even(sum_i w_i x_i / sum_i w_i)`` to ``out``.

    The result depends on neither order, thread count nor instruction set: the sum is one of integers that the float
    type holds exactly, and the one division is correctly rounded, and no quotient of such integers lies near enough
    to a tie to be mistaken for one.

    Args:
        updates: n arrays int16[d]; a weight of zero takes an update out.
        weights: n integers >= 0 (samples behind each update).
        out: int16[d].

    Raises:
        LocalError: no weight is positive, or their sum is over ``MAX_TOTAL_WEIGHT``.
    """
    divisor = math.gcd(*weights)
    if divisor == 0 or min(weights) < 0:
        raise LocalError(f"weights {list(weights)} have no positive sum")
    reduced = [weight // divisor for weight in weights]
    total = sum(reduced)
    if total > MAX_TOTAL_WEIGHT:
        raise LocalError(f"the weights sum to {total}, over the limit of {MAX_TOTAL_WEIGHT}")
    kind = np.float32 if total <= MAX_FLOAT32_WEIGHT else np.float64
    sums, terms = np.empty(CHUNK, kind), np.empty(CHUNK, kind)
    for start in range(0, len(out), CHUNK):
        stop = min(start + CHUNK, len(out))
        total_sum, term = sums[: stop - start], terms[: stop - start]
        total_sum.fill(0)
        for update, weight in zip(updates, reduced, strict=True):
            term[...] = update[start:stop]
            if weight != 1:
                np.multiply(term, kind(weight), out=term)
            np.add(total_sum, term, out=total_sum)
        np.true_divide(total_sum, kind(total), out=total_sum)
        np.rint(total_sum, out=total_sum)
        out[start:stop] = total_sum
