"""Block floating point on the agreed grid: 8 bits an element and a shift for every 1024; pure.

Theory of operation. The values are integers already (`grid`). A block of 1024 of them, counted from the shard's start,
with the largest magnitude p shares one shift s = max(0, bit_length(p) - 7), and an element x is sent as

    q = x / 2**s, rounded to the nearest integer, ties to even, at most 127        decoded: q 2**s

On the wire: q of all elements, int8, then the shifts, one uint8 a block. Decoding multiplies integers, so every machine
gets the same ones and their sums stay exact; that is what a float scale (Dettmers 2015, arXiv 1511.04561; block-wise
in arXiv 2110.02861) would give up. Of |x| <= 32767 the shift is at most 8. It is never larger here: -32768 is
-128 * 2**8, and with s <= 8 no q leaves int16, so a hostile shard can do no more than lie about its values.

What an element loses is at most 1/127 of its block's largest: half of 2**s where that is at least 64 * 2**s, or, where
127 cuts it off, less than 2**s.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from barnraise.codec.grid import Bytes, Int16
from barnraise.errors import LocalError

BLOCK: Final = 1024
BITS: Final = 7
"""Of an element's magnitude."""
MAX_SHIFT: Final = 8
LARGEST: Final = np.float32(127)

_STEPS: Final = np.array([1 << shift for shift in range(MAX_SHIFT + 1)], np.int16)
_SCALES: Final = np.array([2.0**-shift for shift in range(MAX_SHIFT + 1)], np.float32)

Int8s = npt.NDArray[np.int8]


class Int8:
    """One byte an element, and one more for every 1024."""

    name: Final = "int8"
    is_exact: Final = False

    def size_bytes(self, count: int) -> int:
        """Return 1 byte for each element and each block begun."""
        return count + -(-count // BLOCK)

    def encode(self, values: Int16, start: int, data: Bytes) -> None:
        """Write the bytes and shifts of a piece; floats of at most 15 bits, scaled by powers of two, round alike
        everywhere."""
        wire, shifts = _parts(data)
        whole = len(values) // BLOCK * BLOCK
        first = start // BLOCK
        for low, high, width in ((0, whole, BLOCK), (whole, len(values), len(values) - whole)):
            if low == high:
                continue
            blocks = shifts[first + low // BLOCK : first + -(-high // BLOCK)]
            target = wire[start + low : start + high].reshape(-1, width)
            _encode_blocks(values[low:high].reshape(-1, width), target, blocks)

    def decode(self, data: Bytes, start: int, stop: int, scratch: Int16) -> Int16:
        """Multiply a piece out into ``scratch``. Raises `LocalError` where a shift is out of range."""
        wire, shifts = _parts(data)
        first = start // BLOCK
        used = shifts[first : -(-stop // BLOCK)]
        if len(used) and int(used.max()) > MAX_SHIFT:
            raise LocalError(f"a shift of {int(used.max())} is over {MAX_SHIFT}; the shard was not checked on arrival")
        out = scratch[: stop - start]
        whole = len(out) // BLOCK * BLOCK
        steps = _STEPS[used]
        if whole:
            blocks = wire[start : start + whole].reshape(-1, BLOCK)
            np.multiply(blocks, steps[: whole // BLOCK, None], out=out[:whole].reshape(-1, BLOCK), dtype=np.int16)
        if whole < len(out):
            np.multiply(wire[start + whole : stop], steps[-1], out=out[whole:], dtype=np.int16)
        return out

    def complaint(self, data: Bytes) -> str:
        """Name a shift that is out of range; any other byte stands for a value."""
        shifts = _parts(data)[1]
        largest = int(shifts.max()) if len(shifts) else 0
        return f"it shifts a block by {largest} bits, over {MAX_SHIFT}" if largest > MAX_SHIFT else ""


def _parts(data: Bytes) -> tuple[Int8s, Bytes]:
    """Return the elements' bytes and the shifts: of 1025 bytes or a rest of them, the last one is a shift."""
    count = len(data) - -(-len(data) // (BLOCK + 1))
    return data[:count].view(np.int8), data[count:]


def _encode_blocks(rows: Int16, wire: Int8s, shifts: Bytes) -> None:
    """Encode blocks, int16[n, width], into int8[n, width] and uint8[n]."""
    peaks = np.maximum(rows.max(axis=1).astype(np.int32), -rows.min(axis=1).astype(np.int32))
    lengths = np.frexp(peaks.astype(np.float64))[1]  # the exponent of an integer is its bit length
    found = np.clip(lengths - BITS, 0, MAX_SHIFT)
    scaled = rows.astype(np.float32)
    scaled *= _SCALES[found][:, None]
    np.rint(scaled, out=scaled)
    np.minimum(scaled, LARGEST, out=scaled)
    wire[...] = scaled
    shifts[...] = found
