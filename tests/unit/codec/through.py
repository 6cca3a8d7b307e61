"""What a codec makes of values, with all that its interface promises looked at on the way."""

import numpy as np

from barnraise.codec.codec import PIECE, Codec, Place, Values
from barnraise.codec.grid import Bytes, Float32


def encoded(codec: Codec, values: Values, place: Place | None = None) -> Bytes:
    """Return the encoding; what lies behind it is not touched."""
    bound = codec.bound_bytes(len(values))
    out = np.full(bound + 8, 0xEE, np.uint8)
    size = codec.encode(values, out, place or Place())
    assert 0 <= size <= bound
    assert (out[bound:] == 0xEE).all()
    return out[:size].copy()


def decoded(codec: Codec, data: Bytes, count: int, place: Place | None = None) -> Values:
    """Return the values, read piece by piece, and for floats added as well."""
    reader = codec.reader(data, count, place or Place())
    out = np.empty(count, codec.dtype)
    for start in range(0, count, PIECE):
        stop = min(start + PIECE, count)
        room = np.full(PIECE, 99, codec.dtype)
        reader.read(start, stop, room)
        assert (room[stop - start :] == 99).all()
        out[start:stop] = room[: stop - start]
        if codec.dtype == np.float32:
            base: Float32 = np.linspace(-1, 1, stop - start, dtype=np.float32)
            expected = base + out[start:stop]
            reader.add(start, stop, base, base)
            assert np.array_equal(base, expected)
    return out


def through(codec: Codec, values: Values, place: Place | None = None) -> Values:
    """Return what arrives of the values."""
    return decoded(codec, encoded(codec, values, place), len(values), place)
