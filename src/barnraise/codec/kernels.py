"""The inner loops of the codecs: those of `kernels.c` where the installation built them, else those of `plain`.

Both give the same bits, and neither checks anything: sizes, types and the range of scales are the callers' business.
A library that was built from another source is left alone.
"""

import ctypes
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from barnraise.codec.grid import LIMIT, Bytes, Float32, Int16
from barnraise.codec.plain import Format, Noise, Plain, Terms

SOURCE: Final = Path(__file__).with_name("kernels.c")
LIBRARY: Final = Path(__file__).with_name("libkernels.so")


class Kernels(Protocol):
    """Arrays are contiguous; what is written has the size that `blockwise` and `casts` give it."""

    def quantise(self, bits: int, values: Float32 | Int16, scales: Bytes, codes: Bytes, noise: Noise | None) -> bool:
        """Write scales and codes; tell whether all values were finite and below 2**127."""
        ...

    def largest(self, scales: Bytes, dtype: np.dtype[np.float32] | np.dtype[np.int16]) -> int:
        """Return the largest scale of values of a type, as the unsigned integer its bits are; 0 if there is none."""
        ...

    def dequantise(self, bits: int, scales: Bytes, codes: Bytes, out: Float32 | Int16) -> None:
        """Write the decoded values."""
        ...

    def dequantise_add(self, bits: int, scales: Bytes, codes: Bytes, base: Float32, out: Float32) -> None:
        """Write ``base`` plus the decoded values; both may be the same array."""
        ...

    def dequantise_past_cache(self, scales: Bytes, codes: Bytes, out: Float32) -> None:
        """Write the decoded values of 8 bits to memory that is not read again soon."""
        ...

    def quantise_sum(self, terms: Terms, others: Sequence[Bytes], out: Bytes) -> bool:
        """Add up, with what others' scales and codes of 8 bits say, write those of the sum, and what they lose.

        Tell whether all values were finite and below 2**127.
        """
        ...

    def to_float16(self, kind: Format, values: Float32, data: Bytes) -> None:
        """Round to 16-bit floats; what is too large becomes the largest."""
        ...

    def from_float16(self, kind: Format, data: Bytes, out: Float32) -> None:
        """Write the float32 values of finite 16-bit floats."""
        ...

    def add_float16(self, kind: Format, data: Bytes, base: Float32, out: Float32) -> None:
        """Write ``base`` plus the values of finite 16-bit floats; both may be the same array."""
        ...

    def to_grid(self, update: Float32, residual: Float32, exponent: int, encoded: Int16) -> bool:
        """Add the residual to the update, round that to the grid, and tell whether it is finite."""
        ...

    def remainder(self, wanted: Float32, decoded: Int16, exponent: int, lost: Float32) -> None:
        """Write what the grid values ``decoded`` lack of the floats that were wanted."""
        ...


class _Sum(ctypes.Structure):
    """`struct sum`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("own", "owed", "others", "lost")),
        *((name, ctypes.c_int32) for name in ("num_others", "cuts_off")),
        *((name, ctypes.c_float) for name in ("weight", "divisor", "share")),
    )


class Compiled:
    """`kernels.c` through ctypes, which lets go of the interpreter's lock meanwhile."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, count, number = ctypes.c_void_p, ctypes.c_long, ctypes.c_float

        def function(name: str, *arguments: Any, tells: bool = False) -> Any:
            found = library[name]
            found.argtypes, found.restype = arguments, ctypes.c_int if tells else None
            return found

        kinds = [(bits, dtype) for bits in (8, 4, 2) for dtype in (np.dtype(np.float32), np.dtype(np.int16))]
        names = {kind: f"{kind[0]}_{'f32' if kind[1] == np.float32 else 'i16'}" for kind in kinds}
        # Too short to let go of the interpreter's lock for: another thread would take it, and wake this one later.
        held = ctypes.PyDLL(library._name, handle=library._handle)
        self._largest = {np.dtype(np.float32): held["largest_f32"], np.dtype(np.int16): held["largest_i16"]}
        for found in self._largest.values():
            found.argtypes, found.restype = (pointer, count), ctypes.c_uint32
        five = (pointer, count, pointer, pointer, pointer)
        self._quantise = {kind: function(f"quantise{name}", *five, tells=True) for kind, name in names.items()}
        last = (pointer, pointer, count, pointer, pointer)
        self._dequantise = {kind: function(f"dequantise{name}", *last) for kind, name in names.items()}
        self._dequantise_add = {bits: function(f"dequantise_add{bits}_f32", *last) for bits in (8, 4, 2)}
        self._past_cache = function("dequantise8_f32_past_cache", pointer, pointer, count, pointer)
        self._quantise_sum = function("quantise8_sum", ctypes.POINTER(_Sum), count, pointer, tells=True)
        formats: tuple[Format, Format] = ("half", "bfloat")
        self._to = {kind: function(f"to_{kind}", pointer, count, pointer) for kind in formats}
        self._from = {kind: function(f"from_{kind}", pointer, count, pointer) for kind in formats}
        self._add = {kind: function(f"add_{kind}", pointer, count, pointer, pointer) for kind in formats}
        self._to_grid = function("to_grid", pointer, pointer, count, number, number, pointer, tells=True)
        self._from_grid = function("from_grid", pointer, pointer, count, number, pointer)

    def quantise(self, bits: int, values: Float32 | Int16, scales: Bytes, codes: Bytes, noise: Noise | None) -> bool:
        """See `Kernels`."""
        work = self._quantise[bits, values.dtype]
        dither = None if noise is None else _at(noise)
        return not work(_at(values), len(values), _at(scales), _at(codes), dither)

    def largest(self, scales: Bytes, dtype: np.dtype[np.float32] | np.dtype[np.int16]) -> int:
        """See `Kernels`."""
        found: int = self._largest[dtype](_at(scales), len(scales) // dtype.itemsize)
        return found

    def dequantise(self, bits: int, scales: Bytes, codes: Bytes, out: Float32 | Int16) -> None:
        """See `Kernels`."""
        self._dequantise[bits, out.dtype](_at(scales), _at(codes), len(out), None, _at(out))

    def dequantise_add(self, bits: int, scales: Bytes, codes: Bytes, base: Float32, out: Float32) -> None:
        """See `Kernels`."""
        work = self._dequantise_add[bits]
        work(_at(scales), _at(codes), len(out), _at(base), _at(out))

    def dequantise_past_cache(self, scales: Bytes, codes: Bytes, out: Float32) -> None:
        """See `Kernels`."""
        self._past_cache(_at(scales), _at(codes), len(out), _at(out))

    def quantise_sum(self, terms: Terms, others: Sequence[Bytes], out: Bytes) -> bool:
        """See `Kernels`."""
        places = (ctypes.c_void_p * len(others))(*[_at(other) for other in others])
        summed = _Sum(
            _at(terms.own),
            None if terms.owed is None else _at(terms.owed),
            ctypes.addressof(places),
            None if terms.lost is None else _at(terms.lost),
            len(others),
            terms.cuts_off,
            terms.weight,
            terms.divisor,
            terms.share,
        )
        return not self._quantise_sum(summed, len(terms.own), _at(out))

    def to_float16(self, kind: Format, values: Float32, data: Bytes) -> None:
        """See `Kernels`."""
        self._to[kind](_at(values), len(values), _at(data))

    def from_float16(self, kind: Format, data: Bytes, out: Float32) -> None:
        """See `Kernels`."""
        self._from[kind](_at(data), len(out), _at(out))

    def add_float16(self, kind: Format, data: Bytes, base: Float32, out: Float32) -> None:
        """See `Kernels`."""
        self._add[kind](_at(data), len(out), _at(base), _at(out))

    def to_grid(self, update: Float32, residual: Float32, exponent: int, encoded: Int16) -> bool:
        """See `Kernels`."""
        scale, largest = 2.0**exponent, LIMIT * 2.0**-exponent
        pointers = _at(update), _at(residual)
        return not self._to_grid(*pointers, len(update), scale, largest, _at(encoded))

    def remainder(self, wanted: Float32, decoded: Int16, exponent: int, lost: Float32) -> None:
        """See `Kernels`."""
        unit = 2.0**-exponent
        self._from_grid(_at(wanted), _at(decoded), len(lost), unit, _at(lost))


def _at(array: npt.NDArray[Any]) -> int:
    """Return where a contiguous array lies: a quarter of the time of ``array.ctypes.data``, which is each call's largest part."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    except (TypeError, ValueError):  # read-only, or empty
        return array.ctypes.data


def source_digest() -> str:
    """Return what a library must say it was built from."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest()


def load() -> Compiled | None:
    """Return the compiled kernels; None if there are none for this machine and this source."""
    if sys.byteorder != "little" or not LIBRARY.exists():
        return None
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError:  # of another system: a folder that several machines share
        return None
    library.source_digest.restype = ctypes.c_char_p
    return Compiled(library) if library.source_digest() == source_digest().encode() else None


COMPILED: Final = load()
KERNELS: Final[Kernels] = COMPILED or Plain()
