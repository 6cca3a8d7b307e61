"""Top-k: the entries of largest magnitude, and where they are; the rest is zero to whoever decodes; pure.

Theory of operation. `TopK` takes the k = max(1, round(ratio n)) largest of a whole shard (Aji and Heafield 2017, arXiv
1704.05021), `ChunkTopK` the k = 2 round(ratio 4096 / 2) largest of each chunk of 4096, at least two (SparseLoCo, arXiv
2508.15706). Of equal magnitudes the first ones win, so that the choice is the same everywhere. On the wire:

    topk:R     indices (`indices.write`: 2 + log2(1/R) bits each), then the k values in another codec's form
    topkc:R    indices within each chunk, 12 bits each, then the values. 64 of 4096 with 2 bits each are
               64 (12 + 2) / 4096 = 0.219 bits an entry, 146 times less than float32, and what scales the 2 bits have

k follows from n, so it is not sent. Chunks keep a layer with small entries from being left out for long; the whole
shard's choice loses less of the update's norm, and its indices are smaller. Encodings are never summed: sums travel
`for_aggregate`. What is left out is lost without error feedback around the codec.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from barnraise.codec import indices
from barnraise.codec.codec import Codec, Malformed, Place, Values
from barnraise.codec.grid import Bytes
from barnraise.codec.indices import Indices
from barnraise.codec.scattered import Scattered, decoded, smaller

CHUNK: Final = 4096
SAMPLING: Final = 67
"""One in so many is looked at first. A prime: rows of matrices have other lengths."""

Magnitudes = npt.NDArray[np.uint32] | npt.NDArray[np.uint16]


class TopK:
    """The largest entries of the whole shard."""

    is_lossless: Final = False

    def __init__(self, ratio: float, values: Codec, dense: Codec) -> None:
        """Send ``ratio`` (0 < ratio <= 1) of the entries, their values by ``values``; see `for_aggregate` for ``dense``."""
        self._ratio, self._values, self._dense = ratio, values, dense
        self.name: Final = f"topk:{ratio!r}+{values.name}"
        self.dtype: Final = values.dtype
        self.is_exact: Final = values.is_exact

    def count(self, num_entries: int) -> int:
        """Return how many of so many entries are sent."""
        return min(num_entries, max(1, round(self._ratio * num_entries)))

    def bound_bytes(self, count: int) -> int:
        """Return the size of the indices and the most that the values may take."""
        chosen = self.count(count)
        return indices.size_bytes(count, chosen) + self._values.bound_bytes(chosen)

    def encode(self, values: Values, out: Bytes, place: Place = Place()) -> int:
        """Choose, and write indices and values."""
        chosen = largest_of_all(magnitudes(values), self.count(len(values)))
        used = indices.write(chosen, len(values), out)
        return used + self._values.encode(values[chosen], out[used:], place)

    def reader(self, data: Bytes, count: int, place: Place = Place()) -> Scattered:
        """Check and decode the entries. Raises `Malformed`."""
        chosen = self.count(count)
        size = indices.size_bytes(count, chosen)
        places = indices.read(data[:size], count, chosen)
        return Scattered(places, decoded(self._values, data[size:], chosen, place))

    def for_aggregate(self, num_updates: int) -> Codec:
        """Return as many times the entries at 8 bits or more, or what is dense where that is no larger."""
        values = self._values.for_aggregate(num_updates)
        return smaller(TopK(min(1.0, self._ratio * num_updates), values, self._dense), self._dense)


class ChunkTopK:
    """The largest entries of each chunk of 4096."""

    is_lossless: Final = False

    def __init__(self, ratio: float, values: Codec, dense: Codec) -> None:
        """Send ``ratio`` (0 < ratio <= 1) of each chunk's entries; otherwise like `TopK`."""
        self._ratio, self._values, self._dense = ratio, values, dense
        self.name: Final = f"topkc:{ratio!r}+{values.name}"
        self.dtype: Final = values.dtype
        self.is_exact: Final = values.is_exact

    def count(self, num_entries: int) -> int:
        """Return how many of a chunk of so many entries are sent: an even number, unless that is more than there are."""
        return min(num_entries, max(2, 2 * round(self._ratio * num_entries / 2)))

    def bound_bytes(self, count: int) -> int:
        """Return the size of the indices and the most that the values may take."""
        chosen = self._total(count)
        return indices.twelve_bytes(chosen) + self._values.bound_bytes(chosen)

    def encode(self, values: Values, out: Bytes, place: Place = Place()) -> int:
        """Choose in each chunk, and write indices and values."""
        chosen = np.concatenate([self._choose(rows) + start for start, rows in _chunks(values)])
        used = indices.pack_twelve(chosen % CHUNK, out)
        return used + self._values.encode(values[chosen], out[used:], place)

    def reader(self, data: Bytes, count: int, place: Place = Place()) -> Scattered:
        """Check and decode the entries. Raises `Malformed`."""
        total = self._total(count)
        size = indices.twelve_bytes(total)
        within = indices.unpack_twelve(data[:size], total)
        places = within + self._chunk_of_each(count)
        if (places[1:] <= places[:-1]).any() or (total and places[-1] >= count):
            raise Malformed("the indices within a chunk are not ascending, or beyond the end")
        return Scattered(places, decoded(self._values, data[size:], total, place))

    def for_aggregate(self, num_updates: int) -> Codec:
        """Return as many times the entries at 8 bits or more, or what is dense where that is no larger."""
        values = self._values.for_aggregate(num_updates)
        return smaller(ChunkTopK(min(1.0, self._ratio * num_updates), values, self._dense), self._dense)

    def _choose(self, rows: Values) -> Indices:
        """Return the flat indices of each row's largest."""
        return np.flatnonzero(largest(magnitudes(rows), self.count(rows.shape[1])))

    def _total(self, count: int) -> int:
        whole, rest = divmod(count, CHUNK)
        return whole * self.count(CHUNK) + (self.count(rest) if rest else 0)

    def _chunk_of_each(self, count: int) -> Indices:
        """Return where the chunk of each sent entry begins."""
        whole, rest = divmod(count, CHUNK)
        starts = np.repeat(np.arange(whole) * CHUNK, self.count(CHUNK))
        last = np.full(self.count(rest) if rest else 0, whole * CHUNK)
        return np.concatenate([starts, last])


def magnitudes(values: Values) -> Magnitudes:
    """Return whole numbers that are in the order of the values' magnitudes."""
    if values.dtype == np.int16:
        return np.abs(values).view(np.uint16)  # of -32768, which has no opposite, too
    return np.ascontiguousarray(values).view(np.uint32) & np.uint32(0x7FFFFFFF)


def largest_of_all(keys: Magnitudes, count: int) -> Indices:
    """Return the places of the ``count`` largest, ascending; of equal ones the first.

    A sample tells a bound that somewhat more than enough are over: most of a long array is looked at just once.
    """
    sample = keys[::SAMPLING]
    likely = int(len(sample) * count / max(1, len(keys)) * 1.1) + 64
    if likely >= len(sample):
        return np.flatnonzero(largest(keys[None], count))
    bound = np.partition(sample, len(sample) - likely)[len(sample) - likely]
    candidates = np.flatnonzero(keys >= bound)
    if len(candidates) < count:
        return np.flatnonzero(largest(keys[None], count))
    return candidates[np.flatnonzero(largest(keys[candidates][None], count))]


def largest(keys: Magnitudes, count: int) -> npt.NDArray[np.bool_]:
    """Mark the ``count`` largest of each row, bool[rows, width]; of equal ones the first."""
    width = keys.shape[1]
    if count >= width:
        return np.ones(keys.shape, np.bool_)
    least = np.partition(keys, width - count, axis=1)[:, width - count, None]
    mask: npt.NDArray[np.bool_] = np.greater(keys, least)
    wanted = count - np.count_nonzero(mask, axis=1)
    rows, columns = np.nonzero(keys == least)
    first = np.searchsorted(rows, np.arange(len(keys)))
    taken = np.arange(len(rows)) - first[rows] < wanted[rows]
    mask[rows[taken], columns[taken]] = True
    return mask


def _chunks(values: Values) -> list[tuple[int, Values]]:
    """Return the whole chunks as rows and the rest as one row, each with where it starts."""
    whole = len(values) // CHUNK * CHUNK
    parts = [(0, values[:whole].reshape(-1, CHUNK)), (whole, values[whole:].reshape(1, -1))]
    return [(start, rows) for start, rows in parts if rows.size] or [(0, values.reshape(0, 1))]
