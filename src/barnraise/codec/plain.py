"""The kernels in numpy, where no compiler was at hand: the same bits as `kernels.c`, several times as slow.

Formats and roundings are `blockwise`'s and `grid`'s; here is arithmetic alone, on whole blocks at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

import numpy as np
import numpy.typing as npt

from barnraise.codec.grid import LIMIT, Bytes, Float32, Int16

BLOCKS: Final = {8: 1024, 4: 128, 2: 256}
LARGEST: Final = {8: 127, 4: 7}
PEAK_BEGIN, PEAK_END = np.float32(2.0**-100), np.float32(2.0**127)

OVERFLOWS: Final = np.errstate(over="ignore", invalid="ignore")
"""Sums may: whoever adds up looks at them before they are sent."""

Noise = npt.NDArray[np.uint16]
_Int8 = npt.NDArray[np.int8]
_Int32 = npt.NDArray[np.int32]
Format = Literal["half", "bfloat"]

MOST: Final = 2.0**100
"""Of a sum that is encoded: so many of them do not overflow."""


@dataclass(kw_only=True, slots=True)
class Terms:
    """What a sum consists of besides encodings, and what becomes of it: ((own + owed) weight + encodings) / divisor."""

    own: Float32
    """float32[n], contiguous."""
    owed: Float32 | None = None
    """float32[n], contiguous: what encodings have lost before."""
    weight: float = 1.0
    divisor: float = 1.0
    cuts_off: bool = False
    """Numbers that the sum drove past `MOST` become that, what is no number becomes 0: each number that comes from a peer
    is finite, their sum need not be, an error here would be ours, and what is lost can be fed back. Else no codec takes
    what is not finite."""
    lost: Float32 | None = None
    """float32[n], contiguous: where to write what the sum's encoding loses of it, over ``share``."""
    share: float = 1.0

    @property
    def is_own(self) -> bool:
        """Tell whether the sum is nothing but what we bring in, as it is."""
        return self.owed is None and self.weight == 1.0 and self.divisor == 1.0 and not self.cuts_off


class Plain:
    """`kernels.Kernels` without a compiled library."""

    def quantise(self, bits: int, values: Float32 | Int16, scales: Bytes, codes: Bytes, noise: Noise | None) -> bool:
        """Write scales and codes; tell whether all values were finite and below 2**127."""
        if values.dtype == np.float32 and len(values) and not np.abs(values).max() < PEAK_END:
            return False
        for rows, part, packed, blocks in _groups(values, bits):
            marks = scales.reshape(-1, _scale_bytes(bits, values.dtype))[blocks]
            target = codes[packed].reshape(len(rows), -1)
            if bits == 2:
                _encode_levels(rows, marks, target)
            else:
                dither = None if noise is None else noise[part].reshape(rows.shape)
                _encode_steps(rows, marks, target, bits, dither)
        return True

    def largest(self, scales: Bytes, dtype: np.dtype[np.float32] | np.dtype[np.int16]) -> int:
        """Return the largest scale of values of a type, as the unsigned integer its bits are; 0 if there is none."""
        return int(scales.view("<u4" if dtype == np.float32 else "<u2").max(initial=0))

    def dequantise(self, bits: int, scales: Bytes, codes: Bytes, out: Float32 | Int16) -> None:
        """Write the decoded values."""
        for rows, _, packed, blocks in _groups(out, bits):
            marks = scales.reshape(-1, _scale_bytes(bits, out.dtype))[blocks]
            rows[...] = _decoded(bits, marks, codes[packed].reshape(len(rows), -1), out.dtype)[:, : rows.shape[1]]

    @OVERFLOWS
    def dequantise_add(self, bits: int, scales: Bytes, codes: Bytes, base: Float32, out: Float32) -> None:
        """Write ``base`` plus the decoded values."""
        decoded = np.empty_like(out)
        self.dequantise(bits, scales, codes, decoded)
        np.add(base, decoded, out=out)

    def dequantise_past_cache(self, scales: Bytes, codes: Bytes, out: Float32) -> None:
        """Write the decoded values."""
        self.dequantise(8, scales, codes, out)

    @OVERFLOWS
    def quantise_sum(self, terms: Terms, others: Sequence[Bytes], out: Bytes) -> bool:
        """Add up, write scales and codes with 8 bits, and what they lose; tell whether all was below 2**127."""
        values, border = np.empty_like(terms.own), 4 * -(-len(terms.own) // BLOCKS[8])
        start(terms, values)
        for other in others:
            self.dequantise_add(8, other[:border], other[border:], values, values)
        finish(terms, values)
        scales, codes = out[:border], out[border : border + len(values)]
        if not self.quantise(8, values, scales, codes, None):
            return False
        if terms.lost is not None:
            self.dequantise(8, scales, codes, terms.lost)
            note_loss(terms, values)
        return True

    def to_float16(self, kind: Format, values: Float32, data: Bytes) -> None:
        """Round to 16-bit floats; what is too large becomes the largest."""
        if kind == "half":
            data.view("<f2")[...] = np.clip(values, -65504, 65504)
            return
        words = values.view(np.uint32)
        magnitude = np.minimum(words & 0x7FFFFFFF, 0x7F7F0000)
        magnitude += 0x7FFF + ((magnitude >> 16) & 1)
        data.view("<u2")[...] = (magnitude >> 16) | ((words >> 16) & 0x8000)

    def from_float16(self, kind: Format, data: Bytes, out: Float32) -> None:
        """Write the float32 values of finite 16-bit floats."""
        if kind == "half":
            out[...] = data.view("<f2")
        else:
            np.left_shift(data.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)

    @OVERFLOWS
    def add_float16(self, kind: Format, data: Bytes, base: Float32, out: Float32) -> None:
        """Write ``base`` plus the values of finite 16-bit floats."""
        decoded = np.empty_like(out)
        self.from_float16(kind, data, decoded)
        np.add(base, decoded, out=out)

    def to_grid(self, update: Float32, residual: Float32, exponent: int, encoded: Int16) -> bool:
        """Add the residual to the update, round that to the grid, and tell whether it is finite."""
        update += residual
        if not np.isfinite(update).all():
            return False
        largest = np.float32(LIMIT * 2.0**-exponent)
        scaled = np.clip(update, -largest, largest)  # first: what is scaled up unclipped may overflow
        scaled *= np.float32(2.0**exponent)
        encoded[...] = np.rint(scaled, out=scaled)
        return True

    def remainder(self, wanted: Float32, decoded: Int16, exponent: int, lost: Float32) -> None:
        """Write what the grid values ``decoded`` lack of the floats that were wanted."""
        np.multiply(decoded, np.float32(2.0**-exponent), out=lost, dtype=np.float32)
        np.subtract(wanted, lost, out=lost)


def start(terms: Terms, out: Float32) -> None:
    """Write what we bring into a sum."""
    if terms.owed is None:
        np.copyto(out, terms.own)
    else:
        np.add(terms.own, terms.owed, out=out)
    if terms.weight != 1.0:
        np.multiply(out, np.float32(terms.weight), out=out)


def finish(terms: Terms, sums: Float32) -> None:
    """Divide, and bring back what codecs do not take."""
    divide(sums, terms.divisor)
    if terms.cuts_off and len(sums) and not max(float(sums.max()), -float(sums.min())) < MOST:  # true for nan, too
        np.nan_to_num(sums, copy=False, nan=0.0, posinf=MOST, neginf=-MOST)
        np.clip(sums, -MOST, MOST, out=sums)


def note_loss(terms: Terms, sums: Float32) -> None:
    """Turn what the encoding of a sum decodes to, in ``lost``, into what it lost."""
    assert terms.lost is not None
    np.subtract(sums, terms.lost, out=terms.lost)
    divide(terms.lost, terms.share)


def divide(values: Float32 | npt.NDArray[np.float64], divisor: float) -> None:
    """Divide in place. By a power of two it is a product, which is the same and faster; by others it is not: three times
    a whole number is three times too much exactly."""
    if divisor == 1.0:
        return
    kind = values.dtype.type
    if np.frexp(divisor)[0] == 0.5:
        np.multiply(values, kind(1.0 / divisor), out=values)
    else:
        np.true_divide(values, kind(divisor), out=values)


def _scale_bytes(bits: int, dtype: np.dtype[np.float32] | np.dtype[np.int16]) -> int:
    return dtype.itemsize * (2 if bits == 2 else 1)


def _groups(values: Float32 | Int16, bits: int) -> Iterator[tuple[Float32 | Int16, slice, slice, slice]]:
    """Yield the whole blocks as rows, then the block that is shorter: with where its elements, codes and scales are."""
    block = BLOCKS[bits]
    whole = len(values) // block
    border, end = whole * block, len(values)
    if whole:
        yield values[:border].reshape(whole, block), slice(0, border), slice(0, border * bits // 8), slice(0, whole)
    if border < end:
        packed = slice(border * bits // 8, border * bits // 8 + -(-(end - border) * bits // 8))
        yield values[border:].reshape(1, -1), slice(border, end), packed, slice(whole, whole + 1)


def _encode_steps(rows: Float32 | Int16, marks: Bytes, target: Bytes, bits: int, noise: Noise | None) -> None:
    largest = np.float32(LARGEST[bits])
    if rows.dtype == np.float32:
        peaks = np.abs(rows).max(axis=1)
        tiny = peaks < PEAK_BEGIN
        peaks[tiny] = 1
        steps, inverse = peaks / largest, largest / peaks
        steps[tiny] = inverse[tiny] = 0
        marks.view("<f4")[:, 0] = steps
    else:
        peaks = np.abs(rows.astype(np.int32)).max(axis=1)
        whole = -(-peaks // LARGEST[bits])
        inverse = np.where(whole > 0, np.float32(1) / np.maximum(whole, 1).astype(np.float32), np.float32(0))
        marks.view("<u2")[:, 0] = whole
    scaled = rows.astype(np.float32)
    scaled *= inverse[:, None]
    if noise is not None:
        scaled += (noise.astype(np.float32) - np.float32(32767.5)) * np.float32(2.0**-16)
    np.rint(scaled, out=scaled)
    np.clip(scaled, -largest, largest, out=scaled)
    quotients = scaled.astype(np.int8)
    if bits == 8:
        target.view(np.int8)[...] = quotients
    else:
        low, high = _parts(quotients, 2)
        target[...] = (low & 15) | (high << 4)


def _encode_levels(rows: Float32 | Int16, marks: Bytes, target: Bytes) -> None:
    count = rows.shape[1]
    unit = None
    if rows.dtype == np.float32:
        peaks = np.abs(rows).max(axis=1)
        tiny = peaks < PEAK_BEGIN
        peaks[tiny] = 1
        unit, inverse = peaks / np.float32(LIMIT), np.float32(LIMIT) / peaks
        unit[tiny] = inverse[tiny] = 0
        sizes = np.rint(np.abs(rows) * inverse[:, None]).astype(np.int32)
    else:
        sizes = np.abs(rows.astype(np.int32))
    sums = sizes.sum(axis=1, dtype=np.int32)
    is_high = sizes > (7 * sums // (5 * count))[:, None]
    high_sums = np.where(is_high, sizes, 0).sum(axis=1, dtype=np.int32)
    num_high = is_high.sum(axis=1, dtype=np.int32)
    low = _mean(sums - high_sums, count - num_high, unit)
    high = np.where(num_high > 0, _mean(high_sums, np.maximum(num_high, 1), unit), low)
    levels = marks.view("<f4" if unit is not None else "<u2")
    levels[:, 0], levels[:, 1] = low, high
    codes = (is_high.astype(np.uint8) << 1) | (rows < 0)
    a, b, c, d = _parts(codes, 4)
    target[...] = a | (b << 2) | (c << 4) | (d << 6)


def _mean(sums: _Int32, counts: _Int32, unit: Float32 | None) -> Float32 | _Int32:
    """Return the magnitude that stands for some: on the grid a whole number, ties upwards."""
    if unit is None:
        return cast(_Int32, np.minimum((2 * sums + counts) // (2 * counts), LIMIT))
    return cast(Float32, np.divide(sums, counts, dtype=np.float32) * unit)


def _decoded(
    bits: int, marks: Bytes, codes: Bytes, dtype: np.dtype[np.float32] | np.dtype[np.int16]
) -> Float32 | Int16:
    """Return the values of whole blocks; of a block that is shorter, some that are none at its end."""
    scales = marks.view("<f4" if dtype == np.float32 else "<u2")
    if bits == 2:
        fields = np.concatenate([(codes >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
        levels = np.where(fields & 2, scales[:, 1:], scales[:, :1]).astype(dtype)
        return cast(Float32 | Int16, np.where(fields & 1, np.negative(levels), levels))
    signed = codes.view(np.int8)
    if bits == 4:
        signed = np.concatenate([(codes << 4).view(np.int8) >> 4, signed >> 4], axis=1)
    if dtype == np.float32:
        return cast(Float32, signed.astype(np.float32) * scales)
    product = signed.astype(np.int32) * scales.astype(np.int32)
    return np.clip(product, -LIMIT, LIMIT).astype(np.int16)


def _parts(fields: _Int8 | Bytes, num_parts: int) -> list[Bytes]:
    """Cut rows into so many parts of one length, the last filled up with zeros; each part is one field of the bytes."""
    missing = -fields.shape[1] % num_parts
    padded = np.pad(fields, ((0, 0), (0, missing))) if missing else fields
    return np.split(padded.view(np.uint8), num_parts, axis=1)
