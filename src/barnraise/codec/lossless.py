"""Lossless compression of what another codec wrote: Zstandard, LZ4 and Snappy, by cramjam; pure.

Theory of operation. On the wire: the length of the other codec's bytes (uint32), then those, compressed. Where that
does not make them shorter they stand there as they are, which their length tells. The other codec bounds what it can
have written for so many elements, and a length over that is refused before anything is allocated: the decompressor
writes to a buffer of just that length and stops at its end, so a small message cannot grow into a large one.
Zstandard's own memory is bounded by the frame's window, which is looked at first; LZ4's by its format, 4 MiB a block.

The bytes of plain numbers are shuffled first, all lowest bytes together, then the next (Alted 2010, Blosc): only the
sign and exponent of trained numbers are worth compressing, and so they are not scattered among noise.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import cramjam
import numpy as np

from barnraise.codec.codec import Codec, Malformed, Place, Reader, Values
from barnraise.codec.grid import Bytes

MAX_WINDOW_BYTES: Final = 8 << 20
"""Of a frame of Zstandard that is not decoded straight into its target; levels 1 to 9 use 4 MiB at most."""
LENGTH_BYTES: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """One compressor."""

    default_level: int
    """0: it has no levels."""
    compress: Callable[[memoryview, int], Any]
    """Of bytes and level."""
    decompress_into: Callable[[memoryview, memoryview], int]
    """Writes to a buffer, which must not be overrun, and returns how much; raises `cramjam.DecompressionError`."""
    complaint: Callable[[memoryview, int], str]
    """Says what is wrong with data that should decompress to so many bytes, or ""."""


class Lossless:
    """A codec whose bytes are compressed."""

    def __init__(self, codec: Codec, library: str, level: int, item_bytes: int = 1) -> None:
        """Compress what ``codec`` writes.

        Args:
            codec: what comes before.
            library: a key of `LIBRARIES`.
            level: 1 to 9; 0 where the library has none.
            item_bytes: size of the numbers that the codec writes, to be shuffled; 1: they are not.
        """
        self._codec, self._library, self._level, self._item_bytes = codec, LIBRARIES[library], level, item_bytes
        self._stage: Final = (library, level, item_bytes)
        self.name: Final = f"{codec.name}+{library}" + (f":{level}" if level else "")
        self.dtype: Final = codec.dtype
        self.is_exact: Final = codec.is_exact
        self.is_lossless: Final = codec.is_lossless

    def bound_bytes(self, count: int) -> int:
        """Return the length's 4 bytes and what the other codec may take."""
        return LENGTH_BYTES + self._codec.bound_bytes(count)

    def encode(self, values: Values, out: Bytes, place: Place = Place()) -> int:
        """Encode, shuffle, compress, and write the shorter of both."""
        plain = np.empty(self._codec.bound_bytes(len(values)), np.uint8)
        plain = plain[: self._codec.encode(values, plain, place)]
        out[:LENGTH_BYTES] = np.array([len(plain)], "<u4").view(np.uint8)
        packed = np.frombuffer(self._library.compress(_shuffled(plain, self._item_bytes).data, self._level), np.uint8)
        body = packed if len(packed) < len(plain) else plain
        out[LENGTH_BYTES : LENGTH_BYTES + len(body)] = body
        return LENGTH_BYTES + len(body)

    def reader(self, data: Bytes, count: int, place: Place = Place()) -> Reader:
        """Check the length, decompress, and hand on. Raises `Malformed`."""
        if len(data) < LENGTH_BYTES:
            raise Malformed(f"{len(data)} bytes have no room for a length")
        length, body = int(data[:LENGTH_BYTES].view("<u4")[0]), data[LENGTH_BYTES:]
        limit = self._codec.bound_bytes(count)
        if length > limit:
            raise Malformed(f"it decompresses to {length} bytes, and {count} elements take at most {limit}")
        if len(body) > length:
            raise Malformed(f"{len(body)} bytes are not the compressed form of {length}")
        if len(body) < length:
            body = _unshuffled(self._decompressed(body, length), self._item_bytes)
        return self._codec.reader(body, count, place)

    def for_aggregate(self, num_updates: int) -> Codec:
        """Compress how the aggregate travels."""
        return Lossless(self._codec.for_aggregate(num_updates), *self._stage)

    def _decompressed(self, body: Bytes, length: int) -> Bytes:
        try:
            if complaint := self._library.complaint(body.data, length):
                raise Malformed(complaint)
            plain = np.empty(length, np.uint8)
            written = self._library.decompress_into(body.data, plain.data)
        except cramjam.DecompressionError as error:
            raise Malformed(f"it cannot be decompressed: {error}") from error
        if written != length:
            raise Malformed(f"it decompresses to {written} bytes, not {length}")
        return plain


def _shuffled(data: Bytes, item_bytes: int) -> Bytes:
    """Return byte 0 of all items, then byte 1, and so on; what is no whole number of items stays as it is."""
    if item_bytes == 1 or len(data) % item_bytes:
        return data
    return np.ascontiguousarray(data.reshape(-1, item_bytes).T).reshape(-1)


def _unshuffled(data: Bytes, item_bytes: int) -> Bytes:
    if item_bytes == 1 or len(data) % item_bytes:
        return data
    return np.ascontiguousarray(data.reshape(item_bytes, -1).T).reshape(-1)


def _zstd_complaint(data: memoryview, length: int) -> str:
    """Look at the frame's header (RFC 8878, 3.1.1.1): its length, if it says one, and the memory that it asks for."""
    head = data[:14].tobytes()
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return "it is no frame of Zstandard"
    sizes, is_single, has_dictionary = head[4] >> 6, head[4] >> 5 & 1, head[4] & 3
    if has_dictionary:
        return "its frame names a dictionary"
    if sizes or is_single:
        at, width = 5 + (not is_single), 1 << sizes
        said = int.from_bytes(head[at : at + width], "little") + (256 if sizes == 1 else 0)
        if said != length:
            return f"its frame says {said} bytes, not {length}"
    window = length if is_single else (1 << 10 + (head[5] >> 3)) * (8 + (head[5] & 7)) >> 3
    return f"its frame wants a window of {window} bytes" if window > max(length, MAX_WINDOW_BYTES) else ""


def _snappy_complaint(data: memoryview, length: int) -> str:
    said = cramjam.snappy.decompress_raw_len(data) if len(data) else 0
    return "" if said == length else f"it says {said} bytes, not {length}"


def _frame_complaint(data: memoryview, length: int) -> str:
    return "" if data[:4].tobytes() == b"\x04\x22\x4d\x18" else "it is no frame of LZ4"


LIBRARIES: Final[Mapping[str, Library]] = MappingProxyType(
    {
        "zstd": Library(
            default_level=3,
            compress=lambda data, level: cramjam.zstd.compress(data, level=level),
            decompress_into=cramjam.zstd.decompress_into,
            complaint=_zstd_complaint,
        ),
        "lz4": Library(
            default_level=1,
            compress=lambda data, level: cramjam.lz4.compress(data, level=level),
            decompress_into=cramjam.lz4.decompress_into,
            complaint=_frame_complaint,
        ),
        "snappy": Library(
            default_level=0,
            compress=lambda data, level: cramjam.snappy.compress_raw(data),
            decompress_into=cramjam.snappy.decompress_raw_into,
            complaint=_snappy_complaint,
        ),
    }
)
"""By their names in a codec's name."""
