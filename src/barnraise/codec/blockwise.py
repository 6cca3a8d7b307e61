"""8, 4 or 2 bits an element and one scale for each block of them; pure.

Theory of operation. An array is cut into blocks, counted from its start; the last may be shorter. On the wire: the
scales of all blocks, then the codes of all elements.

    int8, int4   x is sent as q = x / step, rounded, |q| <= 127 or 7, and decodes to q step. The step is the block's
                 largest magnitude over 127 or 7 (Dettmers 2015, arXiv 1511.04561; blockwise in arXiv 2110.02861). Zero
                 is always a level, so no element is off by more than itself.
    int8s, int4s The same, rounded up or down at random so that the mean is right (QSGD: Alistarh et al. 2017, arXiv
                 1610.02132). Without error feedback that is what keeps 4 bits honest; with it, nearest is better.
    int2         A sign, and whether the magnitude is over 1.4 times the block's mean. The two levels are the means of
                 the magnitudes on either side, as in SparseLoCo (arXiv 2508.15706). Levels at means make the error
                 orthogonal to what was decoded: |x - Q(x)|^2 = |x|^2 - |Q(x)|^2 for any data, which is the contraction
                 that error feedback lives on. Even levels, +-step/2 and +-3 step/2, contract only if the step fits the
                 data: with a step from the largest magnitude, one outlier in a block makes all others worse than zero.

Blocks of 1024, 128 and 256 elements. Lost of the energy, for normal values and for heavy-tailed ones (Student's t with
3 degrees): 8 bits 6e-5 and 9e-4; 4 bits 0.014 and 0.050 (in blocks of 1024: 0.020 and 0.16); 2 bits 0.120 and 0.33.
Four even levels, even with the best step, lose 0.119 and 0.34; of the largest 6 % of Laplacian values, though, they
lose 0.06 to 0.12 where two means lose 0.03, and such values are what a sparse codec hands on.

float32: scales are float32; blocks whose largest magnitude is below 2**-100 decode to zero. int16, the agreed grid:
steps and levels are whole numbers, uint16, so decoding is integer arithmetic, saturated to +-`grid.LIMIT`, and every
machine gets the same values.

4 and 2 bits: byte j of a block of w elements holds elements j, j + h, ..., where h is the number of the block's bytes,
from the lowest bits on. int4 is two's complement; of int2 the low bit is the sign, the high bit picks the level.
"""

from collections.abc import Iterator, Sequence
from typing import Final, Literal, cast

import blake3
import numpy as np

from barnraise.codec.codec import PIECE, Codec, Malformed, Place, Reader, Values
from barnraise.codec.grid import LIMIT, Bytes, Float32
from barnraise.codec.kernels import KERNELS
from barnraise.codec.plain import BLOCKS, LARGEST, Noise, Terms
from barnraise.errors import LocalError

Bits = Literal[8, 4, 2]
Rounding = Literal["nearest", "stochastic"]
DType = np.dtype[np.int16] | np.dtype[np.float32]

NOISE_CONTEXT: Final = "barnraise 1 stochastic rounding"
TOO_LARGE: Final = "a value is not finite, or 2**127 and more; nothing is sent"


class Blockwise:
    """`int8`, `int4`, `int2`, and `int8s`, `int4s` with stochastic rounding."""

    is_exact: Final = True
    is_lossless: Final = False

    def __init__(self, bits: Bits, dtype: DType, rounding: Rounding = "nearest") -> None:
        """Make a codec.

        Raises:
            LocalError: 2 bits are to be rounded stochastically: between two means there is nothing to be unbiased with.
        """
        if bits == 2 and rounding == "stochastic":
            raise LocalError("2 bits have no stochastic rounding; use 4 or 8")
        self.bits, self.dtype, self.rounding = bits, dtype, rounding
        self.name = f"int{bits}" + ("s" if rounding == "stochastic" else "")
        self.block = BLOCKS[bits]
        self.scale_bytes = dtype.itemsize * (2 if bits == 2 else 1)
        self._scale_end = _scale_end(bits, dtype)

    def bound_bytes(self, count: int) -> int:
        """Return the size, which is always this."""
        return self._scales_bytes(count) + self._codes_bytes(count)

    def encode(self, values: Values, out: Bytes, place: Place = Place()) -> int:
        """Write scales and codes of all blocks.

        Raises:
            LocalError: a value is not finite, or as large as 2**127.
        """
        values, size = cast(Values, np.ascontiguousarray(values)), self.bound_bytes(len(values))
        assert values.dtype == self.dtype  # what the kernels are given, they trust
        assert len(out) >= size
        border = self._scales_bytes(len(values))
        scales, codes = out[:border], out[border:size]
        for start, stop, noise in self._pieces(values, place):
            marks = scales[self._scales_bytes(start) : self._scales_bytes(stop)]
            packed = codes[self._codes_bytes(start) : self._codes_bytes(stop)]
            if not KERNELS.quantise(self.bits, values[start:stop], marks, packed, noise):
                raise LocalError(TOO_LARGE)
        return size

    def encode_sum(self, terms: Terms, others: Sequence[Reader], out: Bytes) -> int | None:
        """Add up and encode in one pass over the memory; return the length, or None if there is no such pass for these.

        The values are those that `Reader.add` and `encode` come to one after the other.

        Raises:
            LocalError: the sum is not finite, or as large as 2**127, and is not to be cut off.
        """
        if self.name != "int8" or self.dtype != np.float32:
            return None
        if terms.is_own and terms.lost is None and not others:
            return self.encode(terms.own, out)
        count, size = len(terms.own), self.bound_bytes(len(terms.own))
        for array in (terms.own, terms.owed, terms.lost):
            assert array is None or (array.dtype == np.float32 and array.flags.c_contiguous and len(array) == count)
        assert len(out) >= size
        encodings = [other.data for other in others if isinstance(other, BlockReader) and other.is_of(self, size)]
        if len(encodings) < len(others):
            return None
        if not KERNELS.quantise_sum(terms, encodings, out):
            raise LocalError(TOO_LARGE)
        return size

    def reader(self, data: Bytes, count: int, place: Place = Place()) -> "BlockReader":
        """Check length and scales; any code stands for a value.

        Raises:
            Malformed: the length is another, or a scale is out of range.
        """
        if len(data) != self.bound_bytes(count):
            raise Malformed(
                f"{len(data)} bytes instead of {self.bound_bytes(count)} for {count} elements of {self.name}"
            )
        data, border = np.ascontiguousarray(data), self._scales_bytes(count)
        found = KERNELS.largest(data[:border], self.dtype)
        if found >= self._scale_end:
            shown = np.uint32(found).view(np.float32) if self.dtype == np.float32 else found
            raise Malformed(f"a block's scale of {shown} ({self.name}) is out of range")
        return BlockReader(self, data, border)

    def for_aggregate(self, num_updates: int) -> Codec:
        """Return 8 bits to the nearest."""
        return self if self.name == "int8" else Blockwise(8, self.dtype)

    def _scales_bytes(self, count: int) -> int:
        return -(-count // self.block) * self.scale_bytes

    def _codes_bytes(self, count: int) -> int:
        return -(-count * self.bits // 8)

    def _pieces(self, values: Values, place: Place) -> Iterator[tuple[int, int, Noise | None]]:
        """Yield pieces with the noise that rounds them: uniform uint16, other on each peer, or their errors would add up.

        So it is drawn from the values too, which no decoder needs to know (Philox: Salmon et al. 2011).
        """
        if self.rounding == "nearest":
            yield 0, len(values), None
            return
        digest = blake3.blake3(values.view(np.uint8).data, derive_key_context=NOISE_CONTEXT)
        digest.update(b"%d %d" % (place.seed, place.index))
        source = np.random.Philox(key=np.frombuffer(digest.digest(16), "<u8"))
        for start in range(0, len(values), PIECE):
            stop = min(start + PIECE, len(values))
            yield start, stop, source.random_raw(-(-(stop - start) // 4)).view(np.uint16)


class BlockReader:
    """A `Reader` of blocks."""

    def __init__(self, codec: Blockwise, data: Bytes, border: int) -> None:
        """Take an encoding that was checked, whose codes begin at ``border``."""
        self.data = data
        self._codec, self._border = codec, border

    def read(self, start: int, stop: int, out: Values) -> None:
        """Write elements ``start .. stop`` to ``out[: stop - start]``."""
        room = out[: stop - start]
        self._check(start, room)
        KERNELS.dequantise(self._codec.bits, *self._from(start), room)

    def add(self, start: int, stop: int, base: Float32, out: Float32) -> None:
        """Write ``base + decoded`` to ``out``."""
        self._check(start, out)
        assert base.dtype == out.dtype
        assert base.shape == out.shape
        assert base.flags.c_contiguous
        KERNELS.dequantise_add(self._codec.bits, *self._from(start), base, out)

    def read_past_cache(self, out: Float32) -> None:
        """Write all elements to memory that is not read again soon, or is more than a cache holds."""
        if self._codec.bits != 8:
            self.read(0, len(out), out)
            return
        self._check(0, out)
        KERNELS.dequantise_past_cache(*self._from(0), out)

    def is_of(self, codec: Blockwise, size_bytes: int) -> bool:
        """Tell whether this is an encoding of that length, by a codec of the same form."""
        own = self._codec
        return own.bits == codec.bits and own.dtype == codec.dtype and len(self.data) == size_bytes

    def _check(self, start: int, out: Values) -> None:
        """Make sure of what the kernels trust."""
        assert start % PIECE == 0
        assert (start + len(out)) * self._codec.bits <= 8 * (len(self.data) - self._border)
        assert out.dtype == self._codec.dtype
        assert out.flags.c_contiguous

    def _from(self, start: int) -> tuple[Bytes, Bytes]:
        codec = self._codec
        return (
            self.data[start // codec.block * codec.scale_bytes : self._border],
            self.data[self._border + start * codec.bits // 8 :],
        )


def _scale_end(bits: Bits, dtype: DType) -> int:
    """Return the first scale that is too large, as the integer its bits are: all codes decode to finite values."""
    if dtype == np.float32:
        largest = 2.0 ** (128 if bits == 2 else 129 - bits)
        return 0x7F800000 if largest >= 2.0**128 else int(np.float32(largest).view(np.uint32))
    return LIMIT + 1 if bits == 2 else -(-(LIMIT + 1) // LARGEST[bits]) + 1
