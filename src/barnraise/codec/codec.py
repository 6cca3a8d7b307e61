"""How numbers become the bytes that travel: the one interface of all codecs, and what decoders promise; pure."""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from barnraise.codec.grid import Bytes, Float32, Int16

PIECE: Final = 1 << 16
"""Encodings are read in pieces of so many elements, whose temporaries stay in the L2 cache. A multiple of every codec's
block."""

Values = Float32 | Int16


class Malformed(ValueError):
    """Bytes that no encoder made; says what is wrong with them. Whoever knows the sender makes a `PeerError` of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which part of which vector is encoded: all that codecs know of the world."""

    seed: int = 0
    """Another one each round, the same on all peers: where random-k and stochastic rounding draw from."""
    index: int = 0
    """Of the shard or chunk in its vector; the same in every round. PowerSGD's warm start goes by it."""


class Reader(Protocol):
    """An encoding that was checked as a whole; reading it cannot fail and depends on the bytes alone."""

    def read(self, start: int, stop: int, out: Values) -> None:
        """Write elements ``start .. stop`` to ``out[: stop - start]``, of the codec's type.

        ``start`` is a multiple of `PIECE`; ``stop`` is another one or the end.
        """
        ...

    def add(self, start: int, stop: int, base: Float32, out: Float32) -> None:
        """Write ``base + decoded`` to ``out``, both float32[stop - start] and perhaps the same array. float32 codecs only."""
        ...


class Codec(Protocol):
    """One way to encode arrays of one type, int16 (the agreed grid) or float32.

    A codec of type int16 that `is_exact` decodes to whole numbers within +-`grid.LIMIT` by integer arithmetic, or by float
    arithmetic that never rounds: whoever holds the same bytes holds the same values. An encoding is of one shard or chunk
    and can be decoded without any other.
    """

    @property
    def name(self) -> str:
        """Return what the configuration and the commitments call it, such as ``topk:0.016+int2+zstd``."""
        ...

    @property
    def dtype(self) -> np.dtype[np.int16] | np.dtype[np.float32]:
        """Return the type of what it encodes and decodes."""
        ...

    @property
    def is_exact(self) -> bool:
        """Tell whether decoding gives the same integers on every machine."""
        ...

    @property
    def is_lossless(self) -> bool:
        """Tell whether decoding gives back just what was encoded."""
        ...

    def bound_bytes(self, count: int) -> int:
        """Return the most bytes that ``count`` elements may take. Longer data is refused before anything is allocated."""
        ...

    def encode(self, values: Values, out: Bytes, place: Place = Place()) -> int:
        """Write the encoding of ``values`` to the start of ``out`` (at least ``bound_bytes``) and return its length.

        The values are finite.
        """
        ...

    def reader(self, data: Bytes, count: int, place: Place = Place()) -> Reader:
        """Check an encoding of ``count`` elements, all of it, and return its reader.

        Allocates no more than some multiple of what ``count`` elements take decoded, whatever the data says.

        Raises:
            Malformed: it is none.
        """
        ...

    def for_aggregate(self, num_updates: int) -> "Codec":
        """Return how the mean of so many decoded updates travels: what is lost there, nobody feeds back.

        At least 8 bits a value, and as many entries as the updates can have together.
        """
        ...
