"""The fixed-point grid that updates are rounded to, so that every sum of them is exact and the same on every machine.

An update is cut into blocks, one per tensor of the model. Block b is stored as int16 multiples of
``2**-exponents[b]``. Float arithmetic differs between machines in its last bit as soon as sums are reordered; integers
do not. `rounding` takes updates there, `feedback` says what becomes of the rest.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

LIMIT = 32767
HEADROOM_BITS = 3
"""The next round's largest update may be 8 times this round's largest aggregate before it saturates."""
MIN_EXPONENT, MAX_EXPONENT = -20, 40

Float32 = npt.NDArray[np.float32]
Int16 = npt.NDArray[np.int16]
Bytes = npt.NDArray[np.uint8]
Blocks = Sequence[tuple[int, int]]
"""``(start, stop)`` of each block; together they tile the vector."""


def decode(encoded: Int16, exponent: int, out: Float32) -> None:
    """Write the float32 values of a block's grid integers to ``out``; exact, as powers of two are."""
    np.multiply(encoded, np.float32(2.0**-exponent), out=out, dtype=np.float32)


def next_exponent(exponent: int, peak: int) -> int:
    """Return a block's grid in the next round, from the largest magnitude in the agreed aggregate of this one."""
    spare = 15 - HEADROOM_BITS - peak.bit_length() if peak else 2
    return min(MAX_EXPONENT, max(MIN_EXPONENT, exponent + spare))


def peak_of(encoded: Int16) -> int:
    """Return the largest magnitude, 0 if there is none."""
    return max(int(encoded.max()), -int(encoded.min())) if len(encoded) else 0


def segments(blocks: Blocks, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yield ``(block, low, high)`` for the part of each block that lies within ``start .. stop``; empty ones are left out."""
    for block in range(bisect_right(blocks, start, key=lambda bounds: bounds[1]), len(blocks)):
        low, high = max(start, blocks[block][0]), min(stop, blocks[block][1])
        if low >= stop:
            return
        if low < high:
            yield block, low, high
