"""The codec that changes nothing: a shard travels as its int16 grid integers, little-endian."""

from typing import Final

import numpy as np

from barnraise.codec.grid import Bytes, Int16

WIRE: Final = np.dtype("<i2")


class Grid16:
    """Two bytes an element."""

    name: Final = "grid16"
    is_exact: Final = True

    def size_bytes(self, count: int) -> int:
        """Return 2 bytes for each element."""
        return WIRE.itemsize * count

    def encode(self, values: Int16, start: int, data: Bytes) -> None:
        """Copy a piece."""
        data.view(WIRE)[start : start + len(values)] = values

    def decode(self, data: Bytes, start: int, stop: int, scratch: Int16) -> Int16:
        """Return a view of the piece."""
        return data.view(WIRE)[start:stop]

    def complaint(self, data: Bytes) -> str:
        """Return "": every two bytes are an integer."""
        return ""
