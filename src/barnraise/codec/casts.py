"""Codecs that send each element as a number of its own: 32 or 16 bits, the same for all; pure.

    fp32         float32 as it is
    grid16       int16 as it is; -32768, which no encoder sends, decodes to -32767
    fp16, bf16   16-bit floats: IEEE 754 binary16, 11 bits of precision and 5 of exponent; bfloat16, 8 and 8. Rounded
                 to the nearest, ties to even; what is too large becomes the largest. Of a whole number within
                 +-`grid.LIMIT` either is a whole number too, so on the grid decoding is exact; bytes that say
                 otherwise decode to the nearest whole number that is one.

All are little-endian and without a header. Of floats, a value that is not finite is malformed.
"""

from collections.abc import Iterator
from typing import Final, cast

import numpy as np

from barnraise.codec.codec import PIECE, Codec, Malformed, Place, Values
from barnraise.codec.grid import LIMIT, Bytes, Float32
from barnraise.codec.kernels import KERNELS
from barnraise.codec.plain import Format
from barnraise.errors import LocalError

DType = np.dtype[np.int16] | np.dtype[np.float32]
FORMATS: Final[dict[str, Format]] = {"fp16": "half", "bf16": "bfloat"}


class Raw:
    """`fp32` and `grid16`: values as they are."""

    is_exact: Final = True
    is_lossless: Final = True

    def __init__(self, dtype: DType) -> None:
        self.dtype = dtype
        self.name: str = "fp32" if dtype == np.float32 else "grid16"

    def bound_bytes(self, count: int) -> int:
        """Return the size, which is always this."""
        return self.dtype.itemsize * count

    def encode(self, values: Values, out: Bytes, place: Place = Place()) -> int:
        """Copy the values."""
        size = self.bound_bytes(len(values))
        out[:size].view(self.dtype.newbyteorder("<"))[...] = values
        return size

    def reader(self, data: Bytes, count: int, place: Place = Place()) -> "RawReader":
        """Check length and values. Raises `Malformed`: the length is another, or a value is not finite."""
        _check_length(self.name, data, count, self.dtype.itemsize)
        wire = np.ascontiguousarray(data).view(self.dtype.newbyteorder("<"))
        if self.dtype == np.float32:
            for start, stop in _pieces(count):
                if not np.isfinite(wire[start:stop]).all():
                    raise Malformed("a float is not finite (fp32)")
        return RawReader(wire)

    def for_aggregate(self, num_updates: int) -> Codec:
        """Return this codec."""
        return self


class RawReader:
    """A `Reader` of values as they are."""

    def __init__(self, wire: Values) -> None:
        self._wire = wire

    def read(self, start: int, stop: int, out: Values) -> None:
        """Write elements ``start .. stop`` to ``out[: stop - start]``."""
        found = self._wire[start:stop]
        if found.dtype == np.float32:
            out[: stop - start] = found
        else:
            np.maximum(found, -LIMIT, out=out[: stop - start])

    def add(self, start: int, stop: int, base: Float32, out: Float32) -> None:
        """Write ``base + decoded`` to ``out``."""
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # as in C; who encodes the sum brings it back to what it takes
            np.add(base, self._wire[start:stop], out=out)


class Cast:
    """`fp16` and `bf16`."""

    is_exact: Final = True
    is_lossless: Final = False

    def __init__(self, name: str, dtype: DType) -> None:
        self.name, self.dtype = name, dtype
        self.format = FORMATS[name]

    def bound_bytes(self, count: int) -> int:
        """Return the size, which is always this."""
        return 2 * count

    def encode(self, values: Values, out: Bytes, place: Place = Place()) -> int:
        """Round the values."""
        assert len(out) >= 2 * len(values), "what the kernels are given, they trust"
        for start, stop in _pieces(len(values)):
            piece = np.ascontiguousarray(values[start:stop], np.float32)
            KERNELS.to_float16(self.format, piece, out[2 * start : 2 * stop])
        return 2 * len(values)

    def reader(self, data: Bytes, count: int, place: Place = Place()) -> "CastReader":
        """Check length and values. Raises `Malformed`: the length is another, or a value is not finite."""
        _check_length(self.name, data, count, 2)
        data = np.ascontiguousarray(data)
        words, exponent = data.view("<u2"), 0x7C00 if self.format == "half" else 0x7F80
        for start, stop in _pieces(count):
            if ((words[start:stop] & exponent) == exponent).any():
                raise Malformed(f"a float is not finite ({self.name})")
        return CastReader(data, self.format)

    def for_aggregate(self, num_updates: int) -> Codec:
        """Return this codec."""
        return self


class CastReader:
    """A `Reader` of finite 16-bit floats."""

    def __init__(self, data: Bytes, kind: Format) -> None:
        self._data, self._format = data, kind

    def read(self, start: int, stop: int, out: Values) -> None:
        """Write elements ``start .. stop`` to ``out[: stop - start]``; on the grid, whole numbers within its limit."""
        assert 2 * stop <= len(self._data)
        assert out.flags.c_contiguous
        assert len(out) >= stop - start
        if out.dtype == np.float32:
            KERNELS.from_float16(self._format, self._data[2 * start : 2 * stop], cast(Float32, out[: stop - start]))
            return
        for first, last in _pieces(stop - start):
            floats = np.empty(last - first, np.float32)
            KERNELS.from_float16(self._format, self._data[2 * (start + first) : 2 * (start + last)], floats)
            np.rint(floats, out=floats)
            out[first:last] = np.clip(floats, -LIMIT, LIMIT, out=floats)

    def add(self, start: int, stop: int, base: Float32, out: Float32) -> None:
        """Write ``base + decoded`` to ``out``."""
        assert 2 * stop <= len(self._data)
        assert out.flags.c_contiguous
        assert base.flags.c_contiguous
        assert base.dtype == out.dtype == np.float32
        assert len(base) == len(out) == stop - start
        KERNELS.add_float16(self._format, self._data[2 * start : 2 * stop], base, out)


def cast_of(name: str, dtype: DType) -> Codec:
    """Return `fp32`, `grid16`, `fp16` or `bf16`. Raises `LocalError`: there is no such one of this type."""
    if name in FORMATS:
        return Cast(name, dtype)
    raw = Raw(dtype)
    if name != raw.name:
        raise LocalError(f"{name} is no cast of {dtype}")
    return raw


def _check_length(name: str, data: Bytes, count: int, width: int) -> None:
    if len(data) != width * count:
        raise Malformed(f"{len(data)} bytes instead of {width * count} for {count} elements of {name}")


def _pieces(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, PIECE):
        yield start, min(start + PIECE, count)
