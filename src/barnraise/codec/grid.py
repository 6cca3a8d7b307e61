"""Rounding updates to a fixed-point grid, so that every sum of them is exact and the same on every machine.

An update is cut into blocks, one per tensor of the model. Block b is stored as int16 multiples of
``2**-exponents[b]``. What rounding and saturation took away is the residual, fed back into the next round's
update (error feedback: Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847). Float arithmetic differs
between machines in its last bit as soon as sums are reordered; integers do not.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from barnraise.errors import LocalError

CODEC = "grid16"
LIMIT = 32767
HEADROOM_BITS = 3
"""The next round's largest update may be 8 times this round's largest aggregate before it saturates."""
MIN_EXPONENT, MAX_EXPONENT = -20, 40
CHUNK = 1 << 16
"""Elements worked on at once: the temporaries of a chunk stay in the L2 cache."""

Float32 = npt.NDArray[np.float32]
Int16 = npt.NDArray[np.int16]
Blocks = Sequence[tuple[int, int]]
"""``(start, stop)`` of each block; together they tile the vector."""


def encode(update: Float32, blocks: Blocks, exponents: Sequence[int], encoded: Int16, residual: Float32) -> None:
    """Round ``update + residual`` to the grid; leave the integers in ``encoded`` and the remainder in ``residual``.

    Args:
        update: float32[d], finite; used as scratch and overwritten.
        blocks: Where each block lies.
        exponents: One integer per block.
        encoded: int16[d], written.
        residual: float32[d], read and then overwritten.

    Raises:
        LocalError: a value is not finite.
    """
    for start, stop, exponent in chunks(blocks, exponents):
        value = update[start:stop]
        rest = residual[start:stop]
        value += rest
        if not np.isfinite(value).all():
            raise LocalError(f"the update is not finite between elements {start} and {stop}; the round is not sent")
        largest = np.float32(LIMIT * 2.0**-exponent)
        np.clip(value, -largest, largest, out=rest)  # first: what is scaled up unclipped may overflow
        np.multiply(rest, np.float32(2.0**exponent), out=rest)
        np.rint(rest, out=rest)
        encoded[start:stop] = rest
        np.multiply(rest, np.float32(2.0**-exponent), out=rest)
        np.subtract(value, rest, out=rest)


def decode(encoded: Int16, blocks: Blocks, exponents: Sequence[int], out: Float32) -> None:
    """Write the float32 values of grid integers to ``out``; exact, as powers of two are."""
    for start, stop, exponent in chunks(blocks, exponents):
        np.multiply(encoded[start:stop], np.float32(2.0**-exponent), out=out[start:stop], dtype=np.float32)


def next_exponents(aggregate: Int16, blocks: Blocks, exponents: Sequence[int]) -> tuple[int, ...]:
    """Return the grid of the next round, from the agreed aggregate alone, in integers."""
    adapted = []
    for (start, stop), exponent in zip(blocks, exponents, strict=True):
        block = aggregate[start:stop]
        peak = max(int(block.max()), -int(block.min())) if stop > start else 0
        spare = 15 - HEADROOM_BITS - peak.bit_length() if peak else 2
        adapted.append(min(MAX_EXPONENT, max(MIN_EXPONENT, exponent + spare)))
    return tuple(adapted)


def chunks(blocks: Blocks, exponents: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return ``(start, stop, exponent)`` of pieces of at most ``CHUNK`` elements, none of which crosses a block."""
    return [
        (start, min(start + CHUNK, stop), exponent)
        for (first, stop), exponent in zip(blocks, exponents, strict=True)
        for start in range(first, stop, CHUNK)
    ]
