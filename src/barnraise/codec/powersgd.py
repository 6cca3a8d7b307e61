"""PowerSGD: a shard as a matrix of low rank, of which the two thin factors travel; pure.

Theory of operation (Vogels, Karimireddy and Jaggi 2019, arXiv 1905.13727). The shard is laid out as a near-square matrix
M of m rows and n columns, the last row filled up with zeros. One step of the power method, from the Q that the same
shard had the last time (warm start):

    P = M Q;  P = orthonormal columns of P;  Q = M^T P;  decoded: P Q^T

On the wire: the length of P's encoding (uint32), P, and Q, column after column. The paper adds up P and Q of all peers
between the steps; here each peer's update is compressed by itself, so that it can be weighed, left out or judged. A
shard whose factors would not take half its numbers or less ((m + n) r > 0.5 m n, as in hivemind) travels as it is.

Encoding uses BLAS and is nobody else's business. Decoding adds the r outer products one after the other, multiplication
and addition each rounded by itself, so whoever holds the same bytes holds the same values. `is_exact` it is not: these
are roundings of floats, int16 ones included.

What it does not find, error feedback must carry: one step follows the largest directions only.
"""

from typing import Final

import numpy as np

from barnraise.codec.codec import PIECE, Codec, Malformed, Place, Reader, Values
from barnraise.codec.draws import draw
from barnraise.codec.grid import LIMIT, Bytes, Float32
from barnraise.codec.scattered import decoded

LARGEST: Final = 1e38
"""Of what a product of factors can come to; float32 ends at 3.4e38."""


class PowerSgd:
    """A rank-r approximation. Encoding keeps Q for each place: one object for each stream of updates."""

    is_exact: Final = False
    is_lossless: Final = False

    def __init__(self, rank: int, factors: Codec, raw: Codec, aggregate: Codec) -> None:
        """Send matrices of ``rank``, encoded by ``factors`` (float32); small shards by ``raw``.

        Args:
            rank: 1 or more.
            factors: how P and Q travel.
            raw: how a shard travels that is too small to be worth it; its type is the codec's.
            aggregate: what `for_aggregate` returns.
        """
        self._rank, self._factors, self._raw, self._aggregate = rank, factors, raw, aggregate
        self._warm: dict[tuple[int, int], Float32] = {}
        self.name: Final = f"powersgd:{rank}+{factors.name}"
        self.dtype: Final = raw.dtype

    def bound_bytes(self, count: int) -> int:
        """Return the most that both factors take, or the shard as it is."""
        if not self._is_worth_it(count):
            return self._raw.bound_bytes(count)
        rows, columns = shape_of(count)
        factors = self._factors
        return 4 + factors.bound_bytes(rows * self._rank) + factors.bound_bytes(columns * self._rank)

    def encode(self, values: Values, out: Bytes, place: Place = Place()) -> int:
        """Take one step of the power method and write the factors."""
        if not self._is_worth_it(len(values)):
            return self._raw.encode(values, out, place)
        left, right = self._step(values, place)
        used = self._factors.encode(left.reshape(-1), out[4:], place)
        out[:4] = np.array([used], "<u4").view(np.uint8)
        return 4 + used + self._factors.encode(right.reshape(-1), out[4 + used :], place)

    def reader(self, data: Bytes, count: int, place: Place = Place()) -> Reader:
        """Decode and check the factors. Raises `Malformed`."""
        if not self._is_worth_it(count):
            return self._raw.reader(data, count, place)
        rows, columns = shape_of(count)
        if len(data) < 4:
            raise Malformed(f"{len(data)} bytes have no room for a length")
        length = int(data[:4].view("<u4")[0])
        if length > self._factors.bound_bytes(rows * self._rank) or 4 + length > len(data):
            raise Malformed(f"the first factor is said to take {length} bytes of {len(data)}")
        left = self._factor(data[4 : 4 + length], rows, place)
        right = self._factor(data[4 + length :], columns, place)
        peak = self._rank * float(np.abs(left).max()) * float(np.abs(right).max())
        if not peak <= LARGEST:
            raise Malformed(f"the factors multiply to {peak:g}, over {LARGEST:g}")
        return _Product(left, right)

    def for_aggregate(self, num_updates: int) -> Codec:
        """Return a dense codec: a mean of matrices of rank r has any rank up to the sum of theirs."""
        return self._aggregate

    def _is_worth_it(self, count: int) -> bool:
        rows, columns = shape_of(count)
        return 2 * (rows + columns) * self._rank <= count

    def _factor(self, data: Bytes, length: int, place: Place) -> Float32:
        values = decoded(self._factors, data, length * self._rank, place)
        return values.reshape(self._rank, length).astype(np.float32, copy=False)

    def _step(self, values: Values, place: Place) -> tuple[Float32, Float32]:
        """Return both factors, transposed: float32[rank, rows] and float32[rank, columns]."""
        rows, columns = shape_of(len(values))
        matrix: Float32 = np.zeros((rows, columns), np.float32)
        matrix.reshape(-1)[: len(values)] = values
        peak = float(np.abs(matrix).max())
        if peak == 0.0:
            return np.zeros((self._rank, rows), np.float32), np.zeros((self._rank, columns), np.float32)
        matrix *= np.float32(1.0 / max(peak, 1e-30))  # so that no product overflows
        left = np.linalg.qr(matrix @ self._start(place.index, columns)).Q
        right = matrix.T @ left
        self._warm[place.index, columns] = right
        scaled = np.clip(right.T * np.float64(peak), -LARGEST / self._rank, LARGEST / self._rank)
        return np.ascontiguousarray(left.T), scaled.astype(np.float32)

    def _start(self, index: int, columns: int) -> Float32:
        """Return the Q of the last time, or some numbers in -1 .. 1."""
        warm = self._warm.get((index, columns))
        if warm is not None:
            return warm
        words = draw(0, index, columns * self._rank)
        return ((words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - 1).reshape(columns, self._rank)


class _Product:
    """Reads the product of two factors, row by row."""

    def __init__(self, left: Float32, right: Float32) -> None:
        self._left, self._right = left, right

    def read(self, start: int, stop: int, out: Values) -> None:
        """Multiply and add, for rows that fit the cache together."""
        for low in range(start, stop, PIECE):
            high = min(low + PIECE, stop)
            part = self._rows(low, high)
            if out.dtype == np.int16:
                np.rint(part, out=part)
                np.clip(part, -LIMIT, LIMIT, out=part)
            out[low - start : high - start] = part

    def add(self, start: int, stop: int, base: Float32, out: Float32) -> None:
        """Multiply, add, and add that to ``base``."""
        for low in range(start, stop, PIECE):
            part = slice(low - start, min(low + PIECE, stop) - start)
            np.add(base[part], self._rows(low, min(low + PIECE, stop)), out=out[part])

    def _rows(self, start: int, stop: int) -> Float32:
        columns = self._right.shape[1]
        rows = slice(start // columns, -(-stop // columns))
        total: Float32 = np.multiply(self._left[0, rows, None], self._right[0])
        product = np.empty_like(total)
        for left, right in zip(self._left[1:, rows], self._right[1:], strict=True):
            total += np.multiply(left[:, None], right, out=product)
        return total.reshape(-1)[: stop - start]


def shape_of(count: int) -> tuple[int, int]:
    """Return rows and columns; a power of two of these, so that a piece is whole rows."""
    columns = 1 << min(PIECE.bit_length() - 1, count.bit_length() + 1 >> 1)
    return -(-count // columns), columns
