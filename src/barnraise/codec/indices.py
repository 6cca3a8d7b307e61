"""How the places of a few entries among many become bytes; pure.

Theory of operation. Both sides know n, the number of entries, and k, how many of them are meant; so the size of an
encoding follows from n and k, and nothing is said twice. `write` takes the smaller of two forms (ties: the first):

    Elias-Fano   of each index the low b = floor(log2(n / k)) bits as they are; the rest in unary: bit (index >> b) + i
                 is set for the i-th index. k (b + 1) + (n - 1 >> b) + 1 bits, some 2 + log2(n / k) an index, within
                 half a bit of the least possible (Elias 1974; Vigna 2013, arXiv 1206.4300). Fixed ceil(log2 n) bits
                 take 2.5 times that at one in a hundred of a million.
    bitmap       one bit an entry; smaller from one in four on.

Of all n, nothing is written. `pack_twelve` is the form of SparseLoCo (arXiv 2508.15706): indices within a chunk of
4096, 12 bits each, two in three bytes.
"""

import numpy as np
import numpy.typing as npt

from barnraise.codec.codec import Malformed
from barnraise.codec.grid import Bytes

Indices = npt.NDArray[np.int64]


def size_bytes(num_entries: int, count: int) -> int:
    """Return the size of ``count`` indices below ``num_entries``."""
    if count in (0, num_entries):
        return 0
    low, high = _elias_fano_bytes(num_entries, count)
    return min(low + high, -(-num_entries // 8))


def write(indices: Indices, num_entries: int, out: Bytes) -> int:
    """Write indices, strictly ascending and below ``num_entries``, to the start of ``out``; return their size."""
    count = len(indices)
    size = size_bytes(num_entries, count)
    if not size:
        return 0
    low, high = _elias_fano_bytes(num_entries, count)
    if low + high > size:
        bits = np.zeros(8 * size, np.uint8)
        bits[indices] = 1
        out[:size] = np.packbits(bits, bitorder="little")
        return size
    width = _low_bits(num_entries, count)
    out[:low] = _pack(indices, width)
    bits = np.zeros(8 * high, np.uint8)
    bits[(indices >> width) + np.arange(count)] = 1
    out[low:size] = np.packbits(bits, bitorder="little")
    return size


def read(data: Bytes, num_entries: int, count: int) -> Indices:
    """Return ``count`` indices below ``num_entries``, int64[count], strictly ascending.

    Raises:
        Malformed: the bytes are not of just so many, or they are not ascending.
    """
    size = size_bytes(num_entries, count)
    if len(data) != size:
        raise Malformed(f"{count} indices take {size} bytes, not {len(data)}")
    if not size:
        return np.arange(count)
    low, high = _elias_fano_bytes(num_entries, count)
    if low + high > size:
        found = np.flatnonzero(np.unpackbits(data, bitorder="little"))
    else:
        width = _low_bits(num_entries, count)
        found = np.flatnonzero(np.unpackbits(data[low:], bitorder="little"))
        if len(found) == count:
            found = (found - np.arange(count) << width) + _unpack(data[:low], width, count)
    if len(found) != count:
        raise Malformed(f"{len(found)} entries are marked, and {count} are due")
    if (found[1:] <= found[:-1]).any() or found[-1] >= num_entries:
        raise Malformed(f"the indices are not ascending below {num_entries}")
    return found


def twelve_bytes(count: int) -> int:
    """Return the size of so many indices of 12 bits."""
    return 3 * count + 1 >> 1


def pack_twelve(indices: Indices, out: Bytes) -> int:
    """Write indices below 4096, two in three bytes, to the start of ``out``; return their size."""
    pairs = np.zeros(len(indices) + 1 & ~1, np.uint16)
    pairs[: len(indices)] = indices
    first, second = pairs[0::2], pairs[1::2]
    triples = np.empty((len(first), 3), np.uint8)
    triples[:, 0] = first & 0xFF
    triples[:, 1] = first >> 8 | (second & 0xF) << 4
    triples[:, 2] = second >> 4
    size = twelve_bytes(len(indices))
    out[:size] = triples.reshape(-1)[:size]
    return size


def unpack_twelve(data: Bytes, count: int) -> Indices:
    """Return int64[count] indices below 4096. Raises `Malformed` where the bytes are not of just so many."""
    size = twelve_bytes(count)
    if len(data) != size:
        raise Malformed(f"{count} indices take {size} bytes, not {len(data)}")
    triples = np.zeros((count + 1 >> 1, 3), np.int64)
    triples.reshape(-1)[:size] = data
    pairs = np.empty((len(triples), 2), np.int64)
    pairs[:, 0] = triples[:, 0] | (triples[:, 1] & 0xF) << 8
    pairs[:, 1] = triples[:, 1] >> 4 | triples[:, 2] << 4
    if count & 1 and pairs[-1, 1]:
        raise Malformed("the last index is followed by bits that mean nothing")
    return pairs.reshape(-1)[:count]


def _low_bits(num_entries: int, count: int) -> int:
    return (num_entries // count).bit_length() - 1


def _elias_fano_bytes(num_entries: int, count: int) -> tuple[int, int]:
    """Return the sizes of the low and of the high part."""
    width = _low_bits(num_entries, count)
    return count * width + 7 >> 3, count + (num_entries - 1 >> width) + 1 + 7 >> 3


def _pack(indices: Indices, width: int) -> Bytes:
    """Return the lowest ``width`` bits of each."""
    bits = (indices[:, None] >> np.arange(width) & 1).astype(np.uint8)
    return np.packbits(bits.reshape(-1), bitorder="little")


def _unpack(data: Bytes, width: int, count: int) -> Indices:
    bits = np.unpackbits(data, bitorder="little")
    if bits[count * width :].any():
        raise Malformed("the indices are followed by bits that mean nothing")
    return bits[: count * width].reshape(count, width).astype(np.int64) @ (1 << np.arange(width))
