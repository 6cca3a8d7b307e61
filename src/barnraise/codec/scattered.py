"""Reads a few decoded entries of a vector that is zero elsewhere; what every sparse codec decodes to; pure."""

from typing import Final

import numpy as np

from barnraise.codec.codec import PIECE, Codec, Place, Values
from barnraise.codec.grid import Bytes, Float32
from barnraise.codec.indices import Indices

NOMINAL: Final = 1 << 20
"""Number of elements at which sizes of codecs are compared."""


class Scattered:
    """Entries at strictly ascending places."""

    def __init__(self, places: Indices, values: Values) -> None:
        """Take int64[k] and the values that belong there."""
        self._places, self._values = places, values

    def read(self, start: int, stop: int, out: Values) -> None:
        """Write zeros, and the entries where they belong."""
        part = self._within(start, stop)
        out = out[: stop - start]
        out.fill(0)
        out[self._places[part] - start] = self._values[part]

    def add(self, start: int, stop: int, base: Float32, out: Float32) -> None:
        """Write ``base`` to ``out`` and add the entries where they belong."""
        part = self._within(start, stop)
        if out is not base:
            out[...] = base
        out[self._places[part] - start] += self._values[part]

    def _within(self, start: int, stop: int) -> slice:
        low, high = np.searchsorted(self._places, (start, stop))
        return slice(int(low), int(high))


def decoded(codec: Codec, data: Bytes, count: int, place: Place) -> Values:
    """Return everything that an encoding decodes to. Raises `Malformed`."""
    reader = codec.reader(data, count, place)
    values: Values = np.empty(count, codec.dtype)
    for start in range(0, count, PIECE):
        stop = min(start + PIECE, count)
        reader.read(start, stop, values[start:stop])
    return values


def smaller(sparse: Codec, dense: Codec) -> Codec:
    """Return the codec that takes fewer bytes; ``dense`` if neither does."""
    return sparse if sparse.bound_bytes(NOMINAL) < dense.bound_bytes(NOMINAL) else dense
