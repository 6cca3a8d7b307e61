"""How a shard of grid integers becomes the bytes that travel: the one interface of all codecs, and the choice."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from barnraise.codec.grid import Bytes, Int16
from barnraise.codec.grid16 import Grid16
from barnraise.codec.int8 import Int8
from barnraise.config import RunConfig

PIECE: Final = 1 << 16
"""A shard is encoded and decoded in pieces of so many elements, whose temporaries stay in the L2 cache. A multiple of
every codec's block."""


class Codec(Protocol):
    """Decoding is integer arithmetic: whoever holds the same bytes holds the same values.

    A shard's encoded form has a size that its number of elements fixes. A piece begins at a multiple of ``PIECE``
    elements from the shard's start.
    """

    @property
    def name(self) -> str:
        """Return the name that the configuration and the commitments know it by."""
        ...

    @property
    def is_exact(self) -> bool:
        """Tell whether decoding gives back just what was encoded."""
        ...

    def size_bytes(self, count: int) -> int:
        """Return the size of a shard of ``count`` elements."""
        ...

    def encode(self, values: Int16, start: int, data: Bytes) -> None:
        """Write the encoded form of a piece.

        Args:
            values: int16[n], the shard's elements from ``start`` on.
            start: A multiple of ``PIECE``.
            data: uint8[size], the whole shard's encoded form; the piece's part of it is written.
        """
        ...

    def decode(self, data: Bytes, start: int, stop: int, scratch: Int16) -> Int16:
        """Return a piece's values, int16[stop - start]: in ``scratch``, or where ``data`` is those values, a view of it.

        Raises:
            LocalError: ``complaint`` has something against the data.
        """
        ...

    def complaint(self, data: Bytes) -> str:
        """Return what is wrong with a peer's bytes, which are of the right size; "" if they can be decoded."""
        ...


_CODECS: Final[Mapping[str, Codec]] = MappingProxyType({codec.name: codec for codec in (Grid16(), Int8())})


def codec_of(config: RunConfig) -> Codec:
    """Return the run's codec."""
    return _CODECS[config.round.codec]
